"""Pools, Softmax, Concat and tables on codes.

Source: ort_semantics_and_kernels.md A.3.
"""

import numpy as np

from onnxptq.formulas import Affine, dequantized, quantized
from onnxptq.ops.fused import Fused, NotInteger
from onnxptq.ops.nodes import int_attribute, ints_attribute
from onnxptq.ops.products import conv_attributes
from onnxptq.program import Attribute


def _attributes(node: Fused) -> dict[str, Attribute]:
    kernel = ints_attribute(node.node, "kernel_shape", ())
    if not 1 <= len(kernel) <= 3:
        raise NotInteger(f"it is a pool over {len(kernel)} axes")
    return {
        **conv_attributes(node.node, len(kernel)),
        "kernel_shape": kernel,
        "ceil_mode": int_attribute(node.node, "ceil_mode", 0),
    }


def max_pool(node: Fused) -> None:
    """MaxPool and NhwcMaxPool: the largest code of each window."""
    x = node.codes(0)
    outputs = [value for value in node.node.outputs if value.name]
    if len(outputs) > 1 and (outputs[1].uses() or outputs[1].is_graph_output()):
        raise NotInteger("its indices are used")
    attrs = _attributes(node)
    if node.node.op_type == "NhwcMaxPool":
        attrs["channels_last"] = 1
    made = (x.dtype, x.lo, x.hi)
    node.emit("max_pool", (node.id(0),), made, parts=attrs, output=node.node.outputs[0])


def average_pool(node: Fused) -> None:
    """QLinearAveragePool: x, its scale and zero point, y's."""
    attrs = _attributes(node)
    attrs["count_include_pad"] = int_attribute(node.node, "count_include_pad", 0)
    _pool(node, "average_pool", attrs)


def global_average_pool(node: Fused) -> None:
    """QLinearGlobalAveragePool: x, its scale and zero point, y's."""
    last = int_attribute(node.node, "channels_last", 0)
    _pool(node, "global_average_pool", {"channels_last": last})


def softmax(node: Fused) -> None:
    """QLinearSoftmax: x, its scale and zero point, y's."""
    opset = int_attribute(node.node, "opset", 13)
    axis = int_attribute(node.node, "axis", -1 if opset >= 13 else 1)
    exact = node.builder.computes("softmax")
    _pool(node, "softmax", {"axis": axis, "opset": opset, "exact": int(exact)})


def _pool(node: Fused, op: str, attrs: dict[str, Attribute]) -> None:
    x, y = node.codes(0), node.output_format(3, 4)
    if x.dtype != y.dtype:
        raise NotInteger(f"it turns {x.dtype} into {y.dtype}")
    arrays = {
        "scales": np.array([node.scale(1), y.scale], np.float32),
        "zero_points": np.array([node.number(2), y.zero], np.int32),
    }
    node.emit(op, (node.id(0),), (y.dtype, *y.ends), parts={**arrays, **attrs})


def qlinear_concat(node: Fused) -> None:
    """QLinearConcat: y's scale and zero point, then each input with its own."""
    y = node.output_format(0, 1)
    operands = range(2, len(node.node.inputs), 3)
    lowest = int(np.iinfo(y.dtype).min)
    tables, ends = list[np.ndarray](), list[int]()
    for position in operands:
        x = node.codes(position)
        affine = Affine(node.scale(position + 1), node.number(position + 2))
        codes = np.arange(256) + lowest
        if (affine.scale, affine.zero_point) != (y.scale, y.zero):
            real = dequantized(codes, affine)
            codes = quantized(real, Affine(y.scale, y.zero), np.dtype(y.dtype))
        tables.append(codes.astype(y.dtype))
        reached = codes[x.lo - lowest : x.hi - lowest + 1]
        ends += [int(reached.min()), int(reached.max())]
    arrays = {"tables": np.stack(tables)}
    if all((table == tables[0][0] + np.arange(256)).all() for table in tables):
        arrays = {}
    node.emit(
        "concat",
        tuple(node.id(position) for position in operands),
        (y.dtype, min(ends), max(ends)),
        parts={**arrays, "axis": int_attribute(node.node, "axis", 0)},
    )


def concat_codes(node: Fused) -> None:
    """Concat on codes: all inputs share their parameters."""
    values = [node.codes(i) for i in range(len(node.node.inputs))]
    made = (values[0].dtype, min(v.lo for v in values), max(v.hi for v in values))
    inputs = tuple(node.id(i) for i in range(len(values)))
    attrs: dict[str, Attribute] = {"axis": int_attribute(node.node, "axis", 0)}
    node.emit("concat", inputs, made, parts=attrs)


def table(node: Fused) -> None:
    """QLinearSigmoid, QLinearLeakyRelu: what onnxruntime's own kernel makes of each code."""
    emit_table(node, node.id(0), node.builder.table(node.node))


def emit_table(node: Fused, source: int, codes: np.ndarray) -> None:
    """A table over the codes of a value; the output is the node's."""
    x = node.builder.value(source)
    lowest = int(np.iinfo(x.dtype).min)
    reached = codes[x.lo - lowest : x.hi - lowest + 1]
    made = (str(codes.dtype), int(reached.min()), int(reached.max()))
    node.emit("table", (source,), made, parts={"table": codes})


def reduce_max(node: Fused) -> None:
    """ReduceMax on codes."""
    _reduce(node, "reduce_max")


def reduce_min(node: Fused) -> None:
    """ReduceMin on codes."""
    _reduce(node, "reduce_min")


def _reduce(node: Fused, op: str) -> None:
    axes = node.array(1) if node.present(1) else None
    given = ints_attribute(node.node, "axes", ()) if axes is None else tuple(axes.tolist())
    if not given and int_attribute(node.node, "noop_with_empty_axes", 0):
        node.codes(0)
        node.emit("identity", (node.id(0),))
        return
    node.codes(0)
    inputs = (node.id(0), node.builder.constant(np.array(given, np.int64)))
    keepdims = int_attribute(node.node, "keepdims", 1)
    node.emit(op, inputs, parts={"keepdims": keepdims})

"""fold-constants: movers of constants and arithmetic on shapes are carried out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxptq.passes.edit import (
    FLOATS,
    constant,
    graph_of,
    input_at,
    ints,
    is_op,
    remove,
    set_constant,
)

_Array = npt.NDArray[Any]

_MOST_ELEMENTS = 1024
_COUNTERS = (
    *("Add", "Sub", "Mul", "Min", "Max", "Neg", "Abs", "Equal", "Less", "Greater", "Where"),
    *("Cast", "Concat", "ConstantOfShape", "Gather", "Range", "Slice", "Transpose", "Not"),
)


@dataclass(frozen=True)
class FoldConstants(ir.passes.InPlacePass):
    """Carry out movers of constants (Transpose, Reshape, Cast, ...) and arithmetic on shapes.

    Exporters leave the transposed weights of linear layers and the amounts of a Pad so. It spares
    most models the start of onnxsim, which does the rest.
    """

    name: ClassVar[str] = "fold-constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        folded = [_fold(node) for node in list(model.graph)]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(node: ir.Node) -> bool:
    output = node.outputs[0]
    if output.is_graph_output() or not output.uses():
        return False
    result = _moved(node)
    if result is None:
        result = _counted(node)
    if result is None:
        return False
    dtype = _stored_type(node)
    name, graph = output.name, graph_of(node)
    value = ir.Value(name=name)
    set_constant(value, result, dtype)
    output.replace_all_uses_with(value)
    remove(node)
    output.name = None
    graph.register_initializer(value)
    return True


def _stored_type(node: ir.Node) -> ir.DataType | None:
    """The type in which ONNX stores the result; numpy alone cannot tell INT4 from INT8."""
    if is_op(node, "Cast"):
        return ir.DataType(node.attributes.get_int("to", 0))
    source = node.inputs[0] if node.inputs else None
    return source.dtype if is_op(node, *_MOVERS) and source is not None else None


def _moved(node: ir.Node) -> _Array | None:
    array = constant(node.inputs[0]) if is_op(node, *_MOVERS) and node.inputs else None
    return None if array is None else _MOVERS[node.op_type](node, array)


def _counted(node: ir.Node) -> _Array | None:
    """The result of arithmetic on shapes, by onnx's reference; None where it is not constant."""
    if is_op(node, "Shape"):
        return _shape(node)
    if is_op(node, "Gather") and is_op(node.inputs[0] and node.inputs[0].producer(), "Shape"):
        return _gathered_dimension(node)
    if not is_op(node, *_COUNTERS):
        return None
    arrays = [constant(value) for value in node.inputs if value is not None]
    if not arrays or len(arrays) != len(node.inputs) or len(node.outputs) != 1:
        return None
    known = [array for array in arrays if array is not None]
    small = sum(array.size for array in known) <= _MOST_ELEMENTS
    if len(known) != len(arrays) or not small or any(a.dtype.kind not in "iub" for a in known):
        return None
    return _evaluate(node, known)


def _evaluate(node: ir.Node, arrays: list[_Array]) -> _Array | None:
    proto = ir.serde.serialize_node(node)
    names = [f"input{i}" for i in range(len(arrays))]
    del proto.input[:]
    proto.input.extend(names)
    if proto.op_type == "ConstantOfShape" and np.prod(arrays[0]) > _MOST_ELEMENTS:
        return None
    try:
        (result,) = ReferenceEvaluator(proto).run(None, dict(zip(names, arrays, strict=True)))
    # Whatever onnx's reference cannot do stays in the graph, for onnxsim.
    except Exception:
        return None
    return np.asarray(result)


def _shape(node: ir.Node) -> _Array | None:
    source = node.inputs[0]
    whole = source.shape if source is not None else None
    if whole is None:
        return None
    part = list(whole)[node.attributes.get_int("start", 0) : node.attributes.get_int("end")]
    if not all(isinstance(n, int) for n in part):
        return None
    return np.array(part, np.int64)


def _gathered_dimension(node: ir.Node) -> _Array | None:
    """Gather of dimensions that are numbers, from a Shape whose other dimensions are not."""
    shape = node.inputs[0].producer() if node.inputs[0] is not None else None
    places = constant(input_at(node, 1))
    source = shape.inputs[0] if shape is not None else None
    whole = source.shape if source is not None else None
    if shape is None or shape.attributes or whole is None or places is None:
        return None
    picked = [whole[int(place)] for place in places.reshape(-1)]
    if not all(isinstance(n, int) for n in picked):
        return None
    return np.array(picked, np.int64).reshape(places.shape)


def _transpose(node: ir.Node, array: _Array) -> _Array:
    return np.transpose(array, node.attributes.get_ints("perm"))


def _reshape(node: ir.Node, array: _Array) -> _Array | None:
    target = ints(input_at(node, 1))
    if target is None or node.attributes.get_int("allowzero", 0):
        return None
    return array.reshape([array.shape[i] if n == 0 else n for i, n in enumerate(target)])


def _flatten(node: ir.Node, array: _Array) -> _Array:
    axis = node.attributes.get_int("axis", 1)
    axis += array.ndim if axis < 0 else 0
    return array.reshape(int(np.prod(array.shape[:axis])), -1)


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    axes = ints(input_at(node, 1)) if input_at(node, 1) else node.attributes.get_ints("axes")
    return None if axes is None else tuple(axes)


def _squeeze(node: ir.Node, array: _Array) -> _Array | None:
    axes = _axes(node)
    return None if axes is None else np.squeeze(array, axes)


def _unsqueeze(node: ir.Node, array: _Array) -> _Array | None:
    axes = _axes(node)
    return None if axes is None else np.expand_dims(array, axes)


def _cast(node: ir.Node, array: _Array) -> _Array | None:
    source = node.inputs[0]
    target = ir.DataType(node.attributes.get_int("to", 0))
    if source is None or source.dtype not in FLOATS or target not in FLOATS:
        return None
    return array.astype(target.numpy())


_MOVERS: dict[str, Callable[[ir.Node, _Array], _Array | None]] = {
    "Identity": lambda _, array: array,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
}

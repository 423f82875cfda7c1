"""Small models for tests: one node from a row of OPS, or ONNX text; ranges from random data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxptq import ort, passes
from onnxptq.graph import io
from onnxptq.ops.nodes import constant
from onnxptq.ops.op import Case, Op
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe
from onnxptq.rewrite.gates import fit_gates
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.weights import fit_scales

Array = npt.NDArray[Any]


def one_node(op: Op, case: Case, rng: np.random.Generator) -> ir.Model:
    """A model of one node: input `x`, outputs `y0`, `y1`, ..., constants as initializers."""
    names = ["x"]
    initializers: list[onnx.TensorProto] = []
    for position in range(1, 1 + max(case.constants, default=0)):
        value = case.constants.get(position)
        if value is None:
            names.append("")
            continue
        array = rng.normal(size=value).astype(np.float32) if isinstance(value, tuple) else value
        names.append(f"c{position}")
        initializers.append(numpy_helper.from_array(np.asarray(array), names[-1]))
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(op.type, names, outputs, name="node", **case.attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return passes.prepare(io.from_proto(proto, "test")).model


def proto_from_text(
    body: str, rng: np.random.Generator, weights: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """A model from the text of a graph, with random weights of the given shapes."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]>\n' + body)
    for name, shape in weights.items():
        array = rng.normal(size=shape).astype(np.float32) / np.sqrt(max(1, np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return model


def from_text(
    body: str, rng: np.random.Generator, weights: Mapping[str, tuple[int, ...]]
) -> ir.Model:
    """A prepared model from the text of a graph, with random weights of the given shapes."""
    return passes.prepare(io.from_proto(proto_from_text(body, rng, weights), "test")).model


def array_of(model: ir.Model, name: str) -> Array:
    """The numbers of an initializer."""
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


def feeds_for(model: ir.Model, rng: np.random.Generator, batch: int = 4) -> dict[str, Array]:
    """Random numbers for every input; symbolic dimensions become `batch`."""
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else batch for dim in value.shape]
        feeds[str(value.name)] = rng.normal(size=shape).astype(np.float32)
    return feeds


def with_ranges(model: ir.Model, recipe: Recipe, feeds: Mapping[str, Array]) -> Recipe:
    """The recipe with minimum and maximum as ranges, of activations and of weights."""
    inputs = {str(value.name) for value in model.graph.inputs}
    wanted = [t.value for t in recipe.activations()]
    taps = [name for name in wanted if name not in inputs]
    arrays = {**feeds, **ort.session(ort.with_outputs(model, taps)).run(feeds, taps)}
    chosen: dict[str, QParams] = {}
    for tensor in recipe.activations():
        array = arrays[tensor.value]
        spec = tensor.params.spec
        chosen[tensor.value] = QParams.from_range(array.min(), array.max(), spec)
    for tensor in recipe.weights():
        array = array_of(model, tensor.value)
        axis = tensor.params.spec.axis
        rows = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        lo, hi = rows.min(axis=1), rows.max(axis=1)
        shape = tensor.params.scale.shape
        lo, hi = lo.reshape(shape), hi.reshape(shape)
        chosen[tensor.value] = QParams.from_range(lo, hi, tensor.params.spec)
    return fit_scales(model, fit_gates(model, recipe.with_params(chosen, "test")))


def placed(model: ir.Model, feeds: Mapping[str, Array], **choices: Any) -> Recipe:
    """`place` and `with_ranges` in one."""
    return with_ranges(model, place(model, Placing(**choices)), feeds)


def sqnr_db(expected: Array, found: Array) -> float:
    """10 log10(sum expected^2 / sum error^2)."""
    error = np.square(expected.astype(np.float64) - found).sum()
    signal = np.square(expected.astype(np.float64)).sum()
    return float(10 * np.log10(signal / max(error, 1e-300)))

"""fold-constants: movers of constants are carried out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.passes.edit import FLOATS, constant, graph_of, input_at, ints, is_op, remove

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FoldConstants(ir.passes.InPlacePass):
    """Carry out Identity, Transpose, Reshape, Flatten, Squeeze, Unsqueeze and Cast of constants.

    Exporters leave the transposed weights of linear layers so. The rest is onnxsim's work.
    """

    name: ClassVar[str] = "fold-constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        folded = [_fold(node) for node in list(model.graph) if is_op(node, *_RULES)]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    array = constant(source)
    if array is None or source is None or output.is_graph_output():
        return False
    result = _RULES[node.op_type](node, array)
    if result is None:
        return False
    dtype = source.dtype
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes.get_int("to", 0))
    name, graph = output.name, graph_of(node)
    value = ir.Value(
        name=name,
        shape=ir.Shape(result.shape),
        type=ir.TensorType(dtype) if dtype is not None else None,
        const_value=ir.Tensor(np.asarray(result, order="C"), dtype=dtype, name=name),
    )
    output.replace_all_uses_with(value)
    remove(node)
    output.name = None
    graph.register_initializer(value)
    return True


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


_RULES: dict[str, Callable[[ir.Node, _Array], _Array | None]] = {
    "Identity": lambda _, array: array,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
}

"""The few graph edits that all passes are made of.

A value name that survives keeps its meaning: it holds what it held in the user's model. So when a
fold makes a producer compute a later value, the producer's output takes that value's name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}

F64 = npt.NDArray[np.float64]


def is_op(node: ir.Node | None, *types: str) -> bool:
    """Whether the node is one of these operators of the default domain."""
    return node is not None and node.domain == "" and node.op_type in types


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The numbers of a constant; None if the value is no initializer or may be fed by the user."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    if not value.is_initializer() or value.const_value.dtype == ir.DataType.STRING:
        return None
    return value.const_value.numpy()


def floats(value: ir.Value | None) -> F64 | None:
    """The numbers of a floating-point constant in double precision, or None."""
    array = constant(value)
    if array is None or value is None or value.const_value is None:
        return None
    if value.const_value.dtype not in FLOATS:
        return None
    return array.astype(np.float64)


def ints(value: ir.Value | None) -> list[int] | None:
    """The numbers of an integer constant, flattened, or None."""
    array = constant(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(n) for n in array.reshape(-1)]


def scalar(value: ir.Value | None) -> float | None:
    """The number of a floating-point constant that has just one, or None."""
    array = floats(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dimension is a known number."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def static_dims(value: ir.Value | None, start: int) -> tuple[int, ...] | None:
    """The dimensions from `start` on when each is a known number."""
    if value is None or value.shape is None:
        return None
    dims = tuple(dim for dim in value.shape[start:] if isinstance(dim, int))
    return dims if dims and len(dims) == len(value.shape) - start else None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, or None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def same_shape(a: ir.Value, b: ir.Value, but: int = 0) -> bool:
    """Whether two values surely have the same shape: equal numbers and equal named dimensions.

    Args:
        a: One value.
        b: The other.
        but: So many dimensions may be unknown, though not two different numbers.
    """
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    pairs = [pair for pair in zip(a.shape, b.shape, strict=True) if not _same_dim(*pair)]
    return len(pairs) <= but and all(not _are_numbers(*pair) for pair in pairs)


def _are_numbers(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    return isinstance(a, int) and isinstance(b, int)


def _same_dim(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    return a.value is not None and a.value == b.value


def input_at(node: ir.Node, position: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def feeds_only(value: ir.Value, node: ir.Node) -> bool:
    """Whether `node` is the one reader of `value`, which is no graph output and read once."""
    uses = value.uses()
    return not value.is_graph_output() and len(uses) == 1 and next(iter(uses)).node is node


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that holds the node."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def unique_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or with a number when a value of the graph has that name already."""
    taken = _names(graph)
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _names(graph: ir.Graph) -> set[str | None]:
    names = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        names.update(value.name for value in node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and attribute.value is not None:
                names |= _names(attribute.as_graph())
    return names


def new_constant(
    graph: ir.Graph, name: str, array: npt.NDArray[Any], like: ir.Value | None = None
) -> ir.Value:
    """Add an initializer.

    Args:
        graph: Where to.
        name: Wanted name; a number is appended when it is taken.
        array: The numbers.
        like: Store them in the type of this value; in the array's own type when None.
    """
    value = ir.Value(name=unique_name(graph, name))
    set_constant(value, array, like.dtype if like is not None else None)
    graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, array: npt.NDArray[Any], dtype: ir.DataType | None) -> None:
    """Give an initializer new numbers, stored as `dtype` or in the array's own type."""
    numbers = np.array(array if dtype is None else array.astype(dtype.numpy()), order="C")
    value.const_value = ir.Tensor(numbers, dtype=dtype, name=value.name)
    value.shape, value.type = ir.Shape(numbers.shape), ir.TensorType(value.const_value.dtype)


def new_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Mapping[str, int | float | Sequence[int]] | None = None,
) -> ir.Node:
    """Insert a node before another one; its output is typed like the first input."""
    graph = graph_of(before)
    node = ir.node(op_type, inputs, attributes=attributes or {}, name=name)
    node.outputs[0].name = unique_name(graph, f"{name}_out")
    first = inputs[0]
    node.outputs[0].type = first.type if first is not None else None
    graph.insert_before(before, node)
    return node


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Let `new` be what `old` was: all readers, the graph output, the name, type and shape.

    `new` must be a node's output that nothing else but `old`'s producer reads.
    """
    new.type, new.shape = old.type, old.shape
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name


def remove(node: ir.Node) -> None:
    """Take a node without readers out of its graph."""
    graph_of(node).remove(node, safe=True)


def bypass(node: ir.Node, source: ir.Value) -> bool:
    """Remove a node whose output 0 equals `source`; False when names of graph outputs forbid it.

    A graph output keeps its name, so its producer must be a node whose output is not already one.
    """
    old = node.outputs[0]
    if not old.is_graph_output():
        old.replace_all_uses_with(source)
        remove(node)
        return True
    producer = source.producer()
    if producer is None or source.is_graph_output() or producer.graph is not node.graph:
        return False
    old_shape, old_type = old.shape, old.type
    take_over(source, old)
    source.shape, source.type = old_shape, old_type
    remove(node)
    return True

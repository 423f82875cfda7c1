"""Float functions between DequantizeLinear and QuantizeLinear as tables of 256 codes.

Such a chain maps one byte to one byte. The table is made by onnxruntime's own float kernels, on
every code at many places of a vector: kernels treat the ends of a vector differently, and where
that shows in the codes there is no table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import ort
from onnxptq.ops.fused import NotInteger
from onnxptq.ops.nodes import constant, input_at, is_constant
from onnxptq.runtime.submodel import make_submodel, tensor_type

_NAMES = """
Abs Acos Acosh Add Asin Asinh Atan Atanh BiasGelu Ceil Celu Clip Cos Cosh Div Elu Erf Exp
FastGelu Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max Min Mish Mul Neg PRelu Pow
QuickGelu Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Swish Tan
Tanh ThresholdedRelu
"""
ELEMENTWISE = frozenset(_NAMES.split())
"""Operators that compute each element by itself."""

LENGTHS = (1, 3, 256, 263, 517, 1024, 1039)
"""Vectors with every remainder that matters to 4, 8 and 16 lanes, and a single element."""
UNSEEN = -1000  # no code


@dataclass(frozen=True, slots=True)
class Chain:
    """Float nodes that turn the codes of one tensor into codes of another, element by element.

    Attributes:
        source: The codes that the chain begins with.
        nodes: All nodes from the DequantizeLinear to the QuantizeLinear, in order.
        rank: Of the constant with most axes: a source of lower rank would get that of the constant.
    """

    source: ir.Value
    nodes: Sequence[ir.Node]
    rank: int


def find_chain(quantize: ir.Node) -> Chain | None:
    """The chain that ends in a QuantizeLinear; None if more than one tensor's codes matter."""
    if not _is_per_tensor(quantize):
        return None
    nodes: dict[int, ir.Node] = {id(quantize): quantize}
    sources: dict[int, ir.Value] = {}
    pending = [quantize.inputs[0]]
    while pending:
        value = pending.pop()
        if value is None or _is_scalar(value):
            continue
        node = value.producer()
        if node is None or value.is_graph_input():
            return None
        if node.op_type == "DequantizeLinear":
            source = node.inputs[0]
            if source is None or is_constant(source) or not _is_per_tensor(node):
                return None
            sources[id(source)] = source
        elif node.op_type in ELEMENTWISE and len(node.outputs) == 1:
            if id(node) not in nodes:
                pending.extend(node.inputs)
        else:
            return None
        nodes[id(node)] = node
    if len(sources) != 1:
        return None
    graph = quantize.graph
    assert graph is not None
    ordered = [node for node in graph if id(node) in nodes]
    return Chain(next(iter(sources.values())), ordered, _rank(ordered))


def _is_per_tensor(node: ir.Node) -> bool:
    """Whether Q or DQ has constant parameters, one for the whole tensor."""
    scale, zero = constant(input_at(node, 1)), input_at(node, 2)
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return False
    if zero is None:
        return True
    zeros = constant(zero)
    return zeros is not None and zeros.size == 1 and str(zeros.dtype) in ("uint8", "int8")


def _is_scalar(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


def _rank(nodes: Sequence[ir.Node]) -> int:
    """Of the constant with most axes that elementwise nodes read."""
    values = [value for node in nodes if node.op_type in ELEMENTWISE for value in node.inputs]
    return max((array.ndim for v in values if (array := constant(v)) is not None), default=0)


def tabulate(
    model: ir.Model, nodes: Sequence[ir.Node], source: ir.Value, dtype: str
) -> npt.NDArray[np.integer]:
    """What the nodes make of each code, [256] in the order of the codes.

    Args:
        model: The graph that onnxruntime runs.
        nodes: Nodes with one input that is no constant; the last one gives codes.
        source: That input.
        dtype: Its type.

    Raises:
        NotInteger: A code's result depends on where in a vector it stands.
    """
    output = str(nodes[-1].outputs[0].name)
    name = str(source.name)
    part = make_submodel(model, nodes, {name: tensor_type(dtype)}, [output])
    session = ort.session(part, threads=1, optimize=False)
    lowest = int(np.iinfo(dtype).min)
    table = np.full(256, UNSEEN, np.int64)
    kind = np.dtype(dtype)
    for length in LENGTHS:
        for start in range(0, 256, min(length, 256)):
            places = (np.arange(length) + start) % 256
            found = session.run({name: (places + lowest).astype(dtype)})[output]
            known = table[places] != UNSEEN
            unequal = bool((table[places][known] != found[known]).any())
            table[places] = found
            if unequal or (table[places] != found).any():
                raise NotInteger("its result depends on where in a vector an element stands")
            kind = found.dtype
    return table.astype(kind)

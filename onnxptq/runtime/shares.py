"""How much of a network its float islands are: multiplications and elements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxptq import ort
from onnxptq.graph import io
from onnxptq.ops.nodes import constant, input_at
from onnxptq.program import Instr, IntegerProgram, Island

Array = npt.NDArray[Any]
Arrays = Mapping[int, Array]

CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


@dataclass(frozen=True, slots=True)
class IslandShare:
    """One island, and its share of the whole network.

    Attributes:
        nodes: Names of its nodes.
        op_types: Their operators.
        why: Why they are not integer.
        share_of_macs: Of all multiply-accumulates.
        share_of_elements: Of all elements that are computed.
    """

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    why: str
    share_of_macs: float
    share_of_elements: float


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates, and elements made."""

    macs: int = 0
    elements: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.elements + other.elements)


def island_shares(program: IntegerProgram, arrays: Arrays) -> tuple[IslandShare, ...]:
    """Each island with its share.

    Args:
        program: The program.
        arrays: Every value of one run, by number.
    """
    found = works(program, arrays)
    total = sum(found, Work())
    return tuple(
        _share(program.islands[instr.int("island")], work, total)
        for instr, work in zip(program.instrs, found, strict=True)
        if instr.op == "island"
    )


def works(program: IntegerProgram, arrays: Arrays) -> tuple[Work, ...]:
    """Work of each instruction.

    Args:
        program: The program.
        arrays: Every value of one run, by number.
    """
    return tuple(
        _island_work(program, instr, arrays) if instr.op == "island" else _work(instr, arrays)
        for instr in program.instrs
    )


def _share(island: Island, work: Work, total: Work) -> IslandShare:
    return IslandShare(
        island.nodes,
        island.op_types,
        island.why,
        work.macs / max(total.macs, 1),
        work.elements / max(total.elements, 1),
    )


def _work(instr: Instr, arrays: Arrays) -> Work:
    """Of an integer instruction."""
    if instr.op == "host":
        return Work()
    made = [arrays[number].size for number in instr.outputs]
    depth = 0
    if instr.op == "conv":
        depth = int(np.prod(instr.arrays["weight"].shape[1:]))
    elif instr.op in ("matmul", "matmul_computed"):
        depth = arrays[instr.inputs[0]].shape[-1]
    return Work(depth * made[0], sum(made))


def _island_work(program: IntegerProgram, instr: Instr, arrays: Arrays) -> Work:
    """Of an island, from the shapes of everything inside of it."""
    part = onnx.ModelProto.FromString(program.islands[instr.int("island")].model.tobytes())
    model = io.from_proto(part, "an island")
    names = [str(value.name) for node in model.graph for value in node.outputs if value.name]
    feeds = {program.values[number].name: arrays[number] for number in instr.inputs}
    tapped = ort.session(ort.with_outputs(model, names), threads=1, optimize=False)
    plain = [port.name for port in tapped.outputs if port.dtype is not None]
    found = {**feeds, **tapped.run(feeds, plain)}
    return sum((_node_work(node, found) for node in model.graph), Work())


def _node_work(node: ir.Node, arrays: Mapping[str, Array]) -> Work:
    made = [arrays[str(v.name)] for v in node.outputs if str(v.name) in arrays]
    elements = sum(array.size for array in made)
    if not made:
        return Work()
    operands = [_shape(node, position, arrays) for position in (0, 1)]
    terms = _terms_of_blocked(node)
    if terms is not None:
        return Work(terms * made[0].size // made[0].shape[1], elements)
    if node.op_type in CONVOLUTIONS:
        kernel = operands[1]
        outer = made[0].size if node.op_type != "ConvTranspose" else int(np.prod(operands[0]))
        return Work(int(np.prod(kernel[1:])) * outer, elements)
    if node.op_type in PRODUCTS:
        rows = int(np.prod(made[0].shape[:-1]))
        depth = int(np.prod(operands[0])) // max(rows, 1)
        return Work(depth * made[0].size, elements)
    return Work(0, elements)


def _terms_of_blocked(node: ir.Node) -> int | None:
    """Multiplications a pixel of a convolution in this CPU's layout.

    That layout fills channels up with weights of zero, differently on every CPU, in an order of its
    own: the weights that are not zero are those of the network.
    """
    weight = constant(input_at(node, 1)) if node.domain == ort.BLOCKED_DOMAIN else None
    if weight is None or node.op_type not in CONVOLUTIONS:
        return None
    return int(np.count_nonzero(weight))


def _shape(node: ir.Node, position: int, arrays: Mapping[str, Array]) -> Sequence[int]:
    value = input_at(node, position)
    if value is None:
        return ()
    array = constant(value)
    if array is not None:
        return array.shape
    return arrays[str(value.name)].shape if str(value.name) in arrays else ()

"""Instructions one by one: each is fed with codes of its own, in onnxruntime and here.

What an image becomes inside of a network reaches few of the codes that an instruction must be right
for, and a network's last layers have few pixels. So both graphs are cut at every tensor of codes:
what is read there is an input of its own, and gets all codes that can occur.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import ort
from onnxptq.program import Instr, IntegerProgram, Port, Value
from onnxptq.requant import Requant
from onnxptq.runtime.execute import Executor

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

LEAST_ROUNDS, USUAL_ROUNDS = 4, 16
"""Of a network so large that one round takes long, and of others."""
SUMS = 256
"""Results that each channel of a convolution or product is to be seen with."""
ELEMENTS = 2**25
"""Codes drawn in all; more rounds than the least are not worth the time beyond them."""
MOST_ROUNDS = 1024
FEW = 1 / 16
"""Share of codes that are not zero where sums are to stay small: there each weight shows."""
MANY = 4096
"""Elements among which every code stands in any random order."""
READ = " as read"
"""What the names of the new inputs end in."""


def compared_names(program: IntegerProgram) -> list[str]:
    """What integer instructions make, and all codes, in the order in which they are made."""
    made = [
        program.values[number]
        for instr in program.instrs
        for number in instr.outputs
        if program.values[number].is_codes or instr.op not in ("island", "host")
    ]
    return list(dict.fromkeys(value.name for value in made))


class Pieces:
    """Both sides, cut at every tensor of codes that an instruction makes."""

    def __init__(self, graph: ir.Model, program: IntegerProgram) -> None:
        """Cut both.

        Args:
            graph: What onnxruntime runs.
            program: What is compared with it.
        """
        present = {value.name for node in graph.graph for value in node.outputs}
        made = [number for instr in program.instrs for number in instr.outputs]
        self._cuts = [
            number
            for number in made
            if program.values[number].is_codes and program.values[number].name in present
        ]
        self._program = program
        self._names = [name for name in compared_names(program) if name in present]
        dtypes = {
            program.values[number].name: program.values[number].dtype for number in self._cuts
        }
        cut = ort.with_outputs(_cut_graph(graph, dtypes), self._names)
        self._session = ort.session(cut, threads=1, optimize=False)
        self._executor = Executor(_cut_program(program, self._cuts, self._names))
        self._readers = _readers(program)

    def compared(
        self, feeds: Arrays, arrays: Arrays, rng: np.random.Generator
    ) -> Iterator[tuple[Arrays, Arrays]]:
        """What onnxruntime and the executor make of codes that are drawn anew in each round.

        Args:
            feeds: The network's own inputs.
            arrays: Every value of one run, for their shapes.
            rng: Random numbers.
        """
        for turn in range(self._rounds(arrays)):
            given = {
                self._program.values[number].name + READ: self._codes(
                    number, arrays[self._program.values[number].name].shape, turn, rng
                )
                for number in self._cuts
            }
            used = {port.name for port in self._session.inputs}
            theirs = {name: array for name, array in given.items() if name in used}
            expected = self._session.run({**feeds, **theirs}, self._names)
            found = self._executor.run(self._names, {**feeds, **given})
            yield expected, dict(zip(self._names, found, strict=True))

    def _rounds(self, arrays: Arrays) -> int:
        """Until every table has seen every code, and every channel of a sum enough sums."""
        sizes = {number: arrays[self._program.values[number].name].size for number in self._cuts}
        needed, program = USUAL_ROUNDS, self._program
        for instr in program.instrs:
            for number in instr.inputs if instr.op in ("table", "concat") else ():
                turns = 4 if number in self._readers else 1
                needed = max(needed, turns * math.ceil(256 / max(sizes.get(number, 256), 1)))
            if isinstance(instr.requant, Requant) and instr.outputs[0] in sizes:
                pixels = sizes[instr.outputs[0]] // instr.requant.scale.size
                needed = max(needed, math.ceil(SUMS / max(pixels, 1)))
        affordable = max(ELEMENTS // max(sum(sizes.values()), 1), LEAST_ROUNDS)
        return min(needed, affordable, MOST_ROUNDS)

    def _codes(
        self, number: int, shape: tuple[int, ...], turn: int, rng: np.random.Generator
    ) -> Array:
        """All codes in random order, or by turns what its first reader's sums need."""
        value, size = self._program.values[number], math.prod(shape)
        if size > MANY:
            codes = rng.integers(value.lo, value.hi, size, value.dtype, endpoint=True)
        else:
            codes = value.lo + (rng.permutation(size) + turn * size) % (value.hi - value.lo + 1)
        codes = codes.reshape(shape).astype(value.dtype)
        reader = self._readers.get(number)
        if reader is None or turn % 4 == 0 or not size:
            return codes
        if turn % 4 < 3:
            return reader.aligned(codes, value, rng)
        return np.where(rng.random(shape, np.float32) < FEW, codes, codes.dtype.type(reader.zero))


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """What sums up a tensor of codes.

    Attributes:
        zero: The code of real 0, or the nearest one that can occur.
        axis: The axis that is summed along.
        signs: Of the weights less their zero points, [group, M / group, kernel..., K].
        dilations: Of the kernel.
    """

    zero: int
    axis: int
    signs: npt.NDArray[np.int8]
    dilations: tuple[int, ...] = ()

    def aligned(self, codes: Array, value: Value, rng: np.random.Generator) -> Array:
        """Codes that carry sums to their ends, and with more and more others to anywhere between.

        Random codes alone give sums near the middle, which a Relu or saturation may hide.
        """
        rows = np.moveaxis(codes, self.axis, -1)
        outer, groups = rows.shape[:-1], self.signs.shape[0]
        patches, taps = self._patches(outer, rng)
        drawn = (*(int(ids.max(initial=-1)) + 1 for ids in patches), groups)
        where = np.ix_(*patches, np.arange(groups))
        chosen = rng.integers(self.signs.shape[1], size=drawn)[where]
        signs = self.signs[np.arange(groups), chosen, *taps]
        signs = (signs * rng.choice(np.array([-1, 1], np.int8), drawn)[where][..., None]).reshape(
            rows.shape
        )
        ends = np.select([signs > 0, signs < 0], [value.hi, value.lo], self.zero)
        share = (rng.random(drawn, np.float32) ** 3)[where][..., :1]  # mostly near the ends
        kept = rng.random(rows.shape, np.float32) < share
        return np.moveaxis(np.where(kept, rows, ends.astype(codes.dtype)), -1, self.axis)

    def _patches(
        self, outer: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[list[Array], list[Array]]:
        """Which patch each place of an axis lies in, and which tap of the kernel it is there.

        Patches lie side by side as kernels do, begun anywhere. A product's rows are all patches.
        """
        kernel = self.signs.shape[2:-1]
        patches: list[Array] = [np.arange(side) for side in outer[: len(outer) - len(kernel)]]
        taps: list[Array] = []
        for axis, (taken, dilation) in enumerate(zip(kernel, self.dilations, strict=True)):
            side = outer[len(outer) - len(kernel) + axis]
            at = (np.arange(side) + int(rng.integers(taken * dilation))) // dilation
            patches.append(at // taken)
            shape = [1] * (len(outer) + 1)
            shape[len(outer) - len(kernel) + axis] = side
            taps.append((at % taken).reshape(shape))
        return patches, taps


def _readers(program: IntegerProgram) -> dict[int, _Reader]:
    """The first convolution or product with constant weights that reads each value."""
    found: dict[int, _Reader] = {}
    for instr in program.instrs:
        if instr.op not in ("conv", "matmul") or instr.inputs[0] in found:
            continue
        value = program.values[instr.inputs[0]]
        zero = min(max(instr.int("x_zero"), value.lo), value.hi)
        make = _convolution if instr.op == "conv" else _product
        found[instr.inputs[0]] = make(instr, zero)
    return found


def _product(instr: Instr, zero: int) -> _Reader:
    weight = instr.arrays["weight"].astype(np.int32) - instr.arrays["weight_zero"]
    rows = np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])
    return _Reader(zero, -1, np.sign(rows)[None].astype(np.int8))


def _convolution(instr: Instr, zero: int) -> _Reader:
    weight, groups = instr.arrays["weight"].astype(np.int32), instr.int("group")
    zeros = instr.arrays["weight_zero"].reshape(-1, *[1] * (weight.ndim - 1))
    signs = np.moveaxis(np.sign(weight - zeros), 1, -1).astype(np.int8)
    each = signs.reshape(groups, signs.shape[0] // groups, *signs.shape[1:])
    axis = -1 if instr.int("channels_last") else 1
    return _Reader(zero, axis, each, instr.ints("dilations"))


def _cut_graph(graph: ir.Model, dtypes: Mapping[str, str]) -> ir.Model:
    cut = graph.clone()
    values = {value.name: value for node in cut.graph for value in node.outputs}
    for name, dtype in dtypes.items():
        value = values[name]
        uses = tuple(value.uses())
        if uses:
            read = ir.Value(name=f"{name}{READ}", type=_type(dtype))
            cut.graph.inputs.append(read)
            for use in uses:
                use.node.replace_input_with(use.idx, read)
    return cut


def _type(dtype: str) -> ir.TensorType:
    return ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))


def _cut_program(program: IntegerProgram, cuts: list[int], names: list[str]) -> IntegerProgram:
    """The same instructions, all of which read inputs where they read codes."""
    values = list(program.values)
    read: dict[int, int] = {}
    for number in cuts:
        read[number] = len(values)
        values.append(values[number])  # its name too: islands know what they read by name
    inputs = [Port(values[number].name + READ, read[number], None) for number in cuts]
    numbers = {value.name: number for number, value in enumerate(program.values)}
    outputs = [Port(name, numbers[name], None) for name in names]
    instrs = (
        replace(instr, inputs=tuple(read.get(number, number) for number in instr.inputs))
        for instr in program.instrs
    )
    return replace(
        program,
        inputs=(*program.inputs, *inputs),
        outputs=tuple(outputs),
        values=tuple(values),
        instrs=tuple(instrs),
    )

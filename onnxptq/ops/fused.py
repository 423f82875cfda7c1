"""Fused: a node of the graph that onnxruntime runs, as the lowering of its operator sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import reach, requant
from onnxptq.errors import ProgramError
from onnxptq.ops.borders import Counting
from onnxptq.ops.nodes import constant, input_at
from onnxptq.program import ABSENT, Attribute, Value
from onnxptq.requant import Requant
from onnxptq.requant_pairs import PairRequant

Array = npt.NDArray[Any]
Parts = Mapping[str, Array | Attribute]


class NotInteger(Exception):  # noqa: N818 - a finding about a node, not an error
    """Why a node cannot be an integer instruction; onnxruntime then runs it as an island."""


class Builder(Protocol):
    """What lowerings write into."""

    def id_of(self, value: ir.Value) -> int:
        """The number of a value; constants become constants of the program."""
        ...

    def constant(self, array: Array) -> int:
        """The number of a new constant."""
        ...

    def value(self, number: int) -> Value:
        """What is known about a value."""
        ...

    def shape(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Its shape as far as onnxruntime knows it."""
        ...

    def window(self, value: ir.Value, lo: int, hi: int) -> tuple[ir.Value, int, int]:
        """Take in the Clip that alone reads `value`: its output, and the codes that are left."""
        ...

    def absorb(self, nodes: Sequence[ir.Node]) -> None:
        """Take in nodes, which then have no instruction of their own."""
        ...

    def table(self, node: ir.Node) -> npt.NDArray[np.integer]:
        """What onnxruntime's own kernel makes of each of the 256 codes of the node's input.

        Raises:
            NotInteger: Its result depends on more than the code.
        """
        ...

    def computes(self, formula: str) -> bool:
        """Whether the installed onnxruntime computes by this formula of `runtime.probe`."""
        ...

    def emit(self, instruction: "Emitted") -> None:
        """Add an instruction."""
        ...


@dataclass(frozen=True, slots=True)
class Emitted:
    """An instruction and what it makes; see `program` for what each `op` takes."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[ir.Value, ...]
    made: tuple[Value, ...]
    arrays: Mapping[str, Array]
    attrs: Mapping[str, Attribute]
    requant: Requant | PairRequant | None


@dataclass(frozen=True, slots=True)
class Output:
    """The 8-bit format of a fused node's output: scale, zero point, type, and its codes' ends."""

    scale: np.float32
    zero: int
    dtype: str

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest code of the type."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)


class Fused:
    """Reads a node and writes instructions. Inputs are counted as the node has them."""

    def __init__(self, node: ir.Node, builder: Builder) -> None:
        self.node = node
        self.builder = builder

    def present(self, position: int) -> bool:
        """Whether there is an input at `position`."""
        return input_at(self.node, position) is not None

    def id(self, position: int) -> int:
        """The number of the value at `position`, -1 where it is absent."""
        value = input_at(self.node, position)
        return ABSENT if value is None else self.builder.id_of(value)

    def value(self, position: int) -> Value:
        """What is known about the value at `position`, which must be there."""
        number = self.id(position)
        if number == ABSENT:
            raise NotInteger(f"its input {position} is missing")
        return self.builder.value(number)

    def codes(self, position: int) -> Value:
        """The same, for an input that must hold 8-bit codes."""
        value = self.value(position)
        if not value.is_codes:
            raise NotInteger(f"its input {value.name!r} holds {value.dtype}, not 8-bit codes")
        return value

    def constant(self, position: int) -> Array | None:
        """The constant at `position`, None where it is computed or absent."""
        return constant(input_at(self.node, position))

    def shape(self, position: int) -> tuple[int | None, ...] | None:
        """Shape of the input at `position` as far as onnxruntime knows it."""
        value = input_at(self.node, position)
        return None if value is None else self.builder.shape(value)

    def array(self, position: int) -> Array:
        """The constant at `position`."""
        found = self.constant(position)
        if found is None:
            raise NotInteger(f"its input {position} is computed at run time")
        return found

    def number(self, position: int, default: int = 0) -> int:
        """The one integer at `position`, or `default` where it is absent."""
        if not self.present(position):
            return default
        array = self.array(position)
        if array.size != 1:
            raise NotInteger(f"its input {position} holds {array.size} numbers, not one")
        return int(array.reshape(-1)[0])

    def scale(self, position: int) -> np.float32:
        """The one scale at `position`."""
        scales = self.scales(position)
        if scales.size != 1:
            raise NotInteger(f"its input {position} holds {scales.size} scales, not one")
        return np.float32(scales[0])

    def scales(self, position: int) -> npt.NDArray[np.float32]:
        """The scales at `position`, [C] or [1]."""
        array = self.array(position)
        if array.dtype != np.float32:
            raise NotInteger(f"its scales are {array.dtype}, not float32")
        flat = array.reshape(-1)
        if not (np.isfinite(flat).all() and (flat > 0).all()):
            raise NotInteger("a scale is not a positive number")
        return flat

    def zeros(self, position: int) -> npt.NDArray[np.int64]:
        """The zero points at `position`, [C] or [1]; 0 where they are absent."""
        if not self.present(position):
            return np.zeros(1, np.int64)
        return self.array(position).astype(np.int64).reshape(-1)

    def output_format(self, scale: int, zero: int, default: str = "uint8") -> Output:
        """The output's format, from the inputs at these positions."""
        dtype = str(self.array(zero).dtype) if self.present(zero) else default
        if dtype not in ("uint8", "int8"):
            raise NotInteger(f"its output holds {dtype}, not 8-bit codes")
        return Output(self.scale(scale), self.number(zero), dtype)

    def emit(
        self,
        op: str,
        inputs: tuple[int, ...],
        made: tuple[str, int, int] | None = None,
        *,
        parts: Parts | None = None,
        requantize: Requant | PairRequant | None = None,
        output: ir.Value | None = None,
    ) -> None:
        """Add an instruction with the node's outputs, or the one given.

        Args:
            op: What is computed.
            inputs: Numbers of values.
            made: Type and range of what it makes; those of its first input where None.
            parts: Arrays and attributes by name.
            requantize: How accumulators become codes.
            output: What it makes, where that is not what the node makes.
        """
        if made is None:
            first = self.builder.value(inputs[0])
            made = (first.dtype, first.lo, first.hi)
        outputs = tuple(self.node.outputs) if output is None else (output,)
        values = tuple(Value(str(value.name), *made) for value in outputs)
        arrays, attrs = dict[str, Array](), dict[str, Attribute]()
        for name, part in (parts or {}).items():
            if isinstance(part, np.ndarray):
                arrays[name] = part
            else:
                attrs[name] = part
        self.builder.emit(Emitted(op, inputs, outputs, values, arrays, attrs, requantize))

    def emit_accumulating(
        self,
        op: str,
        inputs: tuple[int, ...],
        sums: reach.Reach,
        result: "Result",
        *,
        parts: Parts,
    ) -> None:
        """Add an instruction that sums products, and requantizes them if codes come out.

        Raises:
            ProgramError: A sum may leave int32.
        """
        if not sums.fits:
            raise ProgramError(
                f"node {self.node.name!r}: accumulator may reach {sums.worst:.3g} > 2^31-1 "
                f"({result.terms}). Use weights of fewer bits here"
            )
        if result.output is None:
            made = ("int32", int(sums.lo.min(initial=0)), int(sums.hi.max(initial=0)))
            self.emit(op, inputs, made, parts=parts, output=result.target)
            return
        if isinstance(result.output, Counting):
            self._emit_counting(op, inputs, sums, result.output, parts)
            return
        y = result.output
        source = self.node.outputs[0]
        target, lo, hi = self.builder.window(source, *y.ends)
        channels = sums.lo.size
        scale = np.broadcast_to((result.scale / y.scale).astype(np.float32), (channels,))
        found = requant.find(np.ascontiguousarray(scale), y.zero, lo, hi, sums.lo, sums.hi)
        self.emit(
            op,
            inputs,
            (y.dtype, lo, hi),
            parts=parts,
            requantize=found,
            output=target,
        )

    def _emit_counting(
        self,
        op: str,
        inputs: tuple[int, ...],
        sums: reach.Reach,
        found: Counting,
        parts: Parts,
    ) -> None:
        """A convolution, and a count of the thresholds that its accumulators reach.

        Over two axes both work on channels last, which convolutions have faster kernels for.
        """
        codes = found.nodes[-1].outputs[0]
        last = "strides" in parts and len(parts["strides"]) == len(LAST) - 2  # type: ignore[arg-type]
        acc, counted = ir.val(f"{codes.name}_accumulators"), codes
        if last:
            counted, x = ir.val(f"{codes.name}_last"), ir.val(f"{codes.name}_input")
            self.emit("transpose", inputs, parts={"perm": LAST}, output=x)
            inputs, parts = (self.builder.id_of(x),), {**parts, "channels_last": 1}
        ends = ("int32", int(sums.lo.min(initial=0)), int(sums.hi.max(initial=0)))
        self.emit(op, inputs, ends, parts=parts, output=acc)
        levels = found.table.shape[1]
        table = np.broadcast_to(found.table, (sums.lo.size, levels)).astype(np.int32)
        made = ("uint8", found.lowest, found.lowest + levels)
        how = {"table": table, "axis": len(LAST) - 1 if last else 1, "lo": found.lowest}
        self.emit("reached", (self.builder.id_of(acc),), made, parts=how, output=counted)
        if last:
            self.emit(
                "transpose", (self.builder.id_of(counted),), parts={"perm": FIRST}, output=codes
            )


LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of axes: channels moved from the second place to the last, and back."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What becomes of accumulators.

    Attributes:
        scale: Real value of one step of the accumulator, float32 as onnxruntime rounds it, [C] or
            [1].
        output: Format of the codes, or thresholds that give them; None where the accumulators
            themselves are the result.
        terms: What is summed, for the message about overflow.
        target: The value that gets the accumulators, where that is not the node's output.
    """

    scale: npt.NDArray[np.float32]
    output: Output | Counting | None
    terms: str
    target: ir.Value | None = None


Lower = Callable[[Fused], None]

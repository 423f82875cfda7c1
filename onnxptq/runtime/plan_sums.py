"""Residual sums that a convolution computes itself, right after its requantization."""

from collections import Counter

from onnxptq.kernels.epilogue import sum_params_of
from onnxptq.program import Instr, IntegerProgram
from onnxptq.requant_pairs import PairForm, PairRequant
from onnxptq.runtime.draft import I64, Cell, Draft, Shape


def sums_of_convolutions(program: IntegerProgram) -> dict[int, Instr]:
    """The one reader of a convolution's output, where it is a sum in fixed point, by that output.

    What is an output of the program stays a value of its own.
    """
    readers = Counter(value for instr in program.instrs for value in instr.inputs)
    readers.update(port.value for port in program.outputs)
    made = {instr.outputs[0] for instr in program.instrs if instr.op == "conv" and instr.requant}
    return {
        value: instr
        for instr in program.instrs
        if instr.op == "add" and instr.inputs[0] != instr.inputs[1] and _is_fixed_point(instr)
        for value in instr.inputs
        if value in made and readers[value] == 1
    }


def _is_fixed_point(instr: Instr) -> bool:
    requant = instr.requant
    return isinstance(requant, PairRequant) and requant.form == PairForm.FIXED_POINT


def addend_of(draft: Draft, add: Instr, value: int, shape: Shape) -> int | None:
    """The operand that a sum adds to `value`, if it lies in the arena already and has its shape."""
    other = add.inputs[1] if add.inputs[0] == value else add.inputs[0]
    return other if other in draft.views and draft.views[other].shape == shape else None


def sum_params(numbers: dict[str, Cell], *, is_first: bool) -> I64 | None:
    """The numbers of a sum as the epilogue reads them; None where it cannot add so.

    Args:
        numbers: Columns of the sum, for codes as they are stored.
        is_first: Whether the convolution's output is the first operand.
    """
    found = {name: cell for name, cell in numbers.items() if isinstance(cell, int)}
    first, second = found["multiplier_a"], found["multiplier_b"]
    multipliers = (first, second) if is_first else (second, first)
    limits = found["lo"], found["hi"]
    return sum_params_of(multipliers, found["rounding"], found["shift"], limits)

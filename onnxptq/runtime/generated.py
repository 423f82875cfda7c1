"""Inputs made up for a program: they reach both ends of every range of codes that reads them."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.program import Instr, IntegerProgram, Port
from onnxptq.runtime.ranges import PICKING

Feeds = dict[str, npt.NDArray[np.generic]]

BATCH, SIDE = 2, 64
"""What free dimensions become: the first one, and all others."""
BEYOND = 0.05  # of the range, on either side, so that clamping is seen too


def generated_feeds(
    program: IntegerProgram, count: int, rng: np.random.Generator
) -> Iterator[Feeds]:
    """Random inputs, uniform over the range of the codes they become and a little beyond.

    Args:
        program: What is fed.
        count: How many sets of inputs.
        rng: Random numbers.

    Raises:
        ProgramError: The rank of an input is not known.
    """
    for _ in range(count):
        yield {port.name: _array(program, port, rng) for port in program.inputs}


def _array(
    program: IntegerProgram, port: Port, rng: np.random.Generator
) -> npt.NDArray[np.generic]:
    if port.shape is None:
        raise ProgramError(f"input {port.name!r} has no known rank; give --data to verify with")
    shape = [
        side if isinstance(side, int) and side > 0 else (SIDE if axis else BATCH)
        for axis, side in enumerate(port.shape)
    ]
    dtype = np.dtype(program.values[port.value].dtype)
    if dtype.kind in "iub":
        ends = np.iinfo(dtype) if dtype.kind != "b" and dtype.itemsize == 1 else None
        lo, hi = (0, 1) if ends is None else (int(ends.min), int(ends.max))
        made = rng.integers(lo, hi, shape, endpoint=True).astype(dtype)
        return _with_ends(made, np.array([lo, hi]).astype(dtype), rng)
    lo, hi = _real_range(program, port.value)
    beyond = BEYOND * (hi - lo)
    made = rng.uniform(lo - beyond, hi + beyond, shape).astype(dtype)
    return _with_ends(made, np.array([lo - beyond, hi + beyond]).astype(dtype), rng)


def _with_ends(
    array: npt.NDArray[np.generic], ends: npt.NDArray[np.generic], rng: np.random.Generator
) -> npt.NDArray[np.generic]:
    """The array with its two ends put in somewhere, where it has room for them."""
    if array.size >= ends.size:
        places = rng.choice(array.size, ends.size, replace=False)
        array.reshape(-1)[places] = ends
    return array


def _real_range(program: IntegerProgram, value: int) -> tuple[float, float]:
    """Real numbers that the codes of an input stand for; a normal range if it is not quantized."""
    moved = {value}
    for instr in program.instrs:
        if instr.op == "quantize" and instr.inputs[0] in moved:
            return _ends_of(instr)
        if instr.op in PICKING and instr.inputs[0] in moved:
            moved.update(instr.outputs)
    return -3.0, 3.0


def _ends_of(instr: Instr) -> tuple[float, float]:
    scale, zero = instr.arrays["scale"], instr.arrays["zero_point"]
    lo = (instr.int("lo") - zero.astype(np.float64)) * scale
    hi = (instr.int("hi") - zero.astype(np.float64)) * scale
    return float(lo.min()), float(hi.max())

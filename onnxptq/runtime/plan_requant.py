"""What becomes of accumulators: columns of requantizations and biases."""

import numpy as np

from onnxptq import requant
from onnxptq.errors import ProgramError
from onnxptq.program import Instr
from onnxptq.requant import GROUP, Requant
from onnxptq.runtime.draft import Array, Cell, Draft


def requant_columns(draft: Draft, instr: Instr, channels: int, found: Requant) -> dict[str, Cell]:
    """Columns of a requantization, for codes as they are stored.

    Args:
        draft: Where constants go.
        instr: Whose output the codes are.
        channels: How many; numbers that are the same for all are repeated.
        found: The requantization.
    """
    sign, steps = draft.sign(instr.outputs[0]), found.thresholds.shape[1]
    groups = -(-channels // GROUP)
    mantissa, exponent = requant.split_scale(found.scale)
    arrays = {
        "form": each(found.form, groups).astype(np.uint8),
        **fixed_point_numbers(found, channels, sign),
        "mantissa": each(mantissa, channels).astype(np.int32),
        "exponent": each(exponent, channels),
    }
    columns: dict[str, Cell] = {name: draft.constants.add(a) for name, a in arrays.items()}
    thresholds = -1
    if steps:
        thresholds = draft.constants.add(each(found.thresholds, channels).astype(np.int32))
    return columns | {
        "thresholds": thresholds,
        "steps": steps,
        "lo": found.lo + sign,
        "hi": found.hi + sign,
        "zero": found.zero_point + sign,
    }


def fixed_point_numbers(found: Requant, channels: int, sign: int) -> dict[str, Array]:
    """multiplier, rounding and shift of each channel, for codes that are stored `sign` higher."""
    shift = each(found.shift, channels).astype(np.int64)
    rounding = each(found.rounding, channels) + (np.int64(sign) << shift)
    return {
        "multiplier": each(found.multiplier, channels).astype(np.int32),
        "rounding": rounding.astype(np.int64),
        "shift": shift,
    }


def each(array: Array, count: int) -> Array:
    """An array of `count` entries, of as many or of one that stands for all."""
    if len(array) not in (1, count):
        raise ProgramError(f"numbers of {len(array)} channels for {count}")
    return np.ascontiguousarray(np.broadcast_to(array, (count, *array.shape[1:])))


def ending(draft: Draft, instr: Instr, channels: int) -> dict[str, Cell]:
    """Columns of what happens to accumulators: they become codes, or stay."""
    if instr.requant is None:
        return {"real_acc": 1}
    assert isinstance(instr.requant, Requant)
    return {"real_acc": 0, **requant_columns(draft, instr, channels, instr.requant)}


def bias_place(draft: Draft, instr: Instr, channels: int) -> int:
    """Where the bias of an instruction is in the constants, i32 [channels]; -1 for none."""
    bias = instr.arrays.get("bias")
    if bias is None:
        return -1
    return draft.constants.add(each(bias.reshape(-1).astype(np.int32), channels))

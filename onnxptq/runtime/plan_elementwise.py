"""Rows of instructions that look at one element, or at two of the same place."""

import math

import numpy as np

from onnxptq.errors import ProgramError
from onnxptq.program import Instr
from onnxptq.requant_pairs import PairForm, PairRequant
from onnxptq.runtime.draft import Array, Cell, Draft, Shape, View, numbered, stored
from onnxptq.runtime.plan_movement import nests

OPS = {"add": 0, "mul": 1, "minimum": 2, "maximum": 3}


def channel_columns(shape: Shape, axis: int, channels: int) -> dict[str, Cell]:
    """The columns that say which elements a number of each channel is for.

    Raises:
        ProgramError: The axis does not have so many channels.
    """
    if channels == 1:
        return {"outer": 1, "channels": 1, "inner": math.prod(shape)}
    axis += len(shape) if axis < 0 else 0
    if not 0 <= axis < len(shape) or shape[axis] != channels:
        raise ProgramError(f"{channels} scales for axis {axis} of shape {shape}")
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return {"outer": outer, "channels": channels, "inner": inner}


def _scales(draft: Draft, instr: Instr, codes: int) -> dict[str, Cell]:
    """Columns of scale and zero point; `codes` is the value that has the codes."""
    scale = instr.arrays["scale"].reshape(-1)
    zero = np.broadcast_to(instr.arrays["zero_point"].reshape(-1), scale.shape).astype(np.int32)
    return {
        "scale": draft.constants.add(scale.astype(np.float32)),
        "zero": draft.constants.add(zero + np.int32(draft.sign(codes))),
    }


def _expect(draft: Draft, value: int, *dtypes: str) -> None:
    found = draft.program.values[value].dtype
    if found not in dtypes:
        raise ProgramError(
            f"value {draft.name(value)!r} is {found}, expected {' or '.join(dtypes)}"
        )


def quantize(draft: Draft, instr: Instr) -> None:
    """Real numbers to codes."""
    value = instr.outputs[0]
    _expect(draft, instr.inputs[0], "float32")
    source = draft.read(instr.inputs[0])
    target = draft.make(value, source.shape)
    channels = instr.arrays["scale"].size
    columns = {
        "x": source,
        "y": target,
        **channel_columns(source.shape, instr.int("axis"), channels),
        **_scales(draft, instr, value),
        "lo": instr.int("lo") + draft.sign(value),
        "hi": instr.int("hi") + draft.sign(value),
    }
    if source.size:
        draft.row("quantize", columns, 8 * source.size)


def dequantize(draft: Draft, instr: Instr) -> None:
    """Codes to real numbers."""
    value = instr.inputs[0]
    _expect(draft, value, "uint8", "int8")
    source = draft.read(value)
    target = draft.make(instr.outputs[0], source.shape)
    channels = instr.arrays["scale"].size
    columns = {
        "x": source,
        "y": target,
        **channel_columns(source.shape, instr.int("axis"), channels),
        **_scales(draft, instr, value),
    }
    if source.size:
        draft.row("dequantize", columns, 4 * source.size)


def acc_to_real(draft: Draft, instr: Instr) -> None:
    """Accumulators to real numbers."""
    _expect(draft, instr.inputs[0], "int32")
    source = draft.read(instr.inputs[0])
    target = draft.make(instr.outputs[0], source.shape)
    scale = instr.arrays["scale"].reshape(-1).astype(np.float32)
    bias, number = instr.arrays.get("bias"), -1
    channels = max(scale.size, 1 if bias is None else bias.size)
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1).astype(np.float32), channels)
        number = draft.constants.add(bias)
    columns = {
        "x": source,
        "y": target,
        **channel_columns(source.shape, instr.int("axis"), channels),
        "scale": draft.constants.add(np.broadcast_to(scale, channels)),
        "bias": number,
    }
    if source.size:
        draft.row("acc_to_real", columns, 4 * source.size)


def reached(draft: Draft, instr: Instr) -> None:
    """Accumulators to codes: how many thresholds each has reached."""
    _expect(draft, instr.inputs[0], "int32")
    source, value = draft.read(instr.inputs[0]), instr.outputs[0]
    target = draft.make(value, source.shape)
    table = instr.arrays["table"]
    groups = channel_columns(source.shape, instr.int("axis"), len(table))
    outer = groups["outer"]
    assert isinstance(outer, int)
    if groups["inner"] == 1:
        # Pixels side by side, so that the kernel's loops are long enough for vectors.
        side = math.gcd(outer, _power_of_two(LONG_RUN // len(table)))
        table = np.tile(table, (side, 1))
        groups |= {"outer": outer // side, "channels": len(table)}
    columns = {
        "x": source,
        "y": target,
        **groups,
        "table": draft.constants.add(np.ascontiguousarray(table.T, np.int32)),
        "steps": table.shape[1],
        "lo": instr.int("lo") + draft.sign(value),
    }
    if source.size:
        draft.row("reached", columns, table.shape[1] * source.size)


LONG_RUN = 1024
"""Numbers that `reached` works on at a time: 0.34 ns each, where 16 take 2.5 (an AMD EPYC)."""


def _power_of_two(most: int) -> int:
    return 1 << max(most.bit_length() - 1, 0)


def table(draft: Draft, instr: Instr) -> None:
    """Each code is replaced by that of a table."""
    source = draft.read(instr.inputs[0])
    target = draft.make(instr.outputs[0], source.shape)
    number = draft.constants.add(stored(instr.arrays["table"]))
    columns = {"x": source, "y": target, "count": source.size, "table": number}
    if source.size:
        draft.row("table", columns, source.size)


def clip(draft: Draft, instr: Instr) -> None:
    """Codes below lo become lo, those above hi become hi."""
    source, sign = draft.read(instr.inputs[0]), draft.sign(instr.outputs[0])
    target = draft.make(instr.outputs[0], source.shape)
    limits = {"lo": instr.int("lo") + sign, "hi": instr.int("hi") + sign}
    if source.size:
        columns = {"x": source, "y": target, "count": source.size, **limits}
        draft.row("clip", columns, source.size)


def pair(draft: Draft, instr: Instr) -> None:
    """Two codes become one; the smaller operand is repeated as in numpy."""
    a, b = draft.read(instr.inputs[0]), draft.read(instr.inputs[1])
    shape = np.broadcast_shapes(a.shape, b.shape)
    y = draft.make(instr.outputs[0], shape)
    numbers = pair_numbers(draft, instr)
    steps = [_steps(a, shape), _steps(b, shape), _steps(y, shape)]
    for nest in nests(shape, steps):
        columns = {
            "a": a.at(nest.offsets[0], ()),
            "b": b.at(nest.offsets[1], ()),
            "y": y.at(nest.offsets[2], ()),
            "op": OPS[instr.op],
            **numbered("n", nest.sizes),
            **numbered("a", nest.strides[0]),
            **numbered("b", nest.strides[1]),
            **numbers,
        }
        draft.row("pair", columns, 4 * math.prod(nest.sizes))


def _steps(view: View, shape: Shape) -> Shape:
    """Strides in elements, 0 along axes that are repeated."""
    base = np.empty(view.shape, np.uint8)
    return np.broadcast_to(base, shape).strides


def pair_numbers(draft: Draft, instr: Instr) -> dict[str, Cell]:
    """Columns of a pair's requantization, for codes as they are stored."""
    if instr.op in ("minimum", "maximum"):
        return {"lo": 0, "hi": 255, "table": -1}
    requant = instr.requant
    assert isinstance(requant, PairRequant)
    sign = draft.sign(instr.outputs[0])
    signs = [draft.sign(value) for value in instr.inputs]
    columns: dict[str, Cell] = {
        "form": int(requant.form),
        "a_zero": requant.formula.a.zero_point + signs[0],
        "b_zero": requant.formula.b.zero_point + signs[1],
        "lo": requant.lo + sign,
        "hi": requant.hi + sign,
        "table": -1,
    }
    if requant.form == PairForm.TABLE:
        return columns | {"table": draft.constants.add(_table(requant.table))}
    rounding = requant.rounding + (sign << requant.shift)
    if instr.op == "add":
        # (a + s) * M - s * M = a * M: what codes are stored with goes into the constant.
        rounding -= sum(s * m for s, m in zip(signs, requant.multipliers, strict=True))
    return columns | {
        "multiplier_a": requant.multipliers[0],
        "multiplier_b": requant.multipliers[1],
        "rounding": rounding,
        "shift": requant.shift,
    }


def _table(codes: Array) -> Array:
    return stored(np.ascontiguousarray(codes))

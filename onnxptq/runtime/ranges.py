"""Which codes an instruction can make, given those of its inputs."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxptq.program import Instr, IntegerProgram, Value

_NAMES = """
transpose flatten reshape squeeze unsqueeze expand tile slice gather split depth_to_space resize
identity max_pool reduce_max reduce_min
"""
PICKING = frozenset(_NAMES.split())
"""Instructions whose results are some of their input's codes."""

Range = tuple[int, int]


def sound(program: IntegerProgram, instr: Instr) -> bool:
    """Whether what an instruction makes lies in the range that the program says.

    Proofs of later instructions rest on these ranges.
    """
    for number in instr.outputs:
        made = program.values[number]
        if not made.is_codes:
            continue
        lo, hi = code_range(program, instr, made)
        if lo < made.lo or hi > made.hi:
            return False
    return True


def unsound_sources(program: IntegerProgram) -> tuple[str, ...]:
    """Inputs that may hold codes outside of the range that the program says, and such constants.

    Nothing is known of what the program is fed with, so an input has all codes of its type.
    """
    found: list[str] = []
    for port in program.inputs:
        value = program.values[port.value]
        ends = np.iinfo(value.dtype) if value.is_codes else None
        if ends is not None and (value.lo > ends.min or value.hi < ends.max):
            found.append(value.name)
    for number, array in program.constants.items():
        value = program.values[number]
        if value.is_codes and array.size and (array.min() < value.lo or array.max() > value.hi):
            found.append(value.name)
    return tuple(found)


def code_range(program: IntegerProgram, instr: Instr, made: Value) -> Range:
    """Lowest and highest code that an instruction can make."""
    if instr.requant is not None:
        return instr.requant.lo, instr.requant.hi
    values = [program.values[number] for number in instr.inputs if number >= 0]
    if instr.op in PICKING:
        return values[0].lo, values[0].hi
    rule = _RULES.get(instr.op)
    if rule is None:
        ends = np.iinfo(made.dtype)
        return int(ends.min), int(ends.max)
    return rule(instr, values)


def _pad(instr: Instr, values: Sequence[Value]) -> Range:
    value = instr.int("value")
    return min(values[0].lo, value), max(values[0].hi, value)


def _clip(instr: Instr, values: Sequence[Value]) -> Range:
    lo, hi = instr.int("lo"), instr.int("hi")
    return min(max(values[0].lo, lo), hi), min(max(values[0].hi, lo), hi)


def _minimum(instr: Instr, values: Sequence[Value]) -> Range:
    del instr
    return min(values[0].lo, values[1].lo), min(values[0].hi, values[1].hi)


def _maximum(instr: Instr, values: Sequence[Value]) -> Range:
    del instr
    return max(values[0].lo, values[1].lo), max(values[0].hi, values[1].hi)


def _table(instr: Instr, values: Sequence[Value]) -> Range:
    return _image(instr.arrays["table"], values[0])


def _reached(instr: Instr, values: Sequence[Value]) -> Range:
    del values
    return instr.int("lo"), instr.int("lo") + instr.arrays["table"].shape[1]


def _concat(instr: Instr, values: Sequence[Value]) -> Range:
    tables = instr.arrays.get("tables")
    ends = [(value.lo, value.hi) for value in values]
    if tables is not None:
        ends = [_image(table, value) for table, value in zip(tables, values, strict=True)]
    return min(lo for lo, _ in ends), max(hi for _, hi in ends)


_RULES: dict[str, Callable[[Instr, Sequence[Value]], Range]] = {
    "pad": _pad,
    "clip": _clip,
    "minimum": _minimum,
    "maximum": _maximum,
    "table": _table,
    "reached": _reached,
    "concat": _concat,
}


def _image(table: np.ndarray, value: Value) -> Range:
    """The codes that a table makes of those that occur."""
    lowest = int(np.iinfo(value.dtype).min)
    reached = table[value.lo - lowest : value.hi - lowest + 1]
    return int(reached.min()), int(reached.max())

"""Small changes of integer programs, each of which verify or the certificate must notice."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq import requant
from onnxptq.program import Instr, IntegerProgram
from onnxptq.reach import Reach
from onnxptq.requant import GROUP, MOST_THRESHOLDS, Form, Requant
from onnxptq.requant_pairs import PairForm, PairRequant
from onnxptq.runtime.certify import accumulators
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.generated import generated_feeds
from onnxptq.staircase import INT32_MAX, INT32_MIN, thresholds

Array = npt.NDArray[Any]
Change = Callable[[Instr, np.random.Generator], Instr | None]
"""A changed copy of an instruction; None where there is nothing of the kind to change."""


def mutants(
    program: IntegerProgram, change: Change, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, IntegerProgram]]:
    """`count` programs in which one instruction is changed, with a word on what it was.

    Instructions are gone through in turn, so that each is changed as often as any other.
    """
    places = [at for at, instr in enumerate(program.instrs) if change(instr, rng) is not None]
    for number in range(count if places else 0):
        at = places[number % len(places)]
        instr = program.instrs[at]
        changed = change(instr, rng)
        if changed is not None:
            instrs = (*program.instrs[:at], changed, *program.instrs[at + 1 :])
            yield f"{instr.op} {instr.node}", replace(program, instrs=instrs)


def _moved(array: Array, rng: np.random.Generator, *steps: int) -> Array | None:
    """A copy in which one number is another of its type."""
    if array.size == 0:
        return None
    ends = np.iinfo(array.dtype)
    changed = array.copy()
    place = int(rng.integers(array.size))
    old = int(changed.reshape(-1)[place])
    moved = [old + step for step in steps if ends.min <= old + step <= ends.max]
    changed.reshape(-1)[place] = moved[int(rng.integers(len(moved)))]
    return changed


def _array(name: str, *steps: int) -> Change:
    def change(instr: Instr, rng: np.random.Generator) -> Instr | None:
        if name not in instr.arrays:
            return None
        moved = _moved(instr.arrays[name], rng, *steps)
        return None if moved is None else replace(instr, arrays={**instr.arrays, name: moved})

    return change


def _weight(instr: Instr, rng: np.random.Generator) -> Instr | None:
    """One weight, by a third of the largest one or more."""
    if "weight" not in instr.arrays:
        return None
    weight = instr.arrays["weight"].astype(np.int64, order="C")
    place, ends = int(rng.integers(weight.size)), np.iinfo(instr.arrays["weight"].dtype)
    step = max(int(np.abs(weight).max()) // 3, 1)
    old = int(weight.reshape(-1)[place])
    step = step if old + step <= ends.max else -step
    weight.reshape(-1)[place] = old + step
    arrays = {**instr.arrays, "weight": weight.astype(instr.arrays["weight"].dtype)}
    return replace(instr, arrays=arrays)


def _bias(instr: Instr, rng: np.random.Generator) -> Instr | None:
    """One bias, by as much as makes one code of the output."""
    if "bias" not in instr.arrays:
        return None
    bias = instr.arrays["bias"].astype(np.int64)
    place = int(rng.integers(bias.size))
    scale = instr.requant.scale[place] if isinstance(instr.requant, Requant) else np.float32(1)
    bias[place] += int(rng.choice((-1, 1))) * int(np.ceil(1 / scale))
    return replace(instr, arrays={**instr.arrays, "bias": bias.astype(np.int32)})


def _attribute(name: str, *steps: int) -> Change:
    def change(instr: Instr, rng: np.random.Generator) -> Instr | None:
        if name not in instr.attrs:
            return None
        old = instr.int(name)
        moved = old + int(rng.choice(steps))
        return replace(instr, attrs={**instr.attrs, name: moved})

    return change


def _list(name: str, least: int, *ops: str) -> Change:
    """One number of a list of integers."""

    def change(instr: Instr, rng: np.random.Generator) -> Instr | None:
        if instr.op not in ops or not instr.ints(name):
            return None
        numbers = list(instr.ints(name))
        # Padding at an end may stay unread, and the steps of a kernel of size 1 do not matter.
        place = int(rng.integers(len(instr.ints("strides"))))
        if name == "dilations" and _kernel(instr)[place] == 1:
            return None
        numbers[place] = max(least, numbers[place] + int(rng.choice((-1, 1))))
        if tuple(numbers) == instr.ints(name):
            return None
        if name == "pads" and numbers[place] >= _kernel(instr)[place]:
            return None
        return replace(instr, attrs={**instr.attrs, name: tuple(numbers)})

    return change


def _kernel(instr: Instr) -> tuple[int, ...]:
    return instr.arrays["weight"].shape[2:] if instr.op == "conv" else instr.ints("kernel_shape")


def _axes(instr: Instr, rng: np.random.Generator) -> Instr | None:
    """A transposition that exchanges two more axes."""
    if instr.op != "transpose":
        return None
    perm = list(instr.ints("perm"))
    a, b = rng.choice(len(perm), 2, replace=False)
    perm[a], perm[b] = perm[b], perm[a]
    return replace(instr, attrs={**instr.attrs, "perm": tuple(perm)})


def _number(name: str, form: Form, *steps: int) -> Change:
    """One number of a channel that is computed in this form."""

    def change(instr: Instr, rng: np.random.Generator) -> Instr | None:
        found = instr.requant
        if not isinstance(found, Requant) or not (found.form == form).any():
            return None
        each = np.repeat(found.form, GROUP)[: found.scale.size]
        channel = int(rng.choice(np.flatnonzero(each == form)))
        array = getattr(found, name).copy()
        row = array[channel : channel + 1]
        moved = _moved(row, rng, *steps)
        if moved is None:
            return None
        row[...] = moved
        return replace(instr, requant=replace(found, **{name: array}))

    return change


def _output(name: str, *steps: int) -> Change:
    """A number that holds for all channels of a requantization, or for all pairs."""

    def change(instr: Instr, rng: np.random.Generator) -> Instr | None:
        if not isinstance(instr.requant, Requant):
            return None
        moved = getattr(instr.requant, name) + int(rng.choice(steps))
        return replace(instr, requant=replace(instr.requant, **{name: moved}))

    return change


def _scale(instr: Instr, rng: np.random.Generator) -> Instr | None:
    """The float32 scale that a channel's numbers are proved against, a little larger."""
    if not isinstance(instr.requant, Requant):
        return None
    scale = instr.requant.scale.copy()
    scale[int(rng.integers(scale.size))] *= np.float32(1.01)
    return replace(instr, requant=replace(instr.requant, scale=scale))


def _pair(instr: Instr, rng: np.random.Generator) -> Instr | None:
    """A multiplier, rounding or table entry of an Add or Mul, by much more than it has room for."""
    pair = instr.requant
    if not isinstance(pair, PairRequant):
        return None
    if pair.form is PairForm.TABLE:
        moved = _moved(pair.table, rng, -1, 1)
        return None if moved is None else replace(instr, requant=replace(pair, table=moved))
    sign = int(rng.choice((-1, 1)))
    first, second = pair.multipliers
    step = sign << max(pair.shift - 6, 0)
    choices: list[Mapping[str, Any]] = [
        {"multipliers": (first + step, second)},
        {"rounding": pair.rounding + (step << 6)},
        {"shift": pair.shift + 1},
    ]
    return replace(instr, requant=replace(pair, **choices[int(rng.integers(3))]))


INTEGERS: dict[str, Change] = {
    "multiplier": _number("multiplier", Form.FIXED_POINT, -1, 1, -(2**12), 2**20),
    "rounding": _number("rounding", Form.FIXED_POINT, -1, 1, -(2**20), 2**26, 2**29),
    "shift": _number("shift", Form.FIXED_POINT, -1, 1),
    "threshold": _number("thresholds", Form.THRESHOLDS, -1, 1, -20, 20),
}
"""Changes of how accumulators are rounded: some change no code that can be reached."""

CHANGES: dict[str, Change] = {
    "weight": _weight,
    "bias": _bias,
    "weight zero point": _array("weight_zero", -1, 1),
    "input zero point": _attribute("x_zero", -1, 1),
    "pad value": _attribute("value", -1, 1),
    "output zero point": _output("zero_point", -1, 1),
    "lowest code": _output("lo", 1),
    "highest code": _output("hi", -1),
    "scale": _scale,
    "pair": _pair,
    "table": _array("table", -1, 1),
    "concat table": _array("tables", -1, 1),
    "border zero point": _array("zero_point", -1, 1),
    "pool zero point": _array("zero_points", -1, 1),
    "stride": _list("strides", 1, "conv", "max_pool", "average_pool"),
    "pads": _list("pads", 0, "conv", "max_pool", "average_pool"),
    "dilation": _list("dilations", 1, "conv", "max_pool"),
    "axes": _axes,
}
"""Changes of what is computed."""


def with_thresholds(program: IntegerProgram) -> IntegerProgram:
    """The same program, with sums of few codes in the form that is kept for those on ties."""
    return replace(program, instrs=tuple(map(_with_thresholds, program.instrs)))


def _with_thresholds(instr: Instr) -> Instr:
    found = instr.requant
    if not isinstance(found, Requant) or found.hi - found.lo > MOST_THRESHOLDS:
        return instr
    exact = thresholds(found.scale, found.zero_point, found.lo, found.hi)
    table = np.clip(exact, INT32_MIN, INT32_MAX).astype(np.int32)
    form = np.full_like(found.form, Form.THRESHOLDS)
    return replace(instr, requant=replace(found, form=form, thresholds=table))


def makes_no_difference(program: IntegerProgram, mutant: IntegerProgram) -> bool:
    """Whether a changed instruction gives the same codes whatever is fed.

    Of tables only entries that can be met matter.
    Numbers of the rounding are compared on every accumulator that can occur. Where the sums
    themselves changed, only a channel that gives one code whatever is fed is the same.
    """
    pairs = zip(program.instrs, mutant.instrs, strict=True)
    old, new = next((a, b) for a, b in pairs if a is not b)
    if old.op in ("table", "concat"):
        return _reached(program, old) == _reached(program, new)
    if not isinstance(old.requant, Requant) or not isinstance(new.requant, Requant):
        return False
    sums = accumulators(program, old, {}), accumulators(mutant, new, {})
    if dict(old.attrs) != dict(new.attrs):
        return False
    for channel in range(old.requant.scale.size):
        same_sums = all(
            _of_channel(old, channel, n) == _of_channel(new, channel, n) for n in SUMMED
        )
        if same_sums and _is_same(old.requant, new.requant, channel):
            continue
        if same_sums:
            ends = [_all_of(reach, channel) for reach in sums]
        else:
            ends = _where_they_differ(program, (old, new), channel)
        before = _codes_of(old.requant, channel, *ends[0])
        after = _codes_of(new.requant, channel, *ends[1])
        if same_sums and not np.array_equal(before, after):
            return False
        if not same_sums and np.unique(np.concatenate((before, after))).size > 1:
            return False
    return True


def _reached(program: IntegerProgram, instr: Instr) -> list[bytes]:
    """The entries of tables that codes of the inputs can meet."""
    tables = instr.arrays.get("tables", instr.arrays.get("table"))
    if tables is None:
        return []
    values = [program.values[number] for number in instr.inputs]
    pairs = zip(tables.reshape(-1, 256), values, strict=True)
    first = [int(np.iinfo(value.dtype).min) for value in values]
    return [
        table[value.lo - start : value.hi - start + 1].tobytes()
        for (table, value), start in zip(pairs, first, strict=True)
    ]


SUMMED = ("weight", "weight_zero", "bias")


def _of_channel(instr: Instr, channel: int, name: str) -> bytes:
    """What an output channel is summed up from."""
    array = instr.arrays.get(name)
    if array is None:
        return b""
    if name == "weight" and instr.op == "matmul":
        return array[..., channel].tobytes()
    return array[channel % len(array)].tobytes()


def _all_of(sums: Reach, channel: int) -> tuple[int, int]:
    return int(sums.lo[channel]), int(sums.hi[channel])


def _where_they_differ(
    program: IntegerProgram, pair: tuple[Instr, Instr], channel: int
) -> list[tuple[int, int]]:
    """Ends of a channel's sums before and after, over the places where these are not the same."""
    (low, high), (other_low, other_high) = (_in_image(program, i, channel) for i in pair)
    differ = (low != other_low) | (high != other_high)
    if not differ.any():
        return [(0, 0), (0, 0)]
    return [
        (int(low[differ].min()), int(high[differ].max())),
        (int(other_low[differ].min()), int(other_high[differ].max())),
    ]


def _in_image(
    program: IntegerProgram, instr: Instr, channel: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ends of a channel's sums at each place of the output.

    `accumulators` takes each tap by itself to lie in the padding or not, which proofs may, but here
    a channel that gives one code only must not look alive.
    """
    if instr.op != "conv":
        lo, hi = _all_of(accumulators(program, instr, {}), channel)
        return np.array([lo]), np.array([hi])
    value, zero = program.values[instr.inputs[0]], instr.int("x_zero")
    weight = instr.arrays["weight"][channel].astype(np.int64)
    zeros = instr.arrays["weight_zero"]
    weight -= int(zeros[channel % zeros.size])
    products = weight * (value.lo - zero), weight * (value.hi - zero)
    rows, columns = (_inside(program, instr, axis) for axis in (0, 1))
    bias = int(instr.arrays["bias"][channel]) if "bias" in instr.arrays else 0
    low, high = (
        np.einsum("hw,yh,xw->yx", pick(*products).sum(axis=0), rows, columns)
        for pick in (np.minimum, np.maximum)
    )
    return low + bias, high + bias


def _inside(program: IntegerProgram, instr: Instr, axis: int) -> npt.NDArray[np.int64]:
    """Which taps of the kernel lie in the image at each place of the output, along one axis."""
    (feeds,) = generated_feeds(program, 1, np.random.default_rng(0))
    traced = Executor(program).trace(feeds)
    shapes = [traced[program.values[n].name].shape for n in (instr.inputs[0], instr.outputs[0])]
    first = 1 if instr.int("channels_last") else 2
    side, count = (shape[first + axis] for shape in shapes)
    taps = np.arange(_kernel(instr)[axis]) * instr.ints("dilations")[axis]
    at = np.arange(count)[:, None] * instr.ints("strides")[axis] + taps - instr.ints("pads")[axis]
    return ((at >= 0) & (at < side)).astype(np.int64)


def _codes_of(found: Requant, channel: int, lo: int, hi: int) -> npt.NDArray[np.int32]:
    """The code of each accumulator from lo to hi."""
    return requant.apply(_only(found, channel), np.arange(lo, hi + 1)[:, None])[:, 0]


def _only(found: Requant, channel: int) -> Requant:
    """One channel by itself."""
    each = {
        name: getattr(found, name)[channel : channel + 1]
        for name in ("scale", "multiplier", "rounding", "shift", "thresholds", "proved")
    }
    return replace(found, form=found.form[channel // GROUP : channel // GROUP + 1], **each)


def _is_same(old: Requant, new: Requant, channel: int) -> bool:
    """Whether a channel has the same numbers."""
    first, second = _only(old, channel), _only(new, channel)
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in Requant.__slots__
    )


def narrowed(program: IntegerProgram, rng: np.random.Generator) -> tuple[str, IntegerProgram]:
    """A program that says one value has fewer codes than the instruction that makes it can give."""
    made = [number for instr in program.instrs for number in instr.outputs]
    wide = [
        n
        for n in made
        if program.values[n].is_codes and program.values[n].lo < program.values[n].hi
    ]
    number = int(rng.choice(wide))
    value = program.values[number]
    ends = {"lo": value.lo + 1} if rng.integers(2) else {"hi": value.hi - 1}
    values = list(program.values)
    values[number] = replace(value, **ends)
    return f"{value.name} {ends}", replace(program, values=tuple(values))

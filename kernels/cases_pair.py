"""Arguments that tests and benchmarks run the kernel of pair.py on."""

from collections.abc import Iterator

import numpy as np

from onnxptq.kernels import pair
from onnxptq.kernels.cases_rows import Arguments, Layout, named, numbered

WORK = 56 * 56 * 64
AXES = 6


def _strides(shape: tuple[int, ...], broadcast: tuple[int, ...]) -> list[int]:
    """Element strides of a contiguous array that has 1 in the axes `broadcast`."""
    strides, step = [0] * AXES, 1
    for axis in reversed(range(AXES)):
        if axis not in broadcast:
            strides[axis] = step
            step *= shape[axis]
    return strides


def _call(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    broadcast: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    op: int = pair.ADD,
    form: int = pair.FIXED_POINT,
) -> Arguments:
    layout = Layout()
    full = (1,) * (AXES - len(shape)) + shape
    strides = [_strides(full, axes) for axes in broadcast]
    codes = [rng.integers(0, 256, np.prod(full, dtype=int) + 1).astype(np.uint8) for _ in range(2)]
    if op == pair.ADD:
        multipliers, shift, rounding = (1479211775, -930311111), 31, 41 << 31
    else:
        multipliers, shift, rounding = (1879211775, 0), 39, (70 << 39) - 12345
    columns = named(
        pair.COLUMNS,
        a=layout.put(codes[0]),
        b=layout.put(codes[1]),
        y=layout.room(int(np.prod(full))),
        op=op,
        form=form,
        **numbered("n", full),
        **numbered("a", strides[0]),
        **numbered("b", strides[1]),
        multiplier_a=multipliers[0],
        multiplier_b=multipliers[1],
        rounding=rounding,
        shift=shift,
        a_zero=int(rng.integers(0, 256)),
        b_zero=int(rng.integers(0, 256)),
        lo=int(rng.integers(0, 10)),
        hi=int(rng.integers(240, 256)),
        table=layout.const(rng.integers(0, 256, 65536).astype(np.uint8)),
    )
    return layout.arguments(columns)


KINDS = (
    (pair.ADD, pair.FIXED_POINT),
    (pair.ADD, pair.BY_TABLE),
    (pair.MUL, pair.FIXED_POINT),
    (pair.MIN, pair.FIXED_POINT),
    (pair.MAX, pair.FIXED_POINT),
)
SHAPES = (
    ((1,), ((), ())),
    ((0, 3), ((), ())),
    ((3, 0), ((), ())),
    ((67,), ((), ())),
    ((67,), ((), (5,))),
    ((67,), ((5,), ())),
    ((5, 33), ((), (5,))),
    ((5, 33), ((4,), ())),
    ((2, 3, 4, 35), ((), (3, 4))),
    ((2, 3, 4, 35), ((2, 5), (3, 4))),
    ((2, 1, 3, 2, 3, 17), ((1, 3), (0, 4, 5))),
    ((2, 3, 1, 2, 3, 1), ((), ())),
    ((64,), ((), ())),
    ((300,), ((), ())),
    ((5, 64), ((), (4,))),
    ((2, 7, 150), ((4,), ())),
    ((3, 130), ((), (5,))),
    ((3, 70), ((5,), (4,))),
    ((70,), ((5,), (5,))),
)
ROUGH = (
    (pair.ADD, {"multiplier_a": (1 << 31) - 1}),
    (pair.ADD, {"multiplier_b": 1 - (1 << 31), "rounding": (1 << 46) - 1}),
    (pair.ADD, {"multiplier_a": 40000, "multiplier_b": -40000, "rounding": -99999, "shift": 15}),
    (pair.ADD, {"multiplier_a": 40000, "multiplier_b": -32769, "rounding": -99999, "shift": 16}),
    (pair.ADD, {"multiplier_a": 1 << 30, "multiplier_b": 1 << 30, "rounding": 5, "shift": 50}),
    (pair.MUL, {"multiplier_a": 1 << 30, "rounding": 3, "shift": 10}),
    (pair.MUL, {"multiplier_a": -3, "rounding": 500, "shift": 4}),
)
"""Numbers that vectors cannot take, or just can."""


def pairs(rng: np.random.Generator) -> Iterator[Arguments]:
    """Each operation and form, without and with broadcasting in every place, and empty arrays."""
    for op, form in KINDS:
        for shape, broadcast in SHAPES:
            yield _call(rng, shape, broadcast, op, form)
    yield _strided(rng)
    for op, numbers in ROUGH:
        for broadcast in (((), ()), ((), (5,))):
            arguments = _call(rng, (3, 67), broadcast, op)
            for name, number in numbers.items():
                arguments[0][1 + pair.COLUMNS.index(name)] = number
            yield arguments


def _strided(rng: np.random.Generator) -> Arguments:
    """Both operands transposed: no axis of stride 1 at the end."""
    arguments = _call(rng, (7, 9))
    row = arguments[0]
    row[[pair.A4, pair.A5]] = 1, 7
    row[[pair.B4, pair.B5]] = 1, 7
    return arguments


def pair_work(rng: np.random.Generator) -> Arguments:
    """The residual sum of a ResNet's first stage."""
    return _call(rng, (WORK,))

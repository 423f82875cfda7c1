"""Arguments for share.py and requantize.py, and what rows of other kernels take from here."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import requantize

Arguments = tuple[Any, ...]
Generator = np.random.Generator

ROW_WORK = 256


class Bytes:
    """Lays arrays out one behind the other, each at a multiple of 64 bytes."""

    def __init__(self) -> None:
        self.parts: list[npt.NDArray[np.uint8]] = []
        self.size = 0

    def add(self, array: npt.NDArray[Any]) -> int:
        """Append `array`; return its offset."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return self.reserve(-(-data.size // 64) * 64, data)

    def reserve(self, size: int, data: npt.NDArray[np.uint8] | None = None) -> int:
        """Append `size` bytes that begin with `data`; return their offset."""
        part = np.full(size, 0xA5, np.uint8)
        part[: 0 if data is None else data.size] = [] if data is None else data
        self.parts.append(part)
        self.size += size
        return self.size - size

    def array(self) -> npt.NDArray[np.uint8]:
        """All that was added."""
        return np.concatenate([*self.parts, np.zeros(0, np.uint8)])


def add_requant(
    row: npt.NDArray[np.int64],
    consts: Bytes,
    scales: npt.NDArray[np.float32],
    limits: tuple[int, int, int],
    forms: npt.NDArray[np.uint8],
) -> None:
    """Fill in the columns of requantize.py; each form has a scale of its own, to tell them apart.

    Args:
        row: Changed in place, [64].
        consts: The arrays are added here.
        scales: Scale of each channel for INT64, [C]; FIXED_POINT has more, THRESHOLDS less.
        limits: Lowest and highest code and zero point.
        forms: Form of each group, [G].
    """
    lo, hi, zero = limits
    real = scales.astype(np.float64)
    shifts = np.clip(30 - np.frexp(real)[1], 1, 50)
    multipliers = np.clip(np.rint(1.1 * real * 2.0**shifts), 0, 2**31 - 1)
    roundings = (np.int64(zero) << shifts) + (np.int64(1) << (shifts - 1))
    borders = np.arange(lo + 1, hi + 1) - zero - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        thresholds = np.nan_to_num(np.ceil(borders / (0.9 * real[:, None])), nan=2.0**40)
    fractions, exponents = np.frexp(real)
    low = np.maximum(exponents - 24, -149)  # subnormal scales have fewer bits
    row[requantize.FORM :] = 0
    row[requantize.FORM] = consts.add(forms)
    row[requantize.MULTIPLIER] = consts.add(multipliers.astype(np.int32))
    row[requantize.ROUNDING] = consts.add(roundings.astype(np.int64))
    row[requantize.SHIFT] = consts.add(shifts.astype(np.int64))
    row[requantize.MANTISSA] = consts.add(np.ldexp(fractions, exponents - low).astype(np.int32))
    row[requantize.EXPONENT] = consts.add(low.astype(np.int64))
    limit = np.iinfo(np.int32)
    row[requantize.THRESHOLDS] = consts.add(
        np.clip(thresholds, limit.min, limit.max).astype(np.int32)
    )
    row[requantize.STEPS] = hi - lo
    row[requantize.LO], row[requantize.HI], row[requantize.ZERO] = limits


def forms_of(rng: Generator, channels: int) -> npt.NDArray[np.uint8]:
    """A form for each group, all three among them where there are three groups."""
    groups = -(-channels // requantize.GROUP)
    return ((rng.integers(0, 3) + np.arange(groups)) % 3).astype(np.uint8)


def shares(_rng: Generator) -> Iterator[Arguments]:
    """Nothing, less than one, one and more items a thread."""
    for total in (0, 1, 2, 3, 7, 16, 1000):
        for n_threads in (1, 2, 3, 8):
            for thread in range(n_threads):
                yield total, thread, n_threads


def share_work(_rng: Generator) -> Arguments:
    """The second of two threads."""
    return 3136, 1, 2


def rows(rng: Generator) -> Iterator[Arguments]:
    """Begins and ends inside of groups, strides, all limits, all forms, extreme sums and scales."""
    for first, count in ((0, 1), (0, 16), (15, 2), (3, 0), (5, 40), (17, 61), (0, 64), (31, 33)):
        for limits in ((0, 255, 0), (0, 255, 255), (0, 255, 128), (7, 22, 9), (0, 3, 1), (5, 5, 5)):
            for step in (1, 3):
                scales = np.exp(rng.uniform(-12, 0, first + count + 3)).astype(np.float32)
                yield _row(rng, scales, (first, count), limits, step)
    for scales in EXTREME_SCALES:
        for form in range(3):
            tiled = np.tile(np.asarray(scales, np.float32), 64)[:64]
            row = _row(rng, tiled, (0, 64), (0, 255, 3), 1, np.full(4, form, np.uint8))
            for sums in EXTREME_SUMS:
                yield np.resize(np.asarray(sums, np.int32), 64), *row[1:]


EXTREME_SCALES = (
    (1e-45, 1e-40, 1.17e-38, 1.2e-38),
    (3.4e38, 1e30, 2.0**40),
    (0.0,),
    (0.5, 0.25, 1.0, 1.5, 0.01),
    (2.0**-24, 2.0**-23 * 1.5, 2.0**-30),
    (1 - 2.0**-24, 1 + 2.0**-23),
)
EXTREME_SUMS = (
    (-(2**31), 2**31 - 1, 0, 1, -1),
    (2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, -(2**24) - 1, -(2**24) - 3),
    (2**30 + 64, 2**30 + 65, 2**30 + 192, 2**31 - 64, 2**31 - 65),
    (1, 3, 5, 7, -1, -3, -5, -7, 150, 50, 250, 505, 507),
)


def _row(
    rng: Generator,
    scales: npt.NDArray[np.float32],
    channels: tuple[int, int],
    limits: tuple[int, int, int],
    step: int,
    forms: npt.NDArray[np.uint8] | None = None,
) -> Arguments:
    first, count = channels
    row, consts = np.zeros(requantize.ROW, np.int64), Bytes()
    add_requant(row, consts, scales, limits, forms_of(rng, scales.size) if forms is None else forms)
    reals = rng.uniform(-300, 300, count) / scales[first : first + count].astype(np.float64).clip(
        1e-7
    )
    acc = np.clip(reals, -(2**31), 2**31 - 1).astype(np.int32)
    out = np.full(count * step + 7, 99, np.uint8)
    return acc, first, count, out, 5, step, row, consts.array()


def row_work(rng: Generator) -> Arguments:
    """A pixel of 256 channels in fixed point."""
    scales = np.exp(rng.uniform(-8, -6, ROW_WORK)).astype(np.float32)
    forms = np.full(ROW_WORK // requantize.GROUP, requantize.FIXED_POINT, np.uint8)
    return _row(rng, scales, (0, ROW_WORK), (0, 255, 0), 1, forms)


def typical_scales(rng: Generator, channels: int, k: int) -> npt.NDArray[np.float32]:
    """Scales that bring sums over K products of codes into 0 .. 255, with clipping at both ends."""
    return (rng.uniform(0.5, 2.0, channels) * 255 / (9000 * math.sqrt(k) * 4)).astype(np.float32)

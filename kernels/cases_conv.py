"""Arguments for accumulate.py, conv.py, depthwise.py and matmul.py."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import accumulate, conv, depthwise, matmul, requantize, window
from onnxptq.kernels.cases_requantize import Bytes, add_requant, forms_of, typical_scales

Arguments = tuple[Any, ...]
Generator = np.random.Generator

THREADS = 3
"""Cases have scratch for so many."""
PRODUCT_WORK = accumulate.PIXELS * 64 * 576
CONV_WORK = 28 * 28 * 64 * 576
DEPTHWISE_WORK = 28 * 28 * 96 * 9
MATMUL_WORK = 197 * 64 * 197


def products(rng: Generator) -> Iterator[Arguments]:
    """Odd and even numbers of pixels, channels around fours, K from 1 to beyond a vector."""
    for pixels in (1, 2, 3, 8):
        for outs in (1, 3, 4, 5, 16):
            for k in (1, 2, 27, 32, 147):
                yield _product(rng, pixels, outs, k, (-255, 255))
    yield _product(rng, 4, 8, 64, (255, 255))  # all largest, sums of pairs beyond int16


def _product(rng: Generator, pixels: int, outs: int, k: int, limits: tuple[int, int]) -> Arguments:
    patches = rng.integers(limits[0], limits[1] + 1, (pixels + 1) * k).astype(np.int16)
    weight = rng.integers(limits[0], limits[1] + 1, outs * k).astype(np.int16)
    return patches, weight, np.full((pixels + 1) * outs, 77, np.int32), pixels, outs, k


def product_work(rng: Generator) -> Arguments:
    """A block of pixels of a 3x3 convolution, 64 channels; time is for a multiplication."""
    return _product(rng, accumulate.PIXELS, 64, 576, (-127, 127))


# What differs from a 1x1 convolution of one pixel, one channel in and out, no pads.
CONVS: tuple[Mapping[str, Any], ...] = (
    {},
    {"group_in": 3, "group_out": 5, "in": (1, 4, 5)},
    {"group_in": 40, "group_out": 49, "in": (1, 3, 5), "batch": 2},
    {"group_in": 3, "group_out": 20, "in": (1, 7, 9), "k": (1, 3, 3), "s": (1, 2, 2)},
    {"group_in": 5, "group_out": 7, "in": (1, 6, 5), "k": (1, 3, 3), "p": (0, 1, 0, 0, 0, 2)},
    {"group_in": 4, "group_out": 33, "in": (1, 5, 8), "k": (1, 3, 3), "p": (0, 1, 1, 0, 1, 1)},
    {"group_in": 16, "group_out": 16, "in": (1, 9, 7), "k": (1, 3, 3), "d": (1, 2, 3)},
    {"groups": 3, "group_in": 2, "group_out": 11, "in": (1, 5, 4), "k": (1, 2, 3), "batch": 3},
    {"groups": 4, "group_out": 2, "in": (1, 5, 4), "k": (1, 3, 3), "p": (0, 2, 2, 0, 2, 2)},
    {"group_in": 2, "group_out": 3, "in": (3, 4, 5), "k": (2, 3, 1), "p": (1, 0, 0, 0, 1, 2)},
    {"group_in": 2, "group_out": 3, "in": (1, 1, 19), "k": (1, 1, 5), "p": (0, 0, 4, 0, 0, 1)},
    # Windows that lie wholly outside, and a dilated one that is wider than x.
    {"group_in": 2, "group_out": 4, "in": (1, 2, 2), "k": (1, 1, 1), "p": (0, 3, 3, 0, 3, 3)},
    {"group_in": 3, "in": (1, 2, 3), "k": (1, 2, 2), "d": (1, 4, 5), "p": (0, 3, 4, 0, 3, 4)},
)
DEPTHWISES: tuple[Mapping[str, Any], ...] = (
    {},
    {"groups": 49, "in": (1, 5, 4), "k": (1, 3, 3), "p": (0, 1, 1, 0, 1, 1)},
    {"groups": 33, "in": (1, 7, 6), "k": (1, 3, 3), "s": (1, 2, 2), "p": (0, 0, 1, 0, 1, 0)},
    {"groups": 7, "in": (1, 9, 9), "k": (1, 5, 5), "d": (1, 2, 1), "batch": 2},
    {"groups": 5, "in": (3, 4, 5), "k": (2, 3, 1), "p": (1, 0, 0, 0, 1, 2)},
    {"groups": 16, "in": (1, 1, 19), "k": (1, 1, 4), "p": (0, 0, 3, 0, 0, 0)},
    {"groups": 3, "in": (1, 2, 2), "k": (1, 2, 1), "p": (0, 3, 3, 0, 3, 3)},
)


def convs(rng: Generator) -> Iterator[Arguments]:
    """All of CONVS, both layouts of x and y, zero points at both ends, codes or accumulators."""
    yield from _windows(rng, CONVS, depth=False)


def depthwises(rng: Generator) -> Iterator[Arguments]:
    """The same for DEPTHWISES."""
    yield from _windows(rng, DEPTHWISES, depth=True)


def _windows(
    rng: Generator, shapes: tuple[Mapping[str, Any], ...], *, depth: bool
) -> Iterator[Arguments]:
    for shape in shapes:
        for x_first in (False, True):
            for y_first in (False, True):
                zero = int(rng.choice((0, 255, 100)))
                yield _window(rng, shape, (x_first, y_first), zero, depth=depth)
        extreme = {**shape, "bias": False, "code": int(rng.choice((0, 255)))}
        yield _window(rng, extreme, (False, False), 255 - extreme["code"], depth=depth)
        yield _window(rng, {**shape, "real_acc": 1}, (False, True), 1, depth=depth)


def _strides(
    sizes: tuple[int, int, int], channels: int, *, channels_first: bool
) -> tuple[int, int, int, int, int]:
    """Strides n, c, d, h, w of a contiguous tensor."""
    d, h, w = sizes
    if channels_first:
        return channels * d * h * w, d * h * w, h * w, w, 1
    return channels * d * h * w, 1, h * w * channels, w * channels, channels


def _window(
    rng: Generator, shape: Mapping[str, Any], first: tuple[bool, bool], zero: int, *, depth: bool
) -> Arguments:
    """A row of conv or depthwise with its arena and constants."""
    r = {"batch": 1, "groups": 1, "group_in": 1, "group_out": 1, "real_acc": 0, **shape}
    sizes, kernel = r.get("in", (1, 1, 1)), r.get("k", (1, 1, 1))
    steps, gaps, pads = r.get("s", (1, 1, 1)), r.get("d", (1, 1, 1)), r.get("p", (0,) * 6)
    outs = [
        (sizes[i] + pads[i] + pads[i + 3] - (kernel[i] - 1) * gaps[i] - 1) // steps[i] + 1
        for i in range(3)
    ]
    ins, channels = r["groups"] * r["group_in"], r["groups"] * r["group_out"]
    k = math.prod(kernel) * r["group_in"]
    arena, consts, row = Bytes(), Bytes(), np.zeros(requantize.ROW, np.int64)
    x = rng.integers(0, 256, r["batch"] * math.prod(sizes) * ins)
    x = np.full_like(x, r["code"]) if "code" in r else x
    low = -255 if not depth else -127
    weight = rng.integers(low, 256, channels * k)
    weight = np.full_like(weight, 255) if "code" in r else weight
    bias = rng.integers(-20000, 20000, channels)
    if r["real_acc"]:  # compared as they are, so these may wrap around
        bias = rng.choice((-(2**31), 2**31 - 1), channels)
    scratch_bytes = (
        depthwise.depthwise_scratch_bytes(k, channels)
        if depth
        else conv.conv_scratch_bytes(k, r["group_out"])
    )
    columns = {
        **{name: r[name] for name in ("batch", "groups", "group_in", "group_out", "real_acc")},
        "x": arena.add(x.astype(np.uint8)),
        "y": arena.reserve(4 * r["batch"] * math.prod(outs) * channels),
        "scratch": arena.reserve(scratch_bytes * THREADS),
        "scratch_bytes": scratch_bytes,
        "weight": consts.add(weight.astype(np.int16)),
        "bias": consts.add(bias.astype(np.int32)) if r.get("bias", True) else -1,
        "x_zero": zero,
    }
    for name, numbers in (
        ("in", sizes),
        ("out", outs),
        ("k", kernel),
        ("s", steps),
        ("d", gaps),
        ("p", pads),
    ):
        columns |= {f"{name}_{axis}": numbers[i] for i, axis in enumerate("dhw")}
    for name, numbers in (
        ("x", _strides(sizes, ins, channels_first=first[0])),
        ("y", _strides((outs[0], outs[1], outs[2]), channels, channels_first=first[1])),
    ):
        columns |= {f"{name}_{axis}": numbers[i] for i, axis in enumerate("ncdhw")}
    row[1 : 1 + len(window.COLUMNS)] = [columns[name] for name in window.COLUMNS]
    forms = r.get("forms", forms_of(rng, channels))
    limits = ((0, 255, 0), (0, 255, 255), (3, 18, 7))[int(rng.integers(0, 3))]
    add_requant(row, consts, typical_scales(rng, channels, k), limits, forms)
    return row, arena.array(), consts.array(), 0, 1


def conv_work(rng: Generator) -> Arguments:
    """3x3, 64 channels, 28x28, NHWC; time is for a multiplication."""
    shape = {"group_in": 64, "group_out": 64, "in": (1, 28, 28), "k": (1, 3, 3)}
    shape |= {"p": (0, 1, 1, 0, 1, 1), "forms": np.zeros(4, np.uint8)}
    return _window(rng, shape, (False, False), 0, depth=False)


def depthwise_work(rng: Generator) -> Arguments:
    """3x3, 96 channels, 28x28, NHWC; time is for a multiplication."""
    shape = {"groups": 96, "in": (1, 28, 28), "k": (1, 3, 3)}
    shape |= {"p": (0, 1, 1, 0, 1, 1), "forms": np.zeros(6, np.uint8)}
    return _window(rng, shape, (False, False), 0, depth=True)


def matmuls(rng: Generator) -> Iterator[Arguments]:
    """One to more than a block in each of m, k, n; transposed operands and results."""
    for m, k, n in ((1, 1, 1), (1, 40, 67), (5, 3, 2), (17, 33, 65), (35, 7, 131), (4, 64, 48)):
        for layout in range(8):
            transposed = (bool(layout & 1), bool(layout & 2), bool(layout & 4))
            zeros = (int(rng.choice((0, 255, 120))), int(rng.choice((0, 255, 120))))
            yield _matmul(rng, (m, k, n), transposed, zeros, forms_of(rng, n))
        row, *others = _matmul(rng, (m, k, n), (False,) * 3, (0, 255), forms_of(rng, n))
        row[matmul.REAL_ACC], row[matmul.BIAS] = 1, -1
        yield row, *others


def _matmul(
    rng: Generator,
    sizes: tuple[int, int, int],
    transposed: tuple[bool, bool, bool],
    zeros: tuple[int, int],
    forms: npt.NDArray[np.uint8],
) -> Arguments:
    m, k, n = sizes
    arena, consts, row = Bytes(), Bytes(), np.zeros(requantize.ROW, np.int64)
    strides = [
        (1, rows) if turned else (columns, 1)
        for turned, rows, columns in zip(transposed, (m, k, m), (k, n, n), strict=True)
    ]
    columns = {
        "a": arena.add(rng.integers(0, 256, m * k).astype(np.uint8)),
        "b": arena.add(rng.integers(0, 256, k * n).astype(np.uint8)),
        "y": arena.reserve(4 * m * n),
        "bias": consts.add(rng.integers(-20000, 20000, n).astype(np.int32)),
        "m": m,
        "k": k,
        "n": n,
        "a_zero": zeros[0],
        "b_zero": zeros[1],
        "real_acc": 0,
        **dict(zip(("a_m", "a_k"), strides[0], strict=True)),
        **dict(zip(("b_k", "b_n"), strides[1], strict=True)),
        **dict(zip(("y_m", "y_n"), strides[2], strict=True)),
        "scratch_bytes": matmul.matmul_scratch_bytes(k),
        "scratch": arena.reserve(matmul.matmul_scratch_bytes(k) * THREADS),
    }
    row[1 : 1 + len(matmul.COLUMNS)] = [columns[name] for name in matmul.COLUMNS]
    add_requant(row, consts, typical_scales(rng, n, k), (0, 255, 100), forms)
    return row, arena.array(), consts.array(), 0, 1


def matmul_work(rng: Generator) -> Arguments:
    """Scores of one head of attention, 197 tokens; time is for a multiplication."""
    forms = np.zeros(13, np.uint8)
    return _matmul(rng, (197, 64, 197), (False, True, False), (128, 128), forms)

"""Arguments for depthwise_u8s8.py: rows as a plan lays them out, from shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import depthwise_u8s8, requantize
from onnxptq.kernels.cases_requantize import Bytes, add_requant, forms_of, typical_scales

Arguments = tuple[Any, ...]
Generator = np.random.Generator

THREADS = 3
"""Cases have scratch for so many."""
WORK = 28 * 28 * 192 * 9

# What differs from a 1x1 window on one pixel of one channel without pads.
SHAPES: tuple[Mapping[str, Any], ...] = (
    {},
    {"c": 3, "in": (4, 5), "k": (3, 3), "p": (1, 1, 1, 1)},
    {"c": 16, "in": (5, 7), "k": (3, 3), "p": (1, 1, 1, 1), "batch": 2},
    {"c": 33, "in": (6, 5), "k": (3, 5), "p": (1, 2, 1, 2)},
    {"c": 100, "in": (5, 4), "k": (5, 5), "p": (2, 2, 2, 2)},
    {"c": 64, "in": (7, 3), "k": (5, 6), "p": (2, 3, 2, 2)},
    {"c": 32, "in": (5, 9), "k": (3, 3), "s": (2, 2), "p": (1, 1, 1, 1), "batch": 2},
    {"c": 48, "in": (6, 8), "k": (3, 4), "s": (1, 2), "p": (0, 1, 1, 1)},
    {"c": 96, "in": (4, 5), "k": (2, 3), "s": (2, 3), "p": (1, 0, 0, 1)},
    {"c": 144, "in": (3, 6), "k": (3, 3), "p": (1, 1, 1, 1)},
    {"c": 16, "in": (7, 8), "k": (7, 7), "p": (3, 3, 3, 3)},
    {"c": 65, "in": (5, 5), "k": (3, 3), "s": (2, 2), "p": (0, 1, 1, 0)},
    {"c": 16, "in": (9, 12), "k": (3, 3), "d": (2, 3), "p": (2, 3, 2, 3)},
    {"c": 32, "in": (2, 11), "k": (1, 9), "d": (3, 1), "p": (0, 4, 0, 4)},
    # One pixel; windows that lie wholly outside; a dilated one that is wider than x.
    {"c": 80, "k": (3, 3), "p": (1, 1, 1, 1), "batch": 3},
    {"c": 16, "in": (2, 2), "k": (3, 3), "p": (4, 5, 4, 5)},
    {"c": 24, "in": (2, 3), "k": (2, 2), "d": (4, 5), "p": (3, 4, 3, 4)},
)


def depthwises(rng: Generator) -> Iterator[Arguments]:
    """All of SHAPES: fixed point, the other forms, accumulators, extreme codes and weights."""
    for shape in SHAPES:
        zero = int(rng.choice((0, 255, 100)))
        yield _depthwise(rng, {**shape, "fixed": 1}, zero)
        yield _depthwise(rng, shape, zero)
        yield _depthwise(rng, {**shape, "real_acc": 1}, zero)
        yield _depthwise(rng, {**shape, "fixed": 1, "extreme": 127}, 255)
        yield _depthwise(rng, {**shape, "real_acc": 1, "extreme": -128}, 255)


def _depthwise(rng: Generator, shape: Mapping[str, Any], zero: int) -> Arguments:
    r = {"batch": 1, "c": 1, **shape}
    sizes, kernel = r.get("in", (1, 1)), r.get("k", (1, 1))
    steps, gaps, pads = r.get("s", (1, 1)), r.get("d", (1, 1)), r.get("p", (0,) * 4)
    outs = [
        (sizes[i] + pads[i] + pads[i + 2] - (kernel[i] - 1) * gaps[i] - 1) // steps[i] + 1
        for i in range(2)
    ]
    channels = r["c"]
    weight = rng.integers(-128, 128, (*kernel, channels)).astype(np.int16)
    x = rng.integers(0, 256, r["batch"] * sizes[0] * sizes[1] * channels)
    if r.get("extreme"):
        weight, x = np.full_like(weight, r["extreme"]), np.full_like(x, 255)
    line = depthwise_u8s8.Line(
        channels, channels, sizes[1], outs[1], kernel[1], steps[1], gaps[1], pads[1], sizes[0]
    )
    found = depthwise_u8s8.columns_of(line)
    size = r["batch"] * outs[0] * outs[1] * channels
    arena, consts, row = Bytes(), Bytes(), np.zeros(requantize.ROW, np.int64)
    scratch = -(-depthwise_u8s8.scratch_bytes(line, outs[0], found.slots) // 64) * 64
    columns = {
        "x": arena.add(x.astype(np.uint8)),
        "y": arena.reserve(-(-(4 * size + 16) // 64) * 64),
        "scratch": arena.reserve(scratch * THREADS + 64),
        "scratch_bytes": scratch,
        "border": consts.add(np.full(64, zero, np.uint8)),
        "columns": consts.add(found.table),
        "n_columns": len(found.table),
        "copies": consts.add(found.copies),
        "pieces": consts.add(found.pieces),
        "batch": r["batch"],
        "groups": channels,
        "x_zero": zero,
        "fixed": r.get("fixed", 0),
        "real_acc": r.get("real_acc", 0),
        **{f"x_{axis}": n for axis, n in zip("nhw", _strides(sizes, channels), strict=True)},
        **{f"y_{axis}": n for axis, n in zip("nhw", _strides(outs, channels), strict=True)},
    }
    pairs = (("in", sizes), ("out", outs), ("k", kernel), ("s", steps), ("d", gaps), ("p", pads))
    for name, numbers in pairs:
        columns |= {f"{name}_h": numbers[0], f"{name}_w": numbers[1]}
    numbers = _add_ending(rng, row, consts, columns, kernel[0] * kernel[1])
    columns["weight"] = consts.add(depthwise_u8s8.pack(line, weight, numbers))
    row[1 : 1 + len(depthwise_u8s8.COLUMNS)] = [columns[name] for name in depthwise_u8s8.COLUMNS]
    arena.reserve(64)
    return row, arena.array(), consts.array(), 0, 1


def _strides(sizes: tuple[int, int] | list[int], channels: int) -> tuple[int, int, int]:
    return sizes[0] * sizes[1] * channels, sizes[1] * channels, channels


def _add_ending(
    rng: Generator,
    row: npt.NDArray[np.int64],
    consts: Bytes,
    columns: dict[str, int],
    k: int,
) -> list[npt.NDArray[Any]]:
    """Requantization: all fixed point where the row says so, else all three forms."""
    channels = columns["groups"]
    forms = forms_of(rng, channels) if not columns["fixed"] else np.zeros(channels, np.uint8)
    limits = ((0, 255, 0), (0, 255, 255), (3, 18, 7))[int(rng.integers(0, 3))]
    add_requant(row, consts, typical_scales(rng, channels, k), limits, forms)
    block = consts.array()

    def numbers(column: int, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
        size = channels * np.dtype(dtype).itemsize
        return block[row[column] : row[column] + size].view(dtype)

    return [
        rng.integers(-20000, 20000, channels).astype(np.int32),
        numbers(requantize.MULTIPLIER, np.int32),
        numbers(requantize.ROUNDING, np.int64),
        numbers(requantize.SHIFT, np.int64),
    ]


def depthwise_work(rng: Generator) -> Arguments:
    """3x3, 192 channels, 28x28; time is for a multiplication."""
    shape = {"c": 192, "in": (28, 28), "k": (3, 3), "p": (1, 1, 1, 1)}
    return _depthwise(rng, {**shape, "fixed": 1}, 0)

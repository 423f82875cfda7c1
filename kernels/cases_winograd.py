"""Arguments for winograd.py: rows as a plan lays them out, from shapes and ranges of codes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onnxptq.kernels import conv_u8s8, requantize, winograd
from onnxptq.kernels.cases_conv_u8s8 import THREADS, add_ending, strides_of, sum_params
from onnxptq.kernels.cases_requantize import Bytes

Arguments = tuple[Any, ...]
Generator = np.random.Generator

WORK = 28 * 28 * 64 * 576

# What differs from one channel in and out, a 3x3 image, no pads.
SHAPES: tuple[Mapping[str, Any], ...] = (
    {},
    {"in": (1, 1), "p": (1, 1, 1, 1), "group_in": 5, "group_out": 3},
    {"in": (2, 1), "p": (1, 2, 0, 2), "group_in": 16, "group_out": 16},
    {"in": (4, 5), "group_in": 8, "group_out": 20, "batch": 2},
    {"in": (7, 9), "p": (1, 1, 1, 1), "group_in": 3, "group_out": 33, "band": 2},
    {"in": (9, 8), "p": (2, 0, 1, 1), "group_in": 17, "group_out": 49, "batch": 2, "band": 1},
    {"in": (6, 6), "p": (2, 2, 2, 2), "group_in": 40, "group_out": 64},
    {"in": (8, 3), "p": (0, 1, 2, 0), "group_in": 70, "group_out": 70, "by_channels": 1},
    {"in": (5, 5), "p": (1, 1, 1, 1), "group_in": 64, "group_out": 130, "by_channels": 1},
    {"in": (2, 9), "p": (1, 0, 1, 0), "group_in": 33, "group_out": 15, "batch": 3},
)


def winograds(rng: Generator) -> Iterator[Arguments]:
    """All of SHAPES: fixed point, other forms, residual sums, accumulators, extreme codes."""
    for shape in SHAPES:
        for window in ((0, 15, 0), (40, 55, 55), (0, 63, 21), (192, 255, 192)):
            yield _winograd(rng, {**shape, "fixed": 1}, window)
            yield _winograd(rng, {**shape, "fixed": 1, "extreme": 1}, window)
        yield _winograd(rng, {**shape, "fixed": 1, "sum": 1}, (0, 15, 3))
        yield _winograd(rng, shape, (100, 130, 130))
        yield _winograd(rng, {**shape, "real_acc": 1}, (7, 70, 7))


def _winograd(rng: Generator, shape: Mapping[str, Any], window: tuple[int, int, int]) -> Arguments:
    """`window` holds the lowest code, the highest, and the zero point."""
    r = {"batch": 1, "group_in": 1, "group_out": 1, "by_channels": 0, "sum": 0, **shape}
    sizes, pads = r.get("in", (3, 3)), r.get("p", (0,) * 4)
    outs = [sizes[i] + pads[i] + pads[i + 2] - 2 for i in range(2)]
    lo, hi, zero = window
    weights, pixels = (r["group_out"], 3, 3, r["group_in"]), (r["batch"], *sizes, r["group_in"])
    x, weight = rng.integers(lo, hi + 1, pixels), rng.integers(-8, 8, weights).astype(np.int16)
    if r.get("extreme"):
        x = np.where(rng.integers(0, 2, pixels), lo, hi)
        weight = np.where(rng.integers(0, 4, weights), -14, 14).astype(np.int16)
    height, width = (-(-n // winograd.OUT) for n in outs)
    band, run = min(r.get("band", 3), height), -(-r["group_in"] // conv_u8s8.STEP) * conv_u8s8.STEP
    line = winograd.OUT * (width + 1) * r["group_in"]
    u, offsets = winograd.transformed(weight), winograd.offsets_of(lo, hi)
    scratch = winograd.scratch_bytes(band * width, run, (2 * band + 2) * line)
    scratch = -(-scratch // 64) * 64
    size = r["batch"] * outs[0] * outs[1] * r["group_out"]
    arena, consts, row = Bytes(), Bytes(), np.zeros(requantize.ROW, np.int64)
    columns = {
        **{name: r[name] for name in ("batch", "group_in", "group_out", "by_channels")},
        "groups": 1,
        "x": arena.add(x.astype(np.uint8).ravel()),
        "y": arena.reserve(-(-(4 * size + 16) // 64) * 64),
        "addend": arena.add(rng.integers(0, 256, size + 16).astype(np.uint8)) if r["sum"] else -1,
        "scratch": arena.reserve(scratch * THREADS + 64),
        "scratch_bytes": scratch,
        "weight": consts.add(conv_u8s8.pack(u[np.newaxis])),
        "taps": 0,
        "n_taps": winograd.POSITIONS,
        "run_steps": run // conv_u8s8.STEP,
        "x_zero": zero,
        "copied": 1,
        "band": band,
        "line_bytes": line,
        "plane_lines": 2 * band + 2,
        "reach_h": 3,
        "fixed": r.get("fixed", 0),
        "real_acc": r.get("real_acc", 0),
        "sum_params": consts.add(sum_params(rng)),
        "corrections": consts.add(winograd.corrections_of(u, offsets)),
        "position_bytes": winograd.position_bytes(band * width, run),
        "centre": offsets[0],
        "side": offsets[1],
        **dict.fromkeys(("chunk", "chain"), 0),
        "step_table": -1,
        **{f"x_{a}": n for a, n in zip("nhw", strides_of(sizes, r["group_in"]), strict=True)},
        **{f"y_{a}": n for a, n in zip("nhw", strides_of(outs, r["group_out"]), strict=True)},
    }
    for name, numbers in (("in", sizes), ("out", outs), ("s", (1, 1)), ("p", pads)):
        columns |= {f"{name}_h": numbers[0], f"{name}_w": numbers[1]}
    add_ending(rng, row, consts, columns, r["group_out"], 9 * r["group_in"])
    row[1 : 1 + len(winograd.COLUMNS)] = [columns[name] for name in winograd.COLUMNS]
    arena.reserve(64)
    return row, arena.array(), consts.array(), 0, 1


def winograd_work(rng: Generator) -> Arguments:
    """64 channels, 28x28; time is for a multiplication of the plain convolution."""
    shape = {"group_in": 64, "group_out": 64, "in": (28, 28), "p": (1, 1, 1, 1), "band": 8}
    return _winograd(rng, {**shape, "fixed": 1}, (0, 15, 0))

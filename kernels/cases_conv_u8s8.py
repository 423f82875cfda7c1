"""Arguments for conv_u8s8.py and conv_amx.py: rows as a plan lays them out, from shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import conv_amx, conv_u8s8, epilogue, requantize, target
from onnxptq.kernels.cases_requantize import Bytes, add_requant, forms_of, typical_scales

Arguments = tuple[Any, ...]
Generator = np.random.Generator

THREADS = 3
"""Cases have scratch for so many."""
WORK = 28 * 28 * 64 * 576

# What differs from a 1x1 convolution of one pixel, one channel in and out, no pads.
SHAPES: tuple[Mapping[str, Any], ...] = (
    {},
    {"group_in": 3, "group_out": 5, "in": (4, 5)},
    {"group_in": 40, "group_out": 49, "in": (3, 5), "batch": 2, "by_channels": 1},
    {"group_in": 64, "group_out": 64, "in": (5, 5)},
    {"group_in": 8, "group_out": 130, "in": (2, 7), "by_channels": 1},
    {"group_in": 3, "group_out": 20, "in": (7, 9), "k": (3, 3), "s": (2, 2)},
    {"group_in": 3, "group_out": 16, "in": (9, 8), "k": (7, 7), "s": (2, 2), "p": (3, 3, 3, 3)},
    {"group_in": 5, "group_out": 35, "in": (6, 5), "k": (3, 3), "p": (1, 0, 0, 2), "band": 2},
    {"group_in": 4, "group_out": 33, "in": (5, 8), "k": (3, 3), "p": (1, 1, 1, 1), "batch": 2},
    {"group_in": 16, "group_out": 16, "in": (9, 7), "k": (3, 3), "d": (2, 3), "p": (2, 3, 2, 3)},
    {"groups": 3, "group_in": 2, "group_out": 11, "in": (5, 4), "k": (2, 3), "batch": 3},
    {"groups": 2, "group_in": 24, "group_out": 24, "in": (5, 5), "k": (3, 3), "p": (1, 1, 1, 1)},
    {"group_in": 8, "group_out": 24, "in": (6, 6), "k": (3, 3), "s": (3, 2), "p": (2, 2, 2, 2)},
    {"group_in": 64, "group_out": 17, "in": (3, 6), "k": (3, 3)},
    # Windows that lie wholly outside, and a dilated one that is wider than x.
    {"group_in": 2, "group_out": 4, "in": (2, 2), "k": (1, 1), "p": (3, 3, 3, 3)},
    {"group_in": 3, "in": (2, 3), "k": (2, 2), "d": (4, 5), "p": (3, 4, 3, 4)},
    {"in": (1, 1), "k": (1, 1), "s": (1, 5), "p": (0, 3, 0, 0)},
)

SUMS = (
    ((2**30, -(2**29) - 7), 3 << 33, 34, (7, 250)),
    ((2**27 + 5, 2**28 + 1), -(1 << 33), 29, (0, 255)),
    ((-0x7FFF8000, 0x7FFF7FFF), 0x8000, 47, (0, 255)),
)
"""Multipliers, rounding, shift and limits of residual sums."""


LEVELS = ((255, 128), (255, 64), (255, 30), (255, 8), (15, 128), (15, 8), (3, 2))
"""Highest code and what weights stay below: all lengths of chains, with and without split steps."""


def convs(rng: Generator) -> Iterator[Arguments]:
    """All of SHAPES: fixed point, the other forms, residual sums, accumulators, extreme codes."""
    yield from _convs(rng, tiles=False)


def tile_convs(rng: Generator) -> Iterator[Arguments]:
    """The same for conv_amx; none where this process may not use tiles."""
    if target.allow_tiles():
        yield from _convs(rng, tiles=True)


def _convs(rng: Generator, *, tiles: bool) -> Iterator[Arguments]:
    for shape in SHAPES:
        zero = int(rng.choice((0, 255, 100)))
        yield _conv(rng, {**shape, "fixed": 1}, zero, tiles=tiles)
        yield _conv(rng, {**shape, "fixed": 1, "sum": 1}, zero, tiles=tiles)
        yield _conv(rng, shape, zero, tiles=tiles)
        yield _conv(rng, {**shape, "real_acc": 1}, zero, tiles=tiles)
        yield _conv(rng, {**shape, "fixed": 1, "extreme": 1}, 255, tiles=tiles)
        for most, weights in LEVELS:
            low = {"most": most, "weights": weights, "real_acc": 1}
            yield _conv(rng, {**shape, **low}, most, tiles=tiles)


def _conv(rng: Generator, shape: Mapping[str, Any], zero: int, *, tiles: bool) -> Arguments:
    kernel_file = conv_amx if tiles else conv_u8s8
    r = {"batch": 1, "groups": 1, "group_in": 1, "group_out": 1, "by_channels": 0, **shape}
    sizes, kernel = r.get("in", (1, 1)), r.get("k", (1, 1))
    steps, gaps, pads = r.get("s", (1, 1)), r.get("d", (1, 1)), r.get("p", (0,) * 4)
    outs = [
        (sizes[i] + pads[i] + pads[i + 2] - (kernel[i] - 1) * gaps[i] - 1) // steps[i] + 1
        for i in range(2)
    ]
    channels, filters = r["groups"] * r["group_in"], r["groups"] * r["group_out"]
    copied = int(any(pads) or (tiles and steps != (1, 1)))
    band = min(r.get("band", 4), outs[0])
    width = (outs[1] - 1) * steps[1] + (kernel[1] - 1) * gaps[1] + 1
    line = -(-width // steps[1]) * steps[1] * channels
    reach = (kernel[0] - 1) * gaps[0] + 1
    plane = -(-((band - 1) * steps[0] + reach) // steps[0])
    joined = r["groups"] == 1 and gaps[1] == 1
    weight = _weights(rng, r, kernel)
    taps = [
        _tap(h * gaps[0], w * gaps[1], (copied, steps[0], plane, line, sizes[1]), channels)
        for h in range(kernel[0])
        for w in ((0,) if joined else range(kernel[1]))
    ]
    runs = weight.reshape(r["groups"], r["group_out"], len(taps), -1)
    most = r.get("most", 255)
    x = rng.integers(0, most + 1, r["batch"] * sizes[0] * sizes[1] * channels)
    x = np.full_like(x, most) if r.get("extreme") else x
    size = r["batch"] * outs[0] * outs[1] * filters
    arena, consts, row = Bytes(), Bytes(), np.zeros(requantize.ROW, np.int64)
    scratch = _scratch_bytes(band, (line, plane, sizes[1], outs[1]), steps, channels, tiles=tiles)
    columns = {
        **{name: r[name] for name in ("batch", "groups", "group_in", "group_out", "by_channels")},
        "x": arena.add(x.astype(np.uint8)),
        "y": arena.reserve(-(-(4 * size + 16) // 64) * 64),
        "addend": arena.add(rng.integers(0, 256, size + 16).astype(np.uint8)),
        "scratch": arena.reserve(scratch * THREADS + 64),
        "scratch_bytes": scratch,
        **_packed(consts, runs, np.array(taps, np.int64), most, tiles=tiles),
        "taps": consts.add(np.array(taps, np.int64)),
        "n_taps": len(taps),
        "run_steps": -(-runs.shape[-1] // kernel_file.STEP),
        "x_zero": zero,
        "copied": copied,
        "band": band,
        "chunk": 96 if rng.integers(0, 2) else 10**6,
        "line_bytes": line,
        "plane_lines": plane,
        "reach_h": reach,
        "fixed": r.get("fixed", 0),
        "real_acc": r.get("real_acc", 0),
        "sum_params": consts.add(sum_params(rng)),
        **{f"x_{axis}": n for axis, n in zip("nhw", strides_of(sizes, channels), strict=True)},
        **{f"y_{axis}": n for axis, n in zip("nhw", strides_of(outs, filters), strict=True)},
    }
    columns["addend"] = columns["addend"] if r.get("sum") else -1
    for name, numbers in (("in", sizes), ("out", outs), ("s", steps), ("p", pads)):
        columns |= {f"{name}_h": numbers[0], f"{name}_w": numbers[1]}
    add_ending(rng, row, consts, columns, filters, weight[0].size // r["group_out"])
    row[1 : 1 + len(conv_u8s8.COLUMNS)] = [columns[name] for name in conv_u8s8.COLUMNS]
    arena.reserve(64 + conv_amx.PIXELS * steps[1] * channels)
    return row, arena.array(), consts.array(), 0, 1


def sum_params(rng: Generator) -> npt.NDArray[np.int64]:
    """One of SUMS as the epilogue reads it."""
    found = epilogue.sum_params_of(*SUMS[int(rng.integers(0, len(SUMS)))])
    assert found is not None
    return found


def _scratch_bytes(
    band: int,
    lines: tuple[int, int, int, int],
    steps: tuple[int, int],
    channels: int,
    *,
    tiles: bool,
) -> int:
    line, plane, width, out_width = lines
    if not tiles:
        size = conv_u8s8.scratch_bytes(band * out_width, line * plane * steps[0])
    else:
        pitch = max(line // (steps[1] * channels), width)
        pixel = steps[1] * channels
        size = conv_amx.scratch_bytes(band * pitch, line * plane * steps[0], pixel)
    return -(-size // 64) * 64


def _weights(
    rng: Generator, r: Mapping[str, Any], kernel: tuple[int, int]
) -> npt.NDArray[np.int16]:
    sizes = (r["groups"], r["group_out"], *kernel, r["group_in"])
    if r.get("extreme"):
        return np.full(sizes, 127, np.int16)
    if "sigma" in r:
        return np.clip(np.rint(rng.normal(0, r["sigma"], sizes)), -127, 127).astype(np.int16)
    most = r.get("weights", 128)
    return rng.integers(-most, most, sizes).astype(np.int16)


def _packed(
    consts: Bytes,
    runs: npt.NDArray[np.int16],
    taps: npt.NDArray[np.int64],
    most: int,
    *,
    tiles: bool,
) -> dict[str, int]:
    """Columns of the weights, for codes of 0 to `most`."""
    if tiles or not conv_u8s8.BY_STEPS:
        pack = conv_amx.pack if tiles else conv_u8s8.pack
        return {"weight": consts.add(pack(runs)), "chain": 0, "step_table": -1}
    packed = conv_u8s8.pack_steps(runs, taps, (0, most))
    weight, steps = consts.add(packed.weights), consts.add(packed.table())
    return {"weight": weight, "chain": packed.chain, "step_table": steps}


def _tap(down: int, right: int, layout: tuple[int, int, int, int, int], channels: int) -> int:
    copied, step, plane, line, width = layout
    if copied:
        return (down % step * plane + down // step) * line + right * channels
    return (down * width + right) * channels


def strides_of(sizes: tuple[int, int] | list[int], channels: int) -> tuple[int, int, int]:
    """Of images, lines and pixels."""
    return sizes[0] * sizes[1] * channels, sizes[1] * channels, channels


def add_ending(
    rng: Generator,
    row: npt.NDArray[np.int64],
    consts: Bytes,
    columns: dict[str, int],
    filters: int,
    k: int,
) -> None:
    """Requantization: all fixed point where the row says so, else all three forms."""
    forms = forms_of(rng, filters) if not columns["fixed"] else np.zeros(filters, np.uint8)
    limits = ((0, 255, 0), (0, 255, 255), (3, 18, 7))[int(rng.integers(0, 3))]
    scales = typical_scales(rng, filters, k)
    add_requant(row, consts, scales, limits, forms)
    block = consts.array()

    def numbers(column: int, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
        size = filters * np.dtype(dtype).itemsize
        return block[row[column] : row[column] + size].view(dtype)

    bias = rng.integers(-20000, 20000, filters).astype(np.int32)
    found = (
        bias,
        numbers(requantize.MULTIPLIER, np.int32),
        numbers(requantize.ROUNDING, np.int64),
        np.maximum(numbers(requantize.SHIFT, np.int64), epilogue.LEAST_SHIFT),
    )
    outs = columns["group_out"]
    params = [
        epilogue.params_of(*(array[first : first + outs] for array in found))
        for first in range(0, filters, outs)
    ]
    columns["params"] = consts.add(np.concatenate(params))


def layer(
    rng: Generator, size: int, channels: int, levels: Mapping[str, Any], *, tiles: bool = False
) -> Arguments:
    """A 3x3 layer of a square image; `levels` says what codes and weights are like."""
    shape = {"in": (size, size), "k": (3, 3), "p": (1, 1, 1, 1), "band": size, "fixed": 1}
    shape |= {"group_in": channels, "group_out": channels, **levels}
    return _conv(rng, shape, 0, tiles=tiles)


def conv_work(rng: Generator) -> Arguments:
    """3x3, 64 channels, 28x28; time is for a multiplication."""
    return layer(rng, 28, 64, {})


def tile_conv_work(rng: Generator) -> Arguments:
    """The same for conv_amx."""
    return layer(rng, 28, 64, {}, tiles=True)

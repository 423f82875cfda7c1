"""Convolution of uint8 codes and int8 weights, channels last: no unfolding, weights packed ahead.

A block of output pixels times up to 64 channels stays in registers while K is walked through. The
pixels of a block may lie anywhere, so none is computed for nothing; where x has a border, the lines
that are needed are copied to scratch with it, so that taps beside each other are one run of bytes.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import epilogue, maddubs, requantize, target
from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.requantize import requantize_row, requantize_row_naive
from onnxptq.kernels.share import share, share_naive

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

LANES = mk.LANES
UNROLL = 2
STEP = 4 * UNROLL
"""Bytes of a run that a step takes."""
BLOCK = 64
"""Channels whose weights `pack` puts together."""
VECTORS = BLOCK // LANES
PIXELS = (12, 12, 8, 6)
"""Pixels of a block of 1, 2, 3, 4 vectors: as many as registers allow."""
MOST_PIXELS = max(PIXELS)
BY_STEPS = target.HAS_AVX2 and not target.HAS_VNNI
"""Whether rows have their weights from maddubs.py, not from `pack`."""
UNIT = LANES if BY_STEPS else BLOCK
"""Channels that are worked on together."""
AHEAD_LINES = 3
"""Cache lines that a step of `add_run` asks for ahead."""

COLUMNS = (
    *("x", "y", "weight", "params"),  # offsets; params: epilogue.params_of of each group
    *("taps", "n_taps", "run_steps"),  # i64 [n_taps], bytes from a pixel's first; steps of a run
    *("batch", "groups", "group_in", "group_out"),
    *("in_h", "in_w", "out_h", "out_w", "s_h", "s_w", "p_h", "p_w"),
    *("x_n", "x_h", "x_w", "y_n", "y_h", "y_w"),
    "x_zero",
    "band",  # output lines whose places and copy are made at a time
    "chunk",  # pixels that all blocks of channels go over before the next ones
    "copied",  # 1: lines are copied, with a border of x_zero
    *("line_bytes", "plane_lines", "reach_h"),  # of the copy; lines that a window reaches over
    "by_channels",  # 1: parts of a row share the blocks of channels, 0: the lines
    *("scratch", "scratch_bytes"),
    *("real_acc", "fixed"),  # fixed: all channels are FIXED_POINT and fit 32 bits
    *("addend", "sum_params"),  # of a residual sum with the layout of y; -1: none
    *("chain", "step_table"),  # of maddubs.Packed, where BY_STEPS; ignored elsewhere
)
# fmt: off
(
    X, Y, WEIGHT, PARAMS, TAPS, N_TAPS, RUN_STEPS, BATCH, GROUPS, GROUP_IN, GROUP_OUT,
    IN_H, IN_W, OUT_H, OUT_W, S_H, S_W, P_H, P_W, X_N, X_H, X_W, Y_N, Y_H, Y_W, X_ZERO,
    BAND, CHUNK, COPIED, LINE_BYTES, PLANE_LINES, REACH_H, BY_CHANNELS, SCRATCH, SCRATCH_BYTES,
    REAL_ACC, FIXED, ADDEND, SUM_PARAMS, CHAIN, STEP_TABLE,
) = range(1, 1 + len(COLUMNS))
# fmt: on

ACC_BYTES = 4 * LANES * VECTORS * MOST_PIXELS
TOGETHER = ACC_BYTES // (4 * LANES)
"""Pixels whose sums of 16 channels wait for the epilogue."""


def scratch_bytes(band_pixels: int, copy_bytes: int) -> int:
    """Scratch of a part: a tile of accumulators, two tables of places, the copied lines."""
    table = -(-8 * (band_pixels + MOST_PIXELS) // 64) * 64
    return ACC_BYTES + 2 * table + -(-copy_bytes // 64) * 64 + 64


def filled(runs: npt.NDArray[np.int16], step: int) -> npt.NDArray[np.int8]:
    """Weights of runs made full steps, of channels made full vectors, by zeros."""
    groups, outs, taps, run = runs.shape
    sizes = (groups, -(-outs // LANES) * LANES, taps, -(-run // step) * step)
    full = np.zeros(sizes, np.int8)
    full[:, :outs, :, :run] = runs
    return full


def pack(runs: npt.NDArray[np.int16]) -> npt.NDArray[np.int8]:
    """Weights in the order in which the kernel reads them, filled up with zeros.

    Args:
        runs: Weights of each tap's run of bytes, within -128 .. 127,
            [groups, group_out, n_taps, run].

    Returns:
        Flat [groups][blocks of 64 channels][n_taps][run / 4][channels of the block][4].
    """
    full = filled(runs, STEP)
    groups, wide, taps, run = full.shape
    fours = full.reshape(groups, wide, taps, run // 4, 4).transpose(0, 2, 3, 1, 4)
    parts = [group[:, :, i : i + BLOCK] for group in fours for i in range(0, wide, BLOCK)]
    return np.concatenate([np.ascontiguousarray(part).ravel() for part in parts])


def pack_steps(runs: npt.NDArray[np.int16], taps: I64, codes: tuple[int, int]) -> maddubs.Packed:
    """The same where BY_STEPS, for codes of a range.

    Args:
        runs: As for `pack`.
        taps: Where each tap's run begins, in bytes from a pixel's first, [n_taps].
        codes: Lowest and highest code that can occur, those of borders included.
    """
    return maddubs.pack(filled(runs, maddubs.STEP), taps, codes)


def unpack_naive(row: dict[str, int], consts: U8) -> npt.NDArray[np.int64]:
    """What was packed, [groups, group_out, n_taps, run]; the run as long as steps make it."""
    outs, taps, run = row["group_out"], row["n_taps"], row["run_steps"] * STEP
    wide = -(-outs // LANES) * LANES
    size = row["groups"] * wide * taps * run
    flat = consts[row["weight"] : row["weight"] + size].view(np.int8).astype(np.int64)
    groups: list[npt.NDArray[np.int64]] = []
    for group in flat.reshape(row["groups"], -1):
        parts: list[npt.NDArray[np.int64]] = []
        for first in range(0, wide, BLOCK):
            channels = min(BLOCK, wide - first)
            part = group[first * taps * run : (first + channels) * taps * run]
            part = part.reshape(taps, run // 4, channels, 4).transpose(2, 0, 1, 3)
            parts.append(part.reshape(channels, taps, run))
        groups.append(np.concatenate(parts)[:outs])
    return np.stack(groups)


def blocks_of(
    weight: npt.NDArray[np.int64], taps: I64, size: int
) -> list[tuple[I64, npt.NDArray[np.int64]]]:
    """Taps [n] and weights [channels, n, run] of each block of `size` channels of a group."""
    firsts = range(0, weight.shape[1], size)
    return [(taps, group[first : first + size]) for group in weight for first in firsts]


def taps_naive(row: dict[str, int], consts: U8) -> I64:
    """Where the taps of a row are."""
    return consts[row["taps"] : row["taps"] + 8 * row["n_taps"]].view(np.int64)


def conv_u8s8_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `conv_u8s8`: one pixel after the other, one tap after the other."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    if BY_STEPS:
        each = -(-r["group_out"] // LANES)
        table, weights = consts[r["step_table"] :], consts[r["weight"] :]
        blocks = maddubs.unpack_naive(r["groups"] * each, table, weights)
        outs = [min(LANES, r["group_out"] - i % each * LANES) for i in range(len(blocks))]
        blocks = [(taps, w[:count]) for (taps, w), count in zip(blocks, outs, strict=True)]
    else:
        blocks = blocks_of(unpack_naive(r, consts), taps_naive(r, consts), BLOCK)
    conv_naive(row, arena, consts, blocks, (UNIT, thread, n_threads))


def conv_naive(
    row: I64,
    arena: U8,
    consts: U8,
    weights: Sequence[tuple[I64, npt.NDArray[np.int64]]],
    part: tuple[int, int, int],
) -> None:
    """Specification of both kernels with this row.

    Args:
        row: The row.
        arena: Changed in place.
        consts: Holds the numbers of channels.
        weights: Taps and weights of each block of channels, as `blocks_of` gives them.
        part: Channels of a block, which part to compute, number of parts.
    """
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    size, thread, n_threads = part
    units = list(np.ndindex(r["groups"], -(-r["group_out"] // size)))
    blocks = dict(zip(units, weights, strict=True))
    lines = list(np.ndindex(r["batch"], r["out_h"]))
    if r["by_channels"]:
        units = units[slice(*share_naive(len(units), thread, n_threads))]
    else:
        lines = lines[slice(*share_naive(len(lines), thread, n_threads))]
    places = {unit: _places_naive(r, taps) for unit, (taps, _) in blocks.items()}
    for image, h in lines:
        x, step = _lines_naive(r, arena, image, h)
        for w, (group, block) in itertools.product(range(r["out_w"]), units):
            start, channels = w * step + group * r["group_in"], blocks[group, block][1]
            run = channels.shape[-1]
            runs = [x[start + at : start + at + run] for at in places[group, block]]
            acc = (channels * np.stack(runs).astype(np.int64)).sum(axis=(1, 2))
            write_naive(row, arena, consts, acc, (image, h, w), group, block * size)


def _places_naive(r: dict[str, int], taps: I64) -> list[int]:
    """Where taps are in what `_lines_naive` gives."""
    if not r["copied"]:
        return taps.tolist()
    width = _width_naive(r) * r["groups"] * r["group_in"]
    places: list[int] = []
    for tap in taps.tolist():
        slot, right = divmod(tap, r["line_bytes"])
        parity, down = divmod(slot, r["plane_lines"])
        places.append((down * r["s_h"] + parity) * width + right)
    return places


def _width_naive(r: dict[str, int]) -> int:
    """Pixels of a line of the whole image with its border."""
    return r["line_bytes"] // (r["groups"] * r["group_in"]) + r["in_w"] + r["p_w"]


def _lines_naive(r: dict[str, int], arena: U8, image: int, h: int) -> tuple[U8, int]:
    """Bytes from the first pixel of an output line on, and from a pixel to the next."""
    if not r["copied"]:
        start = r["x"] + image * r["x_n"] + h * r["s_h"] * r["x_h"]
        return arena[start:], r["s_w"] * r["x_w"]
    channels, width = r["groups"] * r["group_in"], _width_naive(r)
    below = r["out_h"] * r["s_h"] + r["reach_h"]
    bordered = np.full((below, width, channels), r["x_zero"])
    for y in range(r["in_h"]):
        if y + r["p_h"] < below:
            start = r["x"] + image * r["x_n"] + y * r["x_h"]
            pixels = arena[start : start + r["in_w"] * channels].reshape(-1, channels)
            bordered[y + r["p_h"], r["p_w"] : r["p_w"] + r["in_w"]] = pixels
    behind = np.zeros(width * channels + 64)  # runs are read in whole steps
    flat = np.concatenate([bordered[h * r["s_h"] :].ravel(), behind])
    return flat.astype(np.uint8), r["s_w"] * channels


def write_naive(
    row: I64, arena: U8, consts: U8, acc: I64, pixel: tuple[int, int, int], group: int, first: int
) -> None:
    """Sums of some channels of a pixel to y, by the numbers that the form at hand reads."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    place = sum(i * r[f"y_{axis}"] for i, axis in zip(pixel, "nhw", strict=True))
    channel = group * r["group_out"] + first
    each = -(-r["group_out"] // LANES)
    for i, total in enumerate(acc.tolist()):
        block, lane = divmod(first + i, LANES)
        at = r["params"] + (group * each + block) * epilogue.PARAMS_BYTES
        params = consts[at : at + epilogue.PARAMS_BYTES]
        bias = int(params[: 4 * LANES].view(np.int32)[lane])
        sums = np.array([total + bias]).astype(np.int32)
        y = r["y"] + place + channel + i
        if r["real_acc"]:
            start = r["y"] + 4 * (place + channel + i)
            arena[start : start + 4] = sums.view(np.uint8)
        elif r["fixed"]:
            limits = int(row[requantize.LO]), int(row[requantize.HI])
            arena[y] = epilogue.code_naive(params, lane, total, limits)
            if r["addend"] >= 0:
                numbers = consts[r["sum_params"] : r["sum_params"] + epilogue.SUM_BYTES]
                other = int(arena[r["addend"] + y - r["y"]])
                arena[y] = epilogue.sum_naive(numbers.view(np.int64), int(arena[y]), other)
        else:
            requantize_row_naive(sums, channel + i, 1, arena, y, 1, row, consts)


def add_run(
    builder: mk.Builder,
    vectors: int,
    starts: Sequence[mk.Vector],
    steps: mk.Vector,
    carried: Sequence[mk.Vector],
    ahead: mk.Vector | None = None,
) -> Sequence[mk.Vector]:
    """Add the products of a run of bytes to the sums of a block, in a microkernel.

    Args:
        builder: Where code goes.
        vectors: Of channels.
        starts: Addresses of each pixel's run.
        steps: How many, of STEP bytes.
        carried: Sums of each pixel and vector, and the address of the run's weights.
        ahead: How far behind the weights of a step cache lines are that will be needed later.

    Returns:
        The same for the next run.
    """

    def step(
        builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        *sums, w = carried
        run = builder.mul(turn, mk.number(STEP))
        if ahead is not None:
            for i in range(AHEAD_LINES):
                mk.prefetch(builder, mk.at(builder, builder.add(w, ahead), 64 * i))
        for u in range(UNROLL):
            rows = [
                mk.load(builder, mk.at(builder, w, 64 * (u * vectors + v)), mk.BYTES)
                for v in range(vectors)
            ]
            for i, start in enumerate(starts):
                at = mk.at(builder, builder.add(start, run), 4 * u)
                codes = mk.splat(builder, mk.load(builder, at, mk.I32), mk.ACC)
                codes = builder.bitcast(codes, mk.BYTES)
                for v in range(vectors):
                    j = i * vectors + v
                    sums[j] = mk.dot4(builder, sums[j], codes, rows[v])
        return [*sums, mk.at(builder, w, 64 * UNROLL * vectors)]

    return mk.loop(builder, steps, carried, step)


def _block(vectors: int) -> Callable[..., None]:
    """Microkernel of a block of so many vectors of channels."""
    pixels = PIXELS[vectors - 1]

    @mk.microkernel("places", "shift", "taps", "n_taps", "steps", "weight", "acc")
    def multiply(
        builder: mk.Builder,
        places: mk.Vector,
        shift: mk.Vector,
        taps: mk.Vector,
        n_taps: mk.Vector,
        steps: mk.Vector,
        weight: mk.Vector,
        acc: mk.Vector,
    ) -> None:
        first = [
            builder.add(mk.load(builder, mk.at(builder, places, 8 * i), mk.I64), shift)
            for i in range(pixels)
        ]
        zero = mk.constant(0, mk.ACC)

        def tap(
            builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
        ) -> Sequence[mk.Vector]:
            offset = mk.load(builder, builder.add(taps, builder.mul(turn, mk.number(8))), mk.I64)
            starts = [builder.add(address, offset) for address in first]
            return add_run(builder, vectors, starts, steps, carried)

        *sums, _ = mk.loop(builder, n_taps, [*[zero] * (pixels * vectors), weight], tap)
        for j, vector in enumerate(sums):
            mk.store(builder, vector, mk.at(builder, acc, 64 * j))

    return multiply


_block_1, _block_2, _block_3, _block_4 = (_block(vectors) for vectors in (1, 2, 3, 4))


@lean_jit
def multiply_1(
    places: int, shift: int, taps: int, n_taps: int, steps: int, w: int, acc: int
) -> None:
    """Write the sums of a block of one vector of channels to address `acc`."""
    _block_1(places, shift, taps, n_taps, steps, w, acc)


@lean_jit
def multiply_2(
    places: int, shift: int, taps: int, n_taps: int, steps: int, w: int, acc: int
) -> None:
    """Write the sums of a block of two vectors of channels to address `acc`."""
    _block_2(places, shift, taps, n_taps, steps, w, acc)


@lean_jit
def multiply_3(
    places: int, shift: int, taps: int, n_taps: int, steps: int, w: int, acc: int
) -> None:
    """Write the sums of a block of three vectors of channels to address `acc`."""
    _block_3(places, shift, taps, n_taps, steps, w, acc)


@lean_jit
def multiply_4(
    places: int, shift: int, taps: int, n_taps: int, steps: int, w: int, acc: int
) -> None:
    """Write the sums of a block of four vectors of channels to address `acc`."""
    _block_4(places, shift, taps, n_taps, steps, w, acc)


@lean_jit
def finish(
    row: I64,
    arena: U8,
    consts: U8,
    acc: int,
    rows: int,
    places: int,
    group: int,
    first: int,
    outs: int,
) -> None:
    """Write a tile of accumulators to y: channels first .. first + outs - 1 of a group.

    Args:
        row: The row.
        arena: Holds the tile at `acc` and the i64 offsets into y at `places`; both go on up to a
            multiple of four rows.
        consts: Holds the numbers of channels.
        acc: Offset of the tile, i32 [rows, outs made a multiple of 16].
        rows: Pixels.
        places: Offset of the table; negative ones are left out.
        group: Which group the channels are of.
        first: First channel in the group, a multiple of 16.
        outs: How many channels, at most 64.
    """
    each = (row[GROUP_OUT] + LANES - 1) // LANES
    params = row[PARAMS] + (group * each + first // LANES) * epilogue.PARAMS_BYTES
    channel = group * row[GROUP_OUT] + first
    if row[REAL_ACC] != 0:
        _write_sums(row, arena, consts, acc, rows, places, params, channel, outs)
        return
    if row[FIXED] == 0:
        _finish_slowly(row, arena, consts, acc, rows, places, params, channel, outs)
        return
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    stride = 64 * ((outs + LANES - 1) // LANES)
    tile, table, full = memory + acc, memory + places, outs // LANES
    at, params = 0, numbers + params
    while at < full:
        count = 4 if full - at >= 4 else 2 if full - at >= 2 else 1
        _vectors(row, arena, consts, (tile + 64 * at, stride, rows, table), params, channel, count)
        at += count
        params += count * epilogue.PARAMS_BYTES
        channel += count * LANES
    if outs > LANES * full:
        addend = memory + row[ADDEND] + channel if row[ADDEND] >= 0 else 0
        sums = numbers + max(row[SUM_PARAMS], 0)
        lo, hi, y = row[requantize.LO], row[requantize.HI], memory + row[Y] + channel
        few = outs - LANES * full
        epilogue.requantize_few(
            tile + 64 * full, stride, rows, table, params, lo, hi, y, addend, sums, few
        )


@lean_jit
def _vectors(
    row: I64,
    arena: U8,
    consts: U8,
    tile: tuple[int, int, int, int],
    params: int,
    channel: int,
    count: int,
) -> None:
    """Full vectors of channels, 1, 2 or 4, of a tile: its address, stride, rows and table."""
    acc, stride, rows, table = tile
    memory = arena.ctypes.data
    lo, hi, y = row[requantize.LO], row[requantize.HI], memory + row[Y] + channel
    if row[ADDEND] < 0:
        if count == 4:
            epilogue.requantize_64(acc, stride, rows, table, params, lo, hi, y)
        elif count == 2:
            epilogue.requantize_32(acc, stride, rows, table, params, lo, hi, y)
        else:
            epilogue.requantize_16(acc, stride, rows, table, params, lo, hi, y)
        return
    addend, sums = memory + row[ADDEND] + channel, consts.ctypes.data + row[SUM_PARAMS]
    if count == 4:
        epilogue.add_64(acc, stride, rows, table, params, lo, hi, y, addend, sums)
    elif count == 2:
        epilogue.add_32(acc, stride, rows, table, params, lo, hi, y, addend, sums)
    else:
        epilogue.add_16(acc, stride, rows, table, params, lo, hi, y, addend, sums)


@lean_jit
def _finish_slowly(
    row: I64,
    arena: U8,
    consts: U8,
    acc: int,
    rows: int,
    places: int,
    params: int,
    channel: int,
    outs: int,
) -> None:
    """`finish` for all forms of requantize.py."""
    stride = 64 * ((outs + LANES - 1) // LANES)
    table = arena[places : places + 8 * rows].view(np.int64)
    for i in range(rows):
        if table[i] < 0:
            continue
        sums = arena[acc + i * stride : acc + i * stride + 4 * outs].view(np.int32)
        for o in range(outs):
            at = params + o // LANES * epilogue.PARAMS_BYTES + 4 * (o % LANES)
            sums[o] = np.int32(sums[o] + consts[at : at + 4].view(np.int32)[0])
        requantize_row(sums, channel, outs, arena, row[Y] + table[i] + channel, 1, row, consts)


@lean_jit
def _write_sums(
    row: I64,
    arena: U8,
    consts: U8,
    acc: int,
    rows: int,
    places: int,
    params: int,
    channel: int,
    outs: int,
) -> None:
    """`finish` for accumulators as they are."""
    vectors = (outs + LANES - 1) // LANES
    memory, numbers = arena.ctypes.data, consts.ctypes.data + params
    for v in range(vectors):
        epilogue.write_sums(
            memory + acc + 64 * v,
            64 * vectors,
            rows,
            memory + places,
            numbers + v * epilogue.PARAMS_BYTES,
            memory + row[Y] + 4 * (channel + LANES * v),
            min(LANES, outs - LANES * v),
        )


@lean_jit
def copy_lines(row: I64, arena: U8, image: int, first: int, lines: int, target: int) -> None:
    """Copy what `lines` output lines from `first` on need of an image, with its border.

    Line i of the bordered image goes to line i // s_h of plane i % s_h, so that the lines of a tap
    lie one after the other for any stride.
    """
    channels = row[GROUPS] * row[GROUP_IN]
    memory, border, width = arena.ctypes.data, row[X_ZERO], row[LINE_BYTES]
    left = min(row[P_W] * channels, width)
    inside = min(row[IN_W] * channels, width - left)
    for i in range((lines - 1) * row[S_H] + row[REACH_H]):
        if i % row[S_H] >= row[REACH_H]:
            continue  # between the lines that windows reach
        line = memory + target + ((i % row[S_H]) * row[PLANE_LINES] + i // row[S_H]) * width
        h = first * row[S_H] + i - row[P_H]
        if h < 0 or h >= row[IN_H]:
            mk.fill_bytes(line, border, width)
        else:
            source = memory + row[X] + image * row[X_N] + h * row[X_H]
            mk.fill_bytes(line, border, left)
            mk.copy_bytes(line + left, source, inside)
            mk.fill_bytes(line + left + inside, border, width - left - inside)


@lean_jit
def update_places(
    row: I64, arena: U8, xs: int, ys: int, image: int, first: int, lines: int, start: int
) -> int:
    """Fill the tables of a band's pixels: addresses in x or its copy, offsets in y; their number.

    The last pixel is repeated until a block is full.
    """
    width = row[OUT_W]
    count = lines * width
    x_places = arena[xs : xs + 8 * (count + MOST_PIXELS)].view(np.int64)
    y_places = arena[ys : ys + 8 * (count + MOST_PIXELS)].view(np.int64)
    if row[COPIED] != 0:
        at, x_line, x_step = start, row[LINE_BYTES], row[S_W] * row[GROUPS] * row[GROUP_IN]
    else:
        at = row[X] + image * row[X_N] + first * row[S_H] * row[X_H]
        x_line, x_step = row[S_H] * row[X_H], row[S_W] * row[X_W]
    at += arena.ctypes.data
    to, y_step = image * row[Y_N] + first * row[Y_H], row[Y_W]
    for i in range(lines):
        x_part, y_part = (
            x_places[i * width : (i + 1) * width],
            y_places[i * width : (i + 1) * width],
        )
        for w in range(width):
            x_part[w] = at + w * x_step
            y_part[w] = to + w * y_step
        at += x_line
        to += row[Y_H]
    for i in range(count, count + MOST_PIXELS):
        x_places[i] = x_places[count - 1]
        y_places[i] = y_places[count - 1]
    return count


@lean_jit
def conv_u8s8(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y = codes of sum (x - x_zero) * weight + bias; outside of x counts as 0.

    Channels are the last axis of x and y. The bias in params has x_zero taken off already. Up to
    STEP - 1 bytes behind a pixel's last are read, and count nothing.

    Args:
        row: COLUMNS, then those of requantize.py, [64]. Weight is from `pack`, s8
            [groups][blocks of 64 channels][n_taps][steps * UNROLL][channels of the block][4]; or
            from `maddubs.pack`, where BY_STEPS.
        arena: Holds x, y, scratch of `scratch_bytes`.
        consts: Holds weights, params, taps and requantization.
        thread: Which part to compute.
        n_threads: Number of parts.
    """
    lines = row[BATCH] * row[OUT_H]
    units = row[GROUPS] * ((row[GROUP_OUT] + UNIT - 1) // UNIT)
    first_line, stop_line, first_unit, stop_unit = 0, lines, 0, units
    if row[BY_CHANNELS] != 0:
        first_unit, stop_unit = share(units, thread, n_threads)
        if first_unit == stop_unit:
            return
    else:
        first_line, stop_line = share(lines, thread, n_threads)
    acc = row[SCRATCH] + thread * row[SCRATCH_BYTES]
    table = (8 * (row[BAND] * row[OUT_W] + MOST_PIXELS) + 63) // 64 * 64
    xs, ys = acc + ACC_BYTES, acc + ACC_BYTES + table
    line = first_line
    while line < stop_line:
        image, first = line // row[OUT_H], line % row[OUT_H]
        count = min(row[BAND], stop_line - line, row[OUT_H] - first)
        if row[COPIED] != 0:
            copy_lines(row, arena, image, first, count, ys + table)
        pixels = update_places(row, arena, xs, ys, image, first, count, ys + table)
        for begin in range(0, pixels, row[CHUNK]):
            end = min(begin + row[CHUNK], pixels)
            for unit in range(first_unit, stop_unit):
                _unit(row, arena, consts, unit, (begin, end), acc, xs, ys)
        line += count


@lean_jit
def _unit_by_taps(
    row: I64,
    arena: U8,
    consts: U8,
    unit: int,
    pixels: tuple[int, int],
    acc: int,
    xs: int,
    ys: int,
) -> None:
    """Some pixels of a band, the first and the one behind the last, for one block of channels."""
    blocks = (row[GROUP_OUT] + BLOCK - 1) // BLOCK
    group, first = unit // blocks, unit % blocks * BLOCK
    outs = min(BLOCK, row[GROUP_OUT] - first)
    vectors = (outs + LANES - 1) // LANES
    n_taps, steps = row[N_TAPS], row[RUN_STEPS]
    each = (row[GROUP_OUT] + LANES - 1) // LANES
    channels = (group * each * LANES + first) * n_taps * steps * STEP
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    weight, taps = numbers + row[WEIGHT] + channels, numbers + row[TAPS]
    shift, sums = group * row[GROUP_IN], memory + acc
    size = 6 if vectors == 4 else 8 if vectors == 3 else 12
    for i in range(pixels[0], pixels[1], size):
        places = memory + xs + 8 * i
        if vectors == 4:
            multiply_4(places, shift, taps, n_taps, steps, weight, sums)
        elif vectors == 3:
            multiply_3(places, shift, taps, n_taps, steps, weight, sums)
        elif vectors == 2:
            multiply_2(places, shift, taps, n_taps, steps, weight, sums)
        else:
            multiply_1(places, shift, taps, n_taps, steps, weight, sums)
        finish(row, arena, consts, acc, min(size, pixels[1] - i), ys + 8 * i, group, first, outs)


@lean_jit
def _unit_by_steps(
    row: I64,
    arena: U8,
    consts: U8,
    unit: int,
    pixels: tuple[int, int],
    acc: int,
    xs: int,
    ys: int,
) -> None:
    """The same by maddubs.py; sums of more pixels than it takes at once go on together."""
    blocks = (row[GROUP_OUT] + LANES - 1) // LANES
    group, first = unit // blocks, unit % blocks * LANES
    outs, shift = min(LANES, row[GROUP_OUT] - first), group * row[GROUP_IN]
    starts_bytes = 8 * (row[GROUPS] * blocks + 1)
    starts = consts[row[STEP_TABLE] : row[STEP_TABLE] + starts_bytes].view(np.int64)
    begin, count = starts[unit], starts[unit + 1] - starts[unit]
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    offsets = numbers + row[STEP_TABLE] + starts_bytes + 4 * begin
    weight = numbers + row[WEIGHT] + maddubs.STEP_BYTES * begin
    for i in range(pixels[0], pixels[1], TOGETHER):
        stop = min(i + TOGETHER, pixels[1])
        for j in range(i, i + (stop - i + 3) // 4 * 4, maddubs.PIXELS):
            places, sums = memory + xs + 8 * j, memory + acc + 4 * LANES * (j - i)
            maddubs.multiply(places, shift, offsets, count, row[CHAIN], weight, sums)
        finish(row, arena, consts, acc, stop - i, ys + 8 * i, group, first, outs)


_unit = _unit_by_steps if BY_STEPS else _unit_by_taps

"""Convolution of uint8 codes and int8 weights by tile instructions (AMX), channels last.

A tile has 16 pixels of 64 bytes. Its pixels lie the same distance apart, so a band of output pixels
is walked through in the order of x, or of its copy with a border: between the lines lie pixels that
are computed for nothing and not written. 32 pixels times 32 channels stay in four tiles.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import conv_u8s8 as common
from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

COLUMNS = common.COLUMNS
TILE_ROWS = 16
PIXELS = 2 * TILE_ROWS
BLOCK = 32
"""Channels that are worked on together."""
STEP = 64
"""Bytes of a run that a step takes."""
TILE_BYTES = 1024
ACC_BYTES = 4 * PIXELS * BLOCK
_TILES = mk.ir.IntType(8)


def pack(runs: npt.NDArray[np.int16]) -> npt.NDArray[np.int8]:
    """Weights in the order in which the kernel reads them: tile after tile.

    Args:
        runs: As for `conv_u8s8.pack`.

    Returns:
        Flat [groups][blocks of 32 channels][n_taps][run / 64][vectors of the block][16][16][4].
    """
    full = common.filled(runs, STEP)
    groups, wide, taps, run = full.shape
    lanes = common.LANES
    tiles = full.reshape(groups, wide // lanes, lanes, taps, run // STEP, TILE_ROWS, 4)
    tiles = tiles.transpose(0, 3, 4, 1, 5, 2, 6)
    vectors = BLOCK // lanes
    parts = [
        group[:, :, i : i + vectors] for group in tiles for i in range(0, wide // lanes, vectors)
    ]
    return np.concatenate([np.ascontiguousarray(part).ravel() for part in parts])


def unpack_naive(row: dict[str, int], consts: U8) -> npt.NDArray[np.int64]:
    """What was packed, [groups, group_out, n_taps, run]; the run as long as steps make it."""
    outs, taps, steps = row["group_out"], row["n_taps"], row["run_steps"]
    vectors = -(-outs // common.LANES)
    size = row["groups"] * vectors * taps * steps * TILE_BYTES
    flat = consts[row["weight"] : row["weight"] + size].view(np.int8).astype(np.int64)
    weight = np.zeros((row["groups"], vectors * common.LANES, taps, steps * STEP), np.int64)
    tiles = iter(flat.reshape(-1, TILE_ROWS, common.LANES, 4))
    for group, first in np.ndindex(row["groups"], -(-vectors // 2)):
        for tap, step in np.ndindex(taps, steps):
            for vector in range(2 * first, min(2 * first + 2, vectors)):
                channels = slice(vector * common.LANES, (vector + 1) * common.LANES)
                columns = next(tiles).transpose(1, 0, 2).reshape(common.LANES, STEP)
                weight[group, channels, tap, step * STEP : (step + 1) * STEP] = columns
    return weight[:, :outs]


def conv_amx_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `conv_amx`: that of `conv_u8s8`, whose weights are packed in tiles."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    blocks = common.blocks_of(unpack_naive(r, consts), common.taps_naive(r, consts), BLOCK)
    common.conv_naive(row, arena, consts, blocks, (BLOCK, thread, n_threads))


def scratch_bytes(band_pixels: int, copy_bytes: int, pixel_bytes: int) -> int:
    """Scratch of a part; tiles are read whole, so up to a tile behind the last pixel is read."""
    table = -(-8 * (band_pixels + PIXELS) // 64) * 64
    return ACC_BYTES + table + -(-copy_bytes // 64) * 64 + PIXELS * pixel_bytes + 64


def _tile(number: int) -> mk.Vector:
    return mk.ir.Constant(_TILES, number)


def _pointer(builder: mk.Builder, address: mk.Vector) -> mk.Vector:
    return builder.inttoptr(address, mk.I8.as_pointer())


def _tile_call(builder: mk.Builder, name: str, *arguments: mk.Vector) -> None:
    mk.call(builder, f"llvm.x86.{name}", mk.ir.VoidType(), arguments)


@mk.microkernel("address")
def configure(builder: mk.Builder, address: mk.Vector) -> None:
    """Make all eight tiles 16 rows of 64 bytes; 64 bytes at `address` are written over.

    Source:
        Intel Architecture Instruction Set Extensions Reference, LDTILECFG: palette 1, bytes per row
        from byte 16 on (u16), rows from byte 48 on (u8).
    """
    sizes = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [TILE_ROWS] * 8 + [0] * 8
    mk.store(builder, mk.ir.Constant(mk.BYTES, sizes[:64]), address)
    _tile_call(builder, "ldtilecfg", _pointer(builder, address))


@mk.microkernel()
def release(builder: mk.Builder) -> None:
    """Give the tiles back, so that nobody has to save them."""
    _tile_call(builder, "tilerelease")


_ARGUMENTS = ("x", "pixel", "taps", "n_taps", "steps", "weight", "acc")


def _emit(builder: mk.Builder, values: Sequence[mk.Vector], vectors: int) -> None:
    """Tiles 0 .. 3 hold sums, 4 and 5 pixels, 6 and 7 weights."""
    x, pixel, taps, n_taps, steps, weight, acc = values
    sums = list(itertools.product((0, 1), range(vectors)))
    row_bytes = mk.number(64)
    below = builder.mul(pixel, mk.number(TILE_ROWS))
    for number in range(len(sums)):
        _tile_call(builder, "tilezero", _tile(number))

    def tap(
        builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        offset = mk.load(builder, builder.add(taps, builder.mul(turn, mk.number(8))), mk.I64)
        start = builder.add(x, offset)

        def step(
            builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
        ) -> Sequence[mk.Vector]:
            (w,) = carried
            at = builder.add(start, builder.mul(turn, mk.number(STEP)))
            for v in range(vectors):
                place = _pointer(builder, mk.at(builder, w, TILE_BYTES * v))
                _tile_call(builder, "tileloadd64", _tile(6 + v), place, row_bytes)
            for half in (0, 1):
                place = _pointer(builder, builder.add(at, below) if half else at)
                _tile_call(builder, "tileloadd64", _tile(4 + half), place, pixel)
                for v in range(vectors):
                    tiles = (half * vectors + v, 4 + half, 6 + v)
                    _tile_call(builder, "tdpbusd", *(_tile(number) for number in tiles))
            return [mk.at(builder, w, TILE_BYTES * vectors)]

        return mk.loop(builder, steps, carried, step)

    mk.loop(builder, n_taps, [weight], tap)
    for number, (half, v) in enumerate(sums):
        place = mk.at(builder, acc, 64 * (half * TILE_ROWS * vectors + v))
        stride = mk.number(64 * vectors)
        _tile_call(builder, "tilestored64", _tile(number), _pointer(builder, place), stride)


@mk.microkernel(*_ARGUMENTS)
def _block_1(builder: mk.Builder, *values: mk.Vector) -> None:
    _emit(builder, values, 1)


@mk.microkernel(*_ARGUMENTS)
def _block_2(builder: mk.Builder, *values: mk.Vector) -> None:
    _emit(builder, values, 2)


@lean_jit
def multiply_1(x: int, pixel: int, taps: int, n_taps: int, steps: int, w: int, acc: int) -> None:
    """Write the sums of 32 pixels and 16 channels to address `acc`."""
    _block_1(x, pixel, taps, n_taps, steps, w, acc)


@lean_jit
def multiply_2(x: int, pixel: int, taps: int, n_taps: int, steps: int, w: int, acc: int) -> None:
    """Write the sums of 32 pixels and 32 channels to address `acc`."""
    _block_2(x, pixel, taps, n_taps, steps, w, acc)


@lean_jit
def update_places(
    row: I64, arena: U8, ys: int, image: int, first: int, lines: int, pitch: int
) -> int:
    """Fill the table of a band's pixels in the order of x: offsets in y, -1 between lines.

    Gives the number of pixels; the table goes on with -1 until a block is full.
    """
    width, step = row[common.OUT_W], row[common.Y_W]
    count = (lines - 1) * pitch + width
    places = arena[ys : ys + 8 * (count + PIXELS)].view(np.int64)
    for i in range(lines):
        to = image * row[common.Y_N] + (first + i) * row[common.Y_H]
        line = places[i * pitch : i * pitch + width]
        for w in range(width):
            line[w] = to + w * step
        for j in range(i * pitch + width, min((i + 1) * pitch, count)):
            places[j] = -1
    for j in range(count, count + PIXELS):
        places[j] = -1
    return count


@lean_jit
def conv_amx(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y = codes of sum (x - x_zero) * weight + bias; outside of x counts as 0.

    As `conv_u8s8`, with weights packed by `pack` and steps of STEP bytes. Where lines are not
    copied, s_h * x_h is a multiple of s_w * x_w.

    Args:
        row: COLUMNS, then those of requantize.py, [64].
        arena: Holds x, y, scratch of `scratch_bytes`.
        consts: Holds weights, params, taps and requantization.
        thread: Which part to compute.
        n_threads: Number of parts.
    """
    blocks = (row[common.GROUP_OUT] + BLOCK - 1) // BLOCK
    lines, units = row[common.BATCH] * row[common.OUT_H], row[common.GROUPS] * blocks
    first_line, stop_line, first_unit, stop_unit = 0, lines, 0, units
    if row[common.BY_CHANNELS] != 0:
        first_unit, stop_unit = share(units, thread, n_threads)
    else:
        first_line, stop_line = share(lines, thread, n_threads)
    if first_unit == stop_unit or first_line == stop_line:
        return
    memory = arena.ctypes.data
    acc = row[common.SCRATCH] + thread * row[common.SCRATCH_BYTES]
    ys = acc + ACC_BYTES
    if row[common.COPIED] != 0:
        pixel, line_bytes = (
            row[common.S_W] * row[common.GROUPS] * row[common.GROUP_IN],
            row[common.LINE_BYTES],
        )
    else:
        pixel, line_bytes = row[common.S_W] * row[common.X_W], row[common.S_H] * row[common.X_H]
    pitch = line_bytes // pixel
    copy = ys + (8 * (row[common.BAND] * pitch + PIXELS) + 63) // 64 * 64
    configure(memory + acc)
    line = first_line
    while line < stop_line:
        image, first = line // row[common.OUT_H], line % row[common.OUT_H]
        count = min(row[common.BAND], stop_line - line, row[common.OUT_H] - first)
        x = copy
        if row[common.COPIED] != 0:
            common.copy_lines(row, arena, image, first, count, copy)
        else:
            x = row[common.X] + image * row[common.X_N] + first * line_bytes
        pixels = update_places(row, arena, ys, image, first, count, pitch)
        for begin in range(0, pixels, row[common.CHUNK]):
            end = min(begin + row[common.CHUNK], pixels)
            for unit in range(first_unit, stop_unit):
                _unit(row, arena, consts, unit, (begin, end), pixel, acc, x, ys)
        line += count
    release()


@lean_jit
def _unit(
    row: I64,
    arena: U8,
    consts: U8,
    unit: int,
    pixels: tuple[int, int],
    pixel: int,
    acc: int,
    x: int,
    ys: int,
) -> None:
    """Some pixels of a band, the first and the one behind the last, for one block of channels."""
    blocks = (row[common.GROUP_OUT] + BLOCK - 1) // BLOCK
    group, first = unit // blocks, unit % blocks * BLOCK
    outs = min(BLOCK, row[common.GROUP_OUT] - first)
    n_taps, steps = row[common.N_TAPS], row[common.RUN_STEPS]
    each = (row[common.GROUP_OUT] + common.LANES - 1) // common.LANES
    before = (group * each * common.LANES + first) * n_taps * steps * STEP
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    weight, taps = numbers + row[common.WEIGHT] + before, numbers + row[common.TAPS]
    start, sums = memory + x + group * row[common.GROUP_IN], memory + acc
    for i in range(pixels[0], pixels[1], PIXELS):
        at = start + i * pixel
        if outs > common.LANES:
            multiply_2(at, pixel, taps, n_taps, steps, weight, sums)
        else:
            multiply_1(at, pixel, taps, n_taps, steps, weight, sums)
        rows = min(PIXELS, pixels[1] - i)
        common.finish(row, arena, consts, acc, rows, ys + 8 * i, group, first, outs)

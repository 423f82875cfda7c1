"""Exact 3x3 convolution of uint8 codes by Winograd's F(2x2, 3x3), channels last, integers only.

A tile of 2x2 outputs needs 16 products a channel in place of 36. Its 4x4 codes become 16 bytes V,
one a position, weights become 16 bytes U ahead, and 16 matrix products over channels give M, whose
sums and differences are exactly four times the outputs. What V of a position lacks to be unsigned
is added to it and comes off again at the end. Whether V and U fit bytes is the planner's business.

    V = B^T d B + offset      U = G g G^T      4 y = A^T M A + correction

G is twice the usual one, which has halves: rows 2 0 0, 1 1 1, 1 -1 1, 0 0 2.

Some tiles go through all positions together, so that M stays in the first cache.

Versions tried (56x56, 64 channels, one thread of a Xeon with AVX512-VNNI, 2026-11), ns a tile, of
which `conv_u8s8` takes 344:
    positions by calls of conv_u8s8's blocks             234
    one loop over positions, sums begin with corrections 244; copies of vectors cost as products do
    one loop, sums begin with zeros, U asked for ahead   238; 16 channels 36, by calls 38
    V of a band in the first cache, not the second       no difference
    blocks of 12 tiles and 32 channels for weights       up to 10 % slower

U of the next channels asked for ahead: 7x7, 512 channels, weights from memory, 1.0 to 1.2 times
less. Products by tile instructions (AMX), products measured, transforms added, against `conv_amx`:
56x56x64 0.7, 28x28x128 1.1, 14x14x256 1.8, 28x28x256 2.1 times less with weights in the cache; 3 %
of ResNet-18, so it was not written.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import conv_u8s8 as common
from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share, share_naive

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

POSITIONS = 16
OUT = 2
"""Lines and columns of outputs of a tile; those of its inputs are twice as many."""
BT = np.array(((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)))
AT = np.array(((1, 1, 1, 0), (0, 1, -1, -1)))
CENTRE_POSITION = 5
"""Where V is a sum of four codes; elsewhere it is two codes less two others."""

COLUMNS = (
    *common.COLUMNS,  # band is of lines of tiles; taps and chunk are not read
    "corrections",  # i32 [4, channels made full vectors], of outputs 00, 01, 10, 11
    "position_bytes",  # from V of a position to that of the next
    *("centre", "side"),  # what is added to V of the position of CENTRE_POSITION, of the others
)
CORRECTIONS, POSITION_BYTES, CENTRE, SIDE = range(1 + len(common.COLUMNS), 1 + len(COLUMNS))

ROWS = OUT * OUT
ACC_BYTES = ROWS * max(64 * n * (v + 1) for v, n in enumerate(common.PIXELS))
M_BYTES = POSITIONS // ROWS * ACC_BYTES


def transformed(weight: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """U of 3x3 weights within -255 .. 255, [M, 3, 3, C] to [M, 16, C]; exact."""
    outs, _, _, channels = weight.shape
    both = weight
    for axis in (1, 2):
        a, b, c = np.moveaxis(both, axis, 0)
        both = np.stack([2 * a, a + b + c, a - b + c, 2 * c], axis)
    return both.reshape(outs, POSITIONS, channels)


def offsets_of(lo: int, hi: int) -> tuple[int, int]:
    """What makes V of codes lo .. hi begin at 0: at CENTRE_POSITION, elsewhere."""
    return -4 * lo, 2 * (hi - lo)


def corrections_of(u: npt.NDArray[np.int16], offsets: tuple[int, int]) -> I32:
    """What takes offsets off again, [4, channels made full vectors], modulo 2^32."""
    each = np.full(POSITIONS, offsets[1], np.int64)
    each[CENTRE_POSITION] = offsets[0]
    m = u.astype(np.int64).sum(axis=2) * each
    y = np.einsum("pi,oil,ql->pqo", AT, m.reshape(-1, 4, 4), AT).reshape(ROWS, -1)
    full = np.zeros((ROWS, -(-y.shape[1] // common.LANES) * common.LANES), np.int64)
    full[:, : y.shape[1]] = -y
    return full.astype(np.int32)


def position_bytes(tiles: int, run: int) -> int:
    """Bytes of V of a position: an odd number of cache lines, so that positions lie in all sets."""
    lines = -(-(tiles + common.MOST_PIXELS) * run // 64) + 1
    return 64 * (lines | 1)


def scratch_bytes(tiles: int, run: int, copy_bytes: int) -> int:
    """Scratch of a part: a tile of accumulators, M, the table of places, V, the copied lines.

    Args:
        tiles: Of a band.
        run: Bytes of a pixel, made full steps.
        copy_bytes: Of the lines of a band.
    """
    table = ROWS * 8 * (tiles + common.MOST_PIXELS)
    v = POSITIONS * position_bytes(tiles, run)
    return ACC_BYTES + M_BYTES + -(-table // 64) * 64 + v + -(-copy_bytes // 64) * 64 + 128


def winograd_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `winograd`: tile by tile, the transforms as products of matrices."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    u, channels = common.unpack_naive(r, consts)[0], r["group_in"]
    u = u[:, :, :channels].reshape(-1, 4, 4, channels)
    full = -(-r["group_out"] // common.LANES) * common.LANES
    end = r["corrections"] + 4 * ROWS * full
    corrections = consts[r["corrections"] : end].view(np.int32).reshape(OUT, OUT, full)
    units = list(range(0, r["group_out"], common.BLOCK))
    lines = list(np.ndindex(r["batch"], -(-r["out_h"] // OUT)))
    if r["by_channels"]:
        units = units[slice(*share_naive(len(units), thread, n_threads))]
    else:
        lines = lines[slice(*share_naive(len(lines), thread, n_threads))]
    offsets = np.full((4, 4, 1), r["side"])
    offsets[1, 1] = r["centre"]
    for image, h in lines:
        for w in range(-(-r["out_w"] // OUT)):
            d = _tile_naive(r, arena, image, OUT * h - r["p_h"], OUT * w - r["p_w"])
            v = (np.einsum("ij,jkc,lk->ilc", BT, d, BT) + offsets).astype(np.uint8)
            m = np.einsum("ilc,oilc->ilo", v.astype(np.int64), u)
            y = np.einsum("pi,ilo,ql->pqo", AT, m, AT) + corrections[:, :, : r["group_out"]]
            y = y.astype(np.int32).astype(np.int64) >> 2
            for p, q in np.ndindex(OUT, OUT):
                pixel = (image, OUT * h + p, OUT * w + q)
                if pixel[1] < r["out_h"] and pixel[2] < r["out_w"]:
                    for unit in units:
                        acc = y[p, q, unit : unit + common.BLOCK]
                        common.write_naive(row, arena, consts, acc, pixel, 0, unit)


def _tile_naive(r: dict[str, int], arena: U8, image: int, h: int, w: int) -> I64:
    """4x4 pixels from line h and column w on, [4, 4, C]; outside of x they are its zero point."""
    d = np.full((4, 4, r["group_in"]), r["x_zero"], np.int64)
    for i, j in np.ndindex(4, 4):
        if 0 <= h + i < r["in_h"] and 0 <= w + j < r["in_w"]:
            at = r["x"] + image * r["x_n"] + (h + i) * r["x_h"] + (w + j) * r["x_w"]
            d[i, j] = arena[at : at + r["group_in"]]
    return d


_Four = Sequence[mk.Vector]


def _rows_of_bt(builder: mk.Builder, d: _Four) -> list[mk.Vector]:
    """B^T times a column of four."""
    return [
        builder.sub(d[0], d[2]),
        builder.add(d[1], d[2]),
        builder.sub(d[2], d[1]),
        builder.sub(d[1], d[3]),
    ]


def _inputs(width: int) -> Callable[..., None]:
    """Microkernel that makes V of so many channels of a line of tiles."""
    kind = mk.ir.VectorType(mk.I8, width)

    @mk.microkernel(
        *("x", "line_bytes", "pixel", "tiles", "v", "position_bytes", "run", "centre", "side")
    )
    def transform(builder: mk.Builder, *values: mk.Vector) -> None:
        x, line_bytes, pixel, tiles, v, position, run, centre, side = values
        offsets = {
            place: mk.splat(builder, builder.trunc(number, mk.I8), kind)
            for place, number in ((True, centre), (False, side))
        }

        def column(at: mk.Vector) -> list[mk.Vector]:
            lines = [builder.add(at, builder.mul(line_bytes, mk.number(i))) for i in range(4)]
            return _rows_of_bt(builder, [mk.load(builder, line, kind) for line in lines])

        def body(builder: mk.Builder, turn: mk.Vector, carried: _Four) -> list[mk.Vector]:
            at = builder.add(x, builder.mul(builder.mul(turn, mk.number(OUT)), pixel))
            at = builder.add(at, builder.mul(pixel, mk.number(OUT)))
            new = [column(at), column(builder.add(at, pixel))]
            to = builder.add(v, builder.mul(turn, run))
            for i in range(4):
                line = [carried[i], carried[4 + i], new[0][i], new[1][i]]
                for j, code in enumerate(_rows_of_bt(builder, line)):
                    place = 4 * i + j
                    moved = builder.add(code, offsets[place == CENTRE_POSITION])
                    there = builder.add(to, builder.mul(position, mk.number(place)))
                    mk.store(builder, moved, there)
            return [*new[0], *new[1]]

        mk.loop(builder, tiles, [*column(x), *column(builder.add(x, pixel))], body)

    return transform


_inputs_16, _inputs_32, _inputs_64 = (_inputs(width) for width in (16, 32, 64))


def _products(vectors: int) -> Callable[..., None]:
    """Microkernel that makes M of a block of tiles and so many vectors of channels."""
    tiles = common.PIXELS[vectors - 1]

    @mk.microkernel("v", "run", "position_bytes", "steps", "u", "ahead", "m")
    def multiply(builder: mk.Builder, *values: mk.Vector) -> None:
        v, run, position, steps, u, ahead, m = values
        places = [builder.add(v, builder.mul(run, mk.number(i))) for i in range(tiles)]
        zeros = [mk.constant(0, mk.ACC)] * (tiles * vectors)

        def body(builder: mk.Builder, turn: mk.Vector, carried: _Four) -> list[mk.Vector]:
            (w,) = carried
            offset = builder.mul(turn, position)
            pixels = [builder.add(place, offset) for place in places]
            *sums, w = common.add_run(builder, vectors, pixels, steps, [*zeros, w], ahead)
            to = builder.add(m, builder.mul(turn, mk.number(64 * len(sums))))
            for j, vector in enumerate(sums):
                mk.store(builder, vector, mk.at(builder, to, 64 * j))
            return [w]

        mk.loop(builder, mk.number(POSITIONS), [u], body)

    return multiply


_products_1, _products_2, _products_3, _products_4 = (_products(n) for n in (1, 2, 3, 4))


def _outputs(vectors: int) -> Callable[..., None]:
    """Microkernel that makes accumulators of M, for tiles of so many vectors of channels."""
    row = 64 * vectors
    position = row * common.PIXELS[vectors - 1]

    @mk.microkernel("m", "corrections", "correction_bytes", "tiles", "acc")
    def transform(builder: mk.Builder, *values: mk.Vector) -> None:
        m, corrections, correction_bytes, tiles, acc = values
        two = mk.constant(2, mk.ACC)

        def sums(four: _Four) -> list[mk.Vector]:
            both = builder.add(four[1], four[2])
            apart = builder.sub(four[1], four[2])
            return [builder.add(four[0], both), builder.sub(apart, four[3])]

        def vector(builder: mk.Builder, number: mk.Vector, _: _Four) -> list[mk.Vector]:
            right = builder.mul(number, mk.number(64))
            first = builder.add(corrections, right)
            places = [
                builder.add(first, builder.mul(correction_bytes, mk.number(i))) for i in range(ROWS)
            ]
            less = [mk.load(builder, place, mk.ACC) for place in places]

            def tile(builder: mk.Builder, turn: mk.Vector, _: _Four) -> list[mk.Vector]:
                at = builder.add(builder.add(m, right), builder.mul(turn, mk.number(row)))
                columns = [
                    sums(
                        [
                            mk.load(builder, mk.at(builder, at, position * (4 * i + j)), mk.ACC)
                            for i in range(4)
                        ]
                    )
                    for j in range(4)
                ]
                to = builder.add(builder.add(acc, right), builder.mul(turn, mk.number(ROWS * row)))
                for p in range(OUT):
                    for q, y in enumerate(sums([column[p] for column in columns])):
                        whole = builder.ashr(builder.add(y, less[OUT * p + q]), two)
                        mk.store(builder, whole, mk.at(builder, to, row * (OUT * p + q)))
                return []

            mk.loop(builder, tiles, [], tile)
            return []

        mk.loop(builder, mk.number(vectors), [], vector)

    return transform


_outputs_1, _outputs_2, _outputs_3, _outputs_4 = (_outputs(vectors) for vectors in (1, 2, 3, 4))


@lean_jit
def transform_inputs(row: I64, x: int, v: int, tiles: int, run: int, position: int) -> None:
    """Make V of a line of tiles: addresses of its first pixel and of V of its first tile.

    All channels, vectors of 64, 32 or 16 at a time, of which the last two may overlap. What a
    vector has behind the last channel falls on the next tile, which is made after it.
    """
    width = 64 if run > 32 else 32 if run > 16 else 16
    line, pixel, centre, side = row[common.LINE_BYTES], row[common.GROUP_IN], row[CENTRE], row[SIDE]
    for begin in range(0, run, width):
        at = max(min(begin, run - width), 0)
        if width == 64:
            _inputs_64(x + at, line, pixel, tiles, v + at, position, run, centre, side)
        elif width == 32:
            _inputs_32(x + at, line, pixel, tiles, v + at, position, run, centre, side)
        else:
            _inputs_16(x + at, line, pixel, tiles, v + at, position, run, centre, side)


@lean_jit
def multiply_positions(
    vectors: int, v: int, position: int, steps: int, u: int, ahead: int, m: int
) -> None:
    """Make M of some tiles and one block of channels; addresses, and bytes between positions."""
    run = steps * common.STEP
    if vectors == 4:
        _products_4(v, run, position, steps, u, ahead, m)
    elif vectors == 3:
        _products_3(v, run, position, steps, u, ahead, m)
    elif vectors == 2:
        _products_2(v, run, position, steps, u, ahead, m)
    else:
        _products_1(v, run, position, steps, u, ahead, m)


@lean_jit
def transform_outputs(
    vectors: int, m: int, corrections: int, correction_bytes: int, tiles: int, acc: int
) -> None:
    """Make accumulators of M, [tiles, 4, channels]; addresses."""
    if vectors == 4:
        _outputs_4(m, corrections, correction_bytes, tiles, acc)
    elif vectors == 3:
        _outputs_3(m, corrections, correction_bytes, tiles, acc)
    elif vectors == 2:
        _outputs_2(m, corrections, correction_bytes, tiles, acc)
    else:
        _outputs_1(m, corrections, correction_bytes, tiles, acc)


@lean_jit
def update_places(row: I64, arena: U8, ys: int, image: int, first: int, lines: int) -> None:
    """Fill the table of offsets in y of a band's tiles, [tiles, 4]; -1 for what is outside."""
    width = (row[common.OUT_W] + OUT - 1) // OUT
    count = ROWS * lines * width
    table = arena[ys : ys + 8 * (count + ROWS * common.MOST_PIXELS)].view(np.int64)
    table[count:] = -1
    step = row[common.Y_W]
    for i in range(lines * OUT):
        h = first * OUT + i
        to = image * row[common.Y_N] + h * row[common.Y_H]
        start = ROWS * (i // OUT) * width + OUT * (i % OUT)
        for w in range(width):
            table[start + ROWS * w] = to + OUT * w * step
            table[start + ROWS * w + 1] = to + (OUT * w + 1) * step
        if row[common.OUT_W] % OUT != 0:
            table[start + ROWS * (width - 1) + 1] = -1
        if h >= row[common.OUT_H]:
            for w in range(width):
                table[start + ROWS * w : start + ROWS * w + OUT] = -1


@lean_jit
def winograd(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y = codes of sum (x - x_zero) * weight + bias of a 3x3 window; outside x counts as 0.

    One group, strides and dilations 1, channels the last axis of x and y. As `conv_u8s8`, with U
    for weights, 16 taps, and lines that are always copied. Codes of x and x_zero are such that all
    V fit a byte.

    Args:
        row: COLUMNS, then those of requantize.py, [64].
        arena: Holds x, y, scratch of `scratch_bytes`.
        consts: Holds U, params, taps, corrections and requantization.
        thread: Which part to compute.
        n_threads: Number of parts.
    """
    height, width = (row[common.OUT_H] + OUT - 1) // OUT, (row[common.OUT_W] + OUT - 1) // OUT
    lines, units = row[common.BATCH] * height, (row[common.GROUP_OUT] + 63) // 64
    first_line, stop_line, first_unit, stop_unit = 0, lines, 0, units
    if row[common.BY_CHANNELS] != 0:
        first_unit, stop_unit = share(units, thread, n_threads)
    else:
        first_line, stop_line = share(lines, thread, n_threads)
    if first_unit == stop_unit or first_line == stop_line:
        return
    memory, run = arena.ctypes.data, row[common.RUN_STEPS] * common.STEP
    position, tiles = row[POSITION_BYTES], row[common.BAND] * width
    acc = row[common.SCRATCH] + thread * row[common.SCRATCH_BYTES]
    ys = acc + ACC_BYTES + M_BYTES
    v = ys + (8 * ROWS * (tiles + common.MOST_PIXELS) + 63) // 64 * 64
    copy = v + POSITIONS * position
    line = first_line
    while line < stop_line:
        image, first = line // height, line % height
        count = min(row[common.BAND], stop_line - line, height - first)
        common.copy_lines(row, arena, image, OUT * first, OUT * count, copy)
        update_places(row, arena, ys, image, first, count)
        for i in range(count):
            start = memory + copy + OUT * i * row[common.LINE_BYTES]
            transform_inputs(row, start, memory + v + i * width * run, width, run, position)
        for unit in range(first_unit, stop_unit):
            _unit(row, arena, consts, unit, count * width, acc, ys, v)
        line += count


@lean_jit
def _unit(
    row: I64, arena: U8, consts: U8, unit: int, tiles: int, acc: int, ys: int, v: int
) -> None:
    """All tiles of a band for one block of channels."""
    first = unit * common.BLOCK
    outs = min(common.BLOCK, row[common.GROUP_OUT] - first)
    vectors = (outs + common.LANES - 1) // common.LANES
    size, steps = common.PIXELS[vectors - 1], row[common.RUN_STEPS]
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    weight = numbers + row[common.WEIGHT] + first * POSITIONS * steps * common.STEP
    corrections, position = numbers + row[CORRECTIONS] + 4 * first, row[POSITION_BYTES]
    wide = 4 * ((row[common.GROUP_OUT] + common.LANES - 1) // common.LANES * common.LANES)
    m, sums = memory + acc + ACC_BYTES, memory + acc
    # The first blocks of tiles ask for U of the next channels, or of the next row, once.
    ahead, lines = POSITIONS * steps * common.STEP * common.LANES * vectors, 0
    for i in range(0, tiles, size):
        at = memory + v + i * steps * common.STEP
        multiply_positions(vectors, at, position, steps, weight, ahead, m)
        ahead, lines = ahead + 64 * common.AHEAD_LINES, lines + common.AHEAD_LINES
        ahead = ahead if lines < common.UNROLL * vectors else 0
        count = min(size, tiles - i)
        transform_outputs(vectors, m, corrections, wide, count, sums)
        places = ys + 8 * ROWS * i
        common.finish(row, arena, consts, acc, ROWS * count, places, 0, first, outs)

"""Depthwise convolution of uint8 codes and int8 weights, channels last, by `vpdpbusd`.

A column is 64 neighbouring bytes of a line of y and the same bytes of all lines below. The kernel
walks down a column. Of each line it loads the 64 bytes that every tap of a window line reads, and
interleaves four such vectors, so that a lane has four taps of one channel beside each other. They
are multiplied for all output lines that read them, then forgotten: nothing is written down.

Where a tap of a column lies is worked out ahead, see `Columns`. Mostly it is one run of bytes;
where some of it is outside of x, or the step of the window tears it apart, it is put together in
scratch first. The interleaving leaves a vector with every fourth group of four channels, in
`epilogue.ORDER`, and the packing to bytes at the end undoes that.

Versions tried (one thread of a Xeon 2.6 GHz with AVX512-VNNI, 2026-11, GMAC/s):
                                        3x3 56x56x144   3x3 s2 28x28x144   5x5 28x28x240
    depthwise.py, products of int16                 6                  6               3
    all lines of a window for each of y            34                 24              39
    each line of x once, steps of 1 only           64                 25              85
    steps of 2 too, torn columns joined            64                 32              85
    columns of a pixel overlap instead             64                 38              85
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import epilogue, requantize
from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.accumulate import write_accumulators, write_accumulators_naive
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.requantize import requantize_row, requantize_row_naive
from onnxptq.kernels.share import share, share_naive

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

BLOCK = epilogue.BLOCK
"""Bytes of a column's line."""
SLOT_LINE = 2 * BLOCK
"""Bytes of a line of a copied tap: pieces are 64 bytes, wherever in the first 64 they begin."""
VECTORS = BLOCK // mk.LANES
QUAD = 4
"""Taps of a lane."""

COLUMNS = (
    *("x", "y", "weight", "border"),  # border: 64 bytes of x_zero in consts
    *("columns", "n_columns", "copies", "pieces"),  # offsets of the arrays of `Columns` in consts
    *("batch", "groups"),  # groups: channels
    *("in_h", "in_w", "out_h", "out_w", "k_h", "k_w", "s_h", "s_w", "d_h", "d_w", "p_h", "p_w"),
    *("x_n", "x_h", "x_w", "y_n", "y_h", "y_w"),
    "x_zero",
    *("scratch", "scratch_bytes"),
    *("real_acc", "fixed"),  # fixed: `epilogue.block_params_of` says how codes are made
)
# fmt: off
(
    X, Y, WEIGHT, BORDER, COLUMN_TABLE, N_COLUMNS, COPIES, PIECES, BATCH, GROUPS,
    IN_H, IN_W, OUT_H, OUT_W, K_H, K_W, S_H, S_W, D_H, D_W, P_H, P_W,
    X_N, X_H, X_W, Y_N, Y_H, Y_W, X_ZERO, SCRATCH, SCRATCH_BYTES, REAL_ACC, FIXED,
) = range(1, 1 + len(COLUMNS))
# fmt: on

# A column: its place in a line of y, its first channel, how many bytes it writes, which weights it
# has, which copies it needs; then for each tap where it reads.
PLACE, CHANNEL, COUNT, PHASE, FIRST_COPY, N_COPIES, TAPS = range(7)
# Where a tap or a piece of one reads: x, the border, or what was copied to scratch.
IN_X, IN_BORDER, IN_COPY = range(3)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of x and of y as columns see it; sizes in pixels, steps in bytes.

    Attributes:
        channels: Bytes of a pixel of x and of y.
        x_w: From a pixel of x to the next.
        in_w: Pixels of x.
        out_w: Pixels of y.
        kernel: Taps.
        stride: From one window to the next.
        dilation: From one tap to the next.
        pad: Pixels before x.
        in_h: Lines of x.
    """

    channels: int
    x_w: int
    in_w: int
    out_w: int
    kernel: int
    stride: int
    dilation: int
    pad: int
    in_h: int

    @property
    def quads(self) -> int:
        """Fours of taps."""
        return -(-self.kernel // QUAD)

    @property
    def joined(self) -> bool:
        """Whether a column may hold channels of several pixels.

        With odd numbers of channels there would be other weights for each column; where windows
        step over pixels, most columns would have to be put together, which takes longer than what
        two columns of a pixel compute twice.
        """
        fits = self.channels % mk.LANES == 0 and self.channels * self.out_w >= BLOCK
        return fits and (self.stride == 1 or self.channels < BLOCK or self.channels % BLOCK == 0)

    @property
    def starts(self) -> list[int]:
        """The first channels that columns may have: the same one, the same weights."""
        if self.joined:
            return [*range(0, self.channels, int(np.gcd(self.channels, BLOCK)))]
        return _starts(self.channels)

    @property
    def slot_bytes(self) -> int:
        """Scratch of a copied tap; a loop over lines runs at least once."""
        return SLOT_LINE * max(self.in_h, 1)

    def channels_of(self, start: int) -> I64:
        """Channel of each of the 64 bytes of a column, [64]; -1 where there is none."""
        channels = start + np.arange(BLOCK)
        if self.joined:
            return channels % self.channels
        return np.where(channels < self.channels, channels, -1)


def _starts(size: int) -> list[int]:
    """Where to begin to cover so many bytes by blocks; the last one covers some once more."""
    return [*range(0, size - BLOCK, BLOCK), max(size - BLOCK, 0)]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Where every tap of every column reads.

    Attributes:
        table: PLACE to N_COPIES of each column, then for each tap, filled up to fours, IN_X,
            IN_BORDER or IN_COPY and bytes from there, [n, TAPS + 2 * QUAD * quads].
        copies: Taps that are put together: place in scratch, first piece and number, [m, 3].
        pieces: Where in the 64 bytes each begins, IN_X or IN_BORDER, bytes from there, [p, 3]. Each
            covers what the one before has too much.
        slots: The most copies of a column.
    """

    table: I64
    copies: I64
    pieces: I64
    slots: int


def columns_of(line: Line) -> Columns:
    """Cut a line into columns: neighbouring bytes if `joined`, else each pixel by itself."""
    table, copies, pieces = list[list[int]](), list[list[int]](), list[list[int]]()
    phases = {start: phase for phase, start in enumerate(line.starts)}
    if line.joined:
        places = _starts(line.channels * line.out_w)
    else:
        places = [w * line.channels + c for w in range(line.out_w) for c in phases]
    for place in places:
        channel = place % line.channels
        count = BLOCK if line.joined else min(BLOCK, line.channels - channel)
        first, taps = len(copies), list[int]()
        for t in range(QUAD * line.quads):
            found = _pieces(line, place, count, min(t, line.kernel - 1))
            if len(found) == 1:
                taps += found[0][1:]
                continue
            if t >= line.kernel:  # its weights are 0
                taps += [IN_BORDER, 0]
                continue
            slot = (len(copies) - first) * line.slot_bytes
            copies.append([slot, len(pieces), len(found)])
            pieces += found
            taps += [IN_COPY, slot]
        n_copies = len(copies) - first
        table.append([place, channel, count, phases[channel], first, n_copies, *taps])
    slots = max((column[N_COPIES] for column in table), default=0)
    return Columns(
        np.array(table, np.int64),
        np.array(copies, np.int64).reshape(-1, 3),
        np.array(pieces, np.int64).reshape(-1, 3),
        slots,
    )


def _pieces(line: Line, place: int, count: int, tap: int) -> list[list[int]]:
    """Runs of bytes that make a tap of a column, as `Columns.pieces` has them."""
    found, at = list[list[int]](), 0
    while at < count:
        w, channel = divmod(place + at, line.channels)
        position = w * line.stride - line.pad + tap * line.dilation
        inside = 0 <= position < line.in_w
        start = position * line.x_w + channel
        if not found or (IN_X if inside else IN_BORDER) != found[-1][1]:
            found.append([at, IN_X, start] if inside else [at, IN_BORDER, 0])
        elif inside and start != found[-1][2] + at - found[-1][0]:
            found.append([at, IN_X, start])
        at += line.channels - channel
    return found


def lines_bytes(out_h: int) -> int:
    """Scratch of a column of y that is not written to y at once, as codes or accumulators."""
    return 4 * BLOCK * (out_h + 1)


def scratch_bytes(line: Line, out_h: int, slots: int) -> int:
    """Scratch of a part: where the taps are, a column of y, copied taps."""
    return 16 * QUAD * line.quads + lines_bytes(out_h) + slots * line.slot_bytes


def pack(line: Line, weight: I16, params: Sequence[npt.NDArray[np.integer]]) -> U8:
    """Weights and numbers of the channels of each phase, in the order of lanes.

    Args:
        line: What columns there are.
        weight: Within -128 .. 127, [k_h, k_w, C].
        params: Arguments of `epilogue.block_params_of` for all channels, [C] each.

    Returns:
        Flat [phases][[k_h][quads][VECTORS][64], numbers].
    """
    k_h, k_w, _ = weight.shape
    full = np.zeros((k_h, QUAD * line.quads, weight.shape[2] + 1), np.int8)
    full[:, :k_w, :-1] = weight  # the channel behind the last is none
    blocks: list[U8] = []
    for start in line.starts:
        channels = line.channels_of(start)
        lanes = full[:, :, channels[epilogue.ORDER]]  # [k_h, taps, VECTORS, 16]
        lanes = lanes.reshape(k_h, line.quads, QUAD, VECTORS, mk.LANES)
        blocks.append(np.ascontiguousarray(np.moveaxis(lanes, 2, -1)).view(np.uint8).ravel())
        numbers = [np.append(array, 0)[channels] for array in params]
        blocks.append(epilogue.block_params_of(*numbers))
    return np.concatenate(blocks)


def unpack_naive(r: dict[str, int], consts: U8, phase: int) -> tuple[I64, U8]:
    """Weights of a column, [k_h, k_w, 64], and its numbers."""
    quads = -(-r["k_w"] // QUAD)
    size = r["k_h"] * quads * QUAD * BLOCK
    start = r["weight"] + phase * (size + epilogue.BLOCK_PARAMS_BYTES)
    lanes = consts[start : start + size].view(np.int8).astype(np.int64)
    lanes = lanes.reshape(r["k_h"], quads, BLOCK, QUAD)
    weight = np.zeros((r["k_h"], quads * QUAD, BLOCK), np.int64)
    for lane, byte in enumerate(epilogue.ORDER.ravel()):
        weight[:, :, byte] = lanes[:, :, lane].reshape(r["k_h"], -1)
    numbers = consts[start + size : start + size + epilogue.BLOCK_PARAMS_BYTES]
    return weight[:, : r["k_w"]], numbers


def depthwise_u8s8_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `depthwise_u8s8`: one sum after the other, one tap after the other."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    width = TAPS + 2 * QUAD * -(-r["k_w"] // QUAD)
    table = consts[r["columns"] : r["columns"] + 8 * width * r["n_columns"]].view(np.int64)
    units = list(np.ndindex(r["batch"], r["n_columns"]))
    for image, column in units[slice(*share_naive(len(units), thread, n_threads))]:
        place, _, count, phase = table[column * width :][:4].tolist()
        weight, params = unpack_naive(r, consts, phase)
        for h, byte in np.ndindex(r["out_h"], count):
            w, channel = divmod(place + byte, r["groups"])
            acc = epilogue.block_bias_naive(params, byte)
            for i, j in np.ndindex(r["k_h"], r["k_w"]):
                x = _code_naive(r, arena, (image, h, w, channel), i, j)
                acc += x * int(weight[i, j, byte])
            at = image * r["y_n"] + h * r["y_h"] + w * r["y_w"] + channel
            sums = np.array([acc]).astype(np.int32)  # wraps around as int32 does
            if r["real_acc"]:
                write_accumulators_naive(sums.astype(np.int64), r["y"], at, 1, arena)
            elif r["fixed"]:
                limits = int(row[requantize.LO]), int(row[requantize.HI])
                arena[r["y"] + at] = epilogue.block_code_naive(params, byte, int(sums[0]), limits)
            else:
                requantize_row_naive(sums, channel, 1, arena, r["y"] + at, 1, row, consts)


def _code_naive(
    r: dict[str, int], arena: U8, pixel: tuple[int, int, int, int], i: int, j: int
) -> int:
    """What tap i, j of a pixel (image, h, w, channel) of y reads."""
    image, h, w, channel = pixel
    y, x = h * r["s_h"] - r["p_h"] + i * r["d_h"], w * r["s_w"] - r["p_w"] + j * r["d_w"]
    if not (0 <= y < r["in_h"] and 0 <= x < r["in_w"]):
        return r["x_zero"]
    return int(arena[r["x"] + image * r["x_n"] + y * r["x_h"] + x * r["x_w"] + channel])


_WALK = (
    *("taps", "block", "border"),  # addresses: see `_resolve`, of weights, of 64 bytes of x_zero
    *("first", "inside"),  # line of x of the first window line; lines of x
    *("rows", "to", "to_step"),  # lines of y, address of the first, bytes to the next
    *("fixed", "lo", "hi"),
)


def _interleaved(
    builder: mk.Builder,
    taps: Sequence[tuple[mk.Vector, mk.Vector]],
    line: mk.Vector,
    inside: mk.Vector,
    border: mk.Vector,
) -> list[mk.Vector]:
    """Four taps of a line of 64 channels, beside each other in VECTORS vectors."""
    is_inside = builder.icmp_unsigned("<", line, inside)
    rows: list[mk.Vector] = []
    for address, step in taps:
        at = builder.add(address, builder.mul(line, step))
        rows.append(mk.load(builder, builder.select(is_inside, at, border), mk.BYTES))
    words = mk.ir.VectorType(mk.I16, BLOCK // 2)
    result: list[mk.Vector] = []
    for half in (0, 1):
        low, high = (
            builder.bitcast(_zipped(builder, rows[i], rows[i + 1], half), words) for i in (0, 2)
        )
        result += [_zipped(builder, low, high, part) for part in (0, 1)]
    return [builder.bitcast(vector, mk.BYTES) for vector in result]


def _zipped(builder: mk.Builder, one: mk.Vector, other: mk.Vector, half: int) -> mk.Vector:
    """Elements of two vectors in turn, of the first or second half of each 16 bytes."""
    count = one.type.count
    group = count // VECTORS  # elements of 16 bytes
    first = half * group // 2
    lanes = [
        lane
        for start in range(0, count, group)
        for i in range(start + first, start + first + group // 2)
        for lane in (i, count + i)
    ]
    return mk.shuffled(builder, one, other, lanes)


def _ending(
    builder: mk.Builder,
    sums: Sequence[mk.Vector],
    params: mk.Vector,
    address: mk.Vector,
    limits: Sequence[mk.Vector],
) -> None:
    """Store a line of a column: codes, or accumulators where `fixed` is 0."""
    fixed, lo, hi = limits
    with builder.if_else(builder.icmp_signed("!=", fixed, mk.number(0)), likely=True) as (yes, no):
        with yes:
            codes = epilogue.block_codes(builder, sums, params, lo, hi)
            mk.store(builder, codes, address)
        with no:
            for v, vector in enumerate(sums):
                mk.store(builder, vector, mk.at(builder, address, 64 * v))


def _biases(builder: mk.Builder, params: mk.Vector) -> list[mk.Vector]:
    return [
        mk.load(builder, mk.at(builder, params, epilogue.BLOCK_BIAS + 64 * v), mk.ACC)
        for v in range(VECTORS)
    ]


def _tap(builder: mk.Builder, taps: mk.Vector, number: int) -> tuple[mk.Vector, mk.Vector]:
    """Address of line 0 of a tap, and bytes from line to line."""
    address, step = (
        mk.load(builder, mk.at(builder, taps, 16 * number + place), mk.I64) for place in (0, 8)
    )
    return address, step


def _walk(k_h: int, s_h: int, quads: int) -> Callable[..., None]:
    """Microkernel of windows of so many lines, `s_h` lines from each other.

    Each line of x goes into the sums of all windows that it is in; those that are not yet complete
    are carried on.
    """
    windows = -(-k_h // s_h)
    kept = k_h * quads <= 3  # weights stay in registers

    @mk.microkernel(*_WALK)
    def walk(builder: mk.Builder, *values: mk.Vector) -> None:
        taps, block, border, first, inside, rows, to, to_step, *limits = values
        places = [_tap(builder, taps, t) for t in range(QUAD * quads)]
        params = mk.at(builder, block, BLOCK * QUAD * quads * k_h)

        def weight(line: int, quad: int, v: int) -> mk.Vector:
            at = BLOCK * ((line * quads + quad) * VECTORS + v)
            return mk.load(builder, mk.at(builder, block, at), mk.BYTES)

        weights = {key: weight(*key) for key in np.ndindex(k_h, quads, VECTORS) if kept}
        start = _biases(builder, params)

        def step(
            builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
        ) -> Sequence[mk.Vector]:
            # The sums of the oldest window stand first.
            sums = [*carried, *_biases(builder, params)]
            top = builder.add(builder.mul(turn, mk.number(s_h)), first)
            for line, q in np.ndindex(s_h, quads):
                quad = places[QUAD * q : QUAD * (q + 1)]
                codes = _interleaved(builder, quad, mk.at(builder, top, line), inside, border)
                for w, v in np.ndindex(windows, VECTORS):
                    key = ((windows - 1 - w) * s_h + line, q, v)
                    if key[0] < k_h:
                        factors = weights[key] if kept else weight(*key)
                        i = VECTORS * w + v
                        sums[i] = mk.dot4(builder, sums[i], codes[v], factors)
            row = builder.sub(turn, mk.number(windows - 1))
            with builder.if_then(builder.icmp_signed(">=", row, mk.number(0)), likely=True):
                address = builder.add(to, builder.mul(row, to_step))
                _ending(builder, sums[:VECTORS], params, address, limits)
            return sums[VECTORS:]

        steps = builder.add(rows, mk.number(windows - 1))
        mk.loop(builder, steps, start * (windows - 1), step)

    return walk


_walk_3, _walk_3_2, _walk_5, _walk_5_2 = (
    _walk(3, 1, 1),
    _walk(3, 2, 1),
    _walk(5, 1, 2),
    _walk(5, 2, 2),
)


@mk.microkernel(*_WALK, "k_h", "s_h", "d_h", "quads")
def _step(builder: mk.Builder, *values: mk.Vector) -> None:
    """Any window: all of its lines are read for each line of y."""
    taps, block, border, first, inside, rows, to, to_step, *rest = values
    *limits, k_h, s_h, d_h, quads = rest
    size = builder.mul(builder.mul(k_h, quads), mk.number(BLOCK * QUAD))
    params = builder.add(block, size)

    def row(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> Sequence[mk.Vector]:
        start = builder.add(builder.mul(turn, s_h), first)

        def line(
            builder: mk.Builder, i: mk.Vector, carried: Sequence[mk.Vector]
        ) -> Sequence[mk.Vector]:
            at = builder.add(start, builder.mul(i, d_h))

            def quad(
                builder: mk.Builder, q: mk.Vector, carried: Sequence[mk.Vector]
            ) -> Sequence[mk.Vector]:
                *sums, w = carried
                place = builder.add(taps, builder.mul(q, mk.number(16 * QUAD)))
                places = [_tap(builder, place, t) for t in range(QUAD)]
                codes = _interleaved(builder, places, at, inside, border)
                for v in range(VECTORS):
                    weight = mk.load(builder, mk.at(builder, w, BLOCK * v), mk.BYTES)
                    sums[v] = mk.dot4(builder, sums[v], codes[v], weight)
                return [*sums, mk.at(builder, w, BLOCK * VECTORS)]

            return mk.loop(builder, quads, carried, quad)

        *sums, _ = mk.loop(builder, k_h, [*_biases(builder, params), block], line)
        address = builder.add(to, builder.mul(turn, to_step))
        _ending(builder, sums, params, address, limits)
        return []

    mk.loop(builder, rows, [], row)


@mk.microkernel("source", "step", "to", "lines")
def _copy(builder: mk.Builder, *values: mk.Vector) -> None:
    """Copy 64 bytes of each line, `step` bytes apart, to every other 64 bytes."""
    source, step, to, lines = values

    def line(
        builder: mk.Builder, _: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        source, to = carried
        mk.store(builder, mk.load(builder, source, mk.BYTES), to)
        return [builder.add(source, step), mk.at(builder, to, SLOT_LINE)]

    mk.loop(builder, lines, [source, to], line)


@lean_jit
def depthwise_u8s8(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y = codes of sum (x - x_zero) * weight + bias, each channel by itself.

    Outside of x counts as 0. Channels are the last axis of x and y, which have no gaps between
    pixels of y. The bias in the numbers has x_zero taken off already. Parts of a row share the
    columns. Up to 63 bytes behind x are read, and count nothing.

    Args:
        row: COLUMNS, then those of requantize.py, [64]. Weight as `pack` has it.
        arena: Holds x (u8), y (u8, or i32 with real_acc), scratch of `scratch_bytes`.
        consts: Holds the border, weights, the arrays of `Columns` and requantization.
        thread: Which part to compute.
        n_threads: Number of parts.
    """
    start, stop = share(row[BATCH] * row[N_COLUMNS], thread, n_threads)
    quads = (row[K_W] + QUAD - 1) // QUAD
    width = TAPS + 2 * QUAD * quads
    at = row[COLUMN_TABLE]
    table = consts[at : at + 8 * width * row[N_COLUMNS]].view(np.int64)
    image, i = start // row[N_COLUMNS], start % row[N_COLUMNS]
    for _ in range(start, stop):
        _column(row, arena, consts, image, table[i * width : (i + 1) * width], thread)
        i += 1
        if i == row[N_COLUMNS]:
            i, image = 0, image + 1


@lean_jit
def _column(row: I64, arena: U8, consts: U8, image: int, column: I64, thread: int) -> None:
    """All lines of a column of an image."""
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    quads = (column.size - TAPS) // (2 * QUAD)
    taps = row[SCRATCH] + thread * row[SCRATCH_BYTES]
    lines = taps + 16 * QUAD * quads
    copied = lines + 4 * BLOCK * (row[OUT_H] + 1)
    _resolve(row, arena, consts, image, column, taps, copied)
    block = (
        numbers
        + row[WEIGHT]
        + column[PHASE] * (BLOCK * QUAD * quads * row[K_H] + epilogue.BLOCK_PARAMS_BYTES)
    )
    direct = row[FIXED] != 0 and column[COUNT] == BLOCK
    if direct:
        to, to_step = row[Y] + image * row[Y_N] + column[PLACE], row[Y_H]
    else:
        to, to_step = lines, 4 * BLOCK
    border, first, inside, rows = numbers + row[BORDER], -row[P_H], row[IN_H], row[OUT_H]
    to += memory
    fixed, lo, hi = row[FIXED], row[requantize.LO], row[requantize.HI]
    taps += memory
    known = row[S_H] if row[D_H] == 1 else 0  # what a walk is made for
    if known == 2 and row[K_H] == 3 and quads == 1:
        _walk_3_2(taps, block, border, first, inside, rows, to, to_step, fixed, lo, hi)
    elif known == 2 and row[K_H] == 5 and quads == 2:
        _walk_5_2(taps, block, border, first, inside, rows, to, to_step, fixed, lo, hi)
    elif known == 1 and row[K_H] == 3 and quads == 1:
        _walk_3(taps, block, border, first, inside, rows, to, to_step, fixed, lo, hi)
    elif known == 1 and row[K_H] == 5 and quads == 2:
        _walk_5(taps, block, border, first, inside, rows, to, to_step, fixed, lo, hi)
    else:
        k_h, s_h, d_h = row[K_H], row[S_H], row[D_H]
        _step(
            *(taps, block, border, first, inside, rows, to, to_step, fixed, lo, hi),
            *(k_h, s_h, d_h, quads),
        )
    if not direct:
        _write(row, arena, consts, image, column, lines)


@lean_jit
def _resolve(
    row: I64, arena: U8, consts: U8, image: int, column: I64, taps: int, copied: int
) -> None:
    """Write the address of line 0 and the step of each tap to offset `taps`, [n, 2]; copy some."""
    memory, numbers = arena.ctypes.data, consts.ctypes.data
    x, border = memory + row[X] + image * row[X_N], numbers + row[BORDER]
    for c in range(column[FIRST_COPY], column[FIRST_COPY] + column[N_COPIES]):
        copy = consts[row[COPIES] + 24 * c : row[COPIES] + 24 * c + 24].view(np.int64)
        for p in range(copy[1], copy[1] + copy[2]):
            piece = consts[row[PIECES] + 24 * p : row[PIECES] + 24 * p + 24].view(np.int64)
            to = memory + copied + copy[0] + piece[0]
            if piece[1] == IN_X:
                _copy(x + piece[2], row[X_H], to, row[IN_H])
            else:
                _copy(border, 0, to, row[IN_H])
    count = (column.size - TAPS) // 2
    table = arena[taps : taps + 16 * count].view(np.int64)
    for t in range(count):
        kind, offset = column[TAPS + 2 * t], column[TAPS + 2 * t + 1]
        if kind == IN_X:
            table[2 * t], table[2 * t + 1] = x + offset, row[X_H]
        elif kind == IN_BORDER:
            table[2 * t], table[2 * t + 1] = border, 0
        else:
            table[2 * t], table[2 * t + 1] = memory + copied + offset, SLOT_LINE


@lean_jit
def _write(row: I64, arena: U8, consts: U8, image: int, column: I64, lines: int) -> None:
    """Write a column of y from scratch: codes, or accumulators with whatever becomes of them."""
    count, place = column[COUNT], image * row[Y_N] + column[PLACE]
    memory, spare = arena.ctypes.data, lines + 4 * BLOCK * row[OUT_H]
    sums = arena[spare : spare + 4 * BLOCK].view(np.int32)
    for h in range(row[OUT_H]):
        at, y = lines + 4 * BLOCK * h, place + h * row[Y_H]
        if row[FIXED] != 0:
            mk.copy_bytes(memory + row[Y] + y, memory + at, count)
            continue
        found = arena[at : at + 4 * BLOCK].view(np.int32)
        for c in range(BLOCK):
            sums[c] = found[c % 16 // 4 * 16 + c // 16 * 4 + c % 4]
        begin, channel = 0, column[CHANNEL]
        while begin < count:
            end = min(count, begin + row[GROUPS] - channel)
            run = sums[begin:end]
            if row[REAL_ACC] != 0:
                write_accumulators(run, row[Y], y + begin, 1, arena)
            else:
                out = row[Y] + y + begin
                requantize_row(run, channel, end - begin, arena, out, 1, row, consts)
            begin, channel = end, 0

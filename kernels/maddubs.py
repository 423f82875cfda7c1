"""Products of uint8 codes and int8 weights where there is no vpdpbusd: sums of pairs in int16.

`vpmaddubsw` multiplies bytes and adds neighbours, but saturates where they leave int16. Weights are
packed such that none does: four bytes of K and 16 channels are a step, and where codes could make a
pair too large, steps begin elsewhere, or have zeros where another one has weights. Where sums of
several steps fit int16, they are widened once for all of them.

Versions tried (K = 576, 16 channels; haswell forced, one thread of a 2-core Xeon, 2026-11), GMAC/s:
    all products of a step, then their sums: LLVM spills     83
    each product beside its sum                              109
    the same with 4, 5, 7 pixels a block                     103, 107, 101
    the same unrolled 1, 4 times                             98, 94
    chains of 4, 8, 16, 32 steps                             117, 131, 139, 142
    the instructions without memory: pairs, chains           118, 181
Steps of all weights of a ResNet-20 at W8A8, of those without regard to saturation:
    even and odd bytes apart where a step does not fit       1.44
    steps that begin where most bytes fit                    1.19
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels import target
from onnxptq.kernels.jit import lean_jit

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

LANES = mk.LANES
STEP = 4
"""Bytes of K in a step."""
STEP_BYTES = STEP * LANES
UNROLL = 2
"""Steps at a time: their number is made a multiple of it, and so is that of a chain."""
WIDE = "avx512bw" in target.FEATURES
PIXELS = 12 if WIDE else 6
"""Of a block: their sums of 16 channels are 12 registers of 32 or of 16."""
CHAINS = (64, 48, 32, 24, 20, 16, 12, 10, 8, 6, 4)
"""Steps that may stay in int16 together; two are not worth it."""
INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1

WIDTH = 64 if WIDE else 32
PARTS = STEP_BYTES // WIDTH
"""Registers that 16 channels take."""
BYTES, WORDS, SUMS = (
    mk.ir.VectorType(kind, WIDTH * 8 // kind.width) for kind in (mk.I8, mk.I16, mk.I32)
)
_PRODUCT, _WIDEN = (
    ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")
    if WIDE
    else ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")
)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Weights of blocks of 16 channels, one block after the other.

    Attributes:
        weights: [steps of all blocks, 16, 4].
        offsets: Where a step's codes are, in bytes from a pixel's first, [steps of all blocks].
            Bytes before the first of a run are not read, up to STEP - 1 behind the last are.
        starts: First step of each block and the one behind the last, [blocks + 1].
        chain: Steps whose sums fit int16, or 1.
    """

    weights: I8
    offsets: I32
    starts: I64
    chain: int

    def table(self) -> npt.NDArray[np.uint8]:
        """Starts and offsets as `multiply` is told of them: i64, then i32."""
        return np.concatenate([self.starts.view(np.uint8), self.offsets.view(np.uint8)])


def pack(weight: I8, taps: I64, codes: tuple[int, int]) -> Packed:
    """Pack weights for codes of a range, so that no sum of a pair saturates.

    Args:
        weight: Of each tap's run of bytes, [groups, channels, n_taps, run]; channels of a group are
            a multiple of 16, a run is one of 4.
        taps: Where each tap's run begins, in bytes from a pixel's first, [n_taps].
        codes: Lowest and highest code that can occur.
    """
    groups, wide, n_taps, run = weight.shape
    blocks = weight.reshape(groups * wide // LANES, LANES, n_taps, run).transpose(0, 2, 3, 1)
    least, most = (
        ends.reshape(len(blocks), -1, STEP // 2, LANES)
        for ends in _pair_ends(blocks[:, :, ::2], blocks[:, :, 1::2], codes)
    )
    if _fit(least, most):
        chain, covers = _chain(least, most), np.full((len(blocks), n_taps, run), STEP)
        early = np.zeros_like(covers)
    else:
        chain, (covers, early) = 1, _covers(blocks, codes)
    offsets = (taps.reshape(-1, 1) + np.arange(run)).ravel()
    split = [_steps(blocks[b], covers[b], early[b], offsets) for b in range(len(blocks))]
    return Packed(
        np.concatenate([part for part, _ in split]),
        np.concatenate([places for _, places in split]).astype(np.int32),
        np.cumsum([0, *(len(part) for part, _ in split)]),
        chain,
    )


def _pair_ends(one: I8, other: I8, codes: tuple[int, int]) -> tuple[I32, I32]:
    """Smallest and largest sum of two products, for each pair of weights."""
    ends = [[np.int32(code) * w.astype(np.int32) for code in codes] for w in (one, other)]
    (a, b), (c, d) = ends
    return np.minimum(a, b) + np.minimum(c, d), np.maximum(a, b) + np.maximum(c, d)


def _fit(least: npt.NDArray[Any], most: npt.NDArray[Any]) -> bool:
    return least.min(initial=0) >= INT16_MIN and most.max(initial=0) <= INT16_MAX


def _covers(blocks: I8, codes: tuple[int, int]) -> tuple[I64, I64]:
    """How many bytes a step can take from each byte of a run on, and whether it begins one early.

    A step is two pairs, and bytes that must not be a pair can be in one each. Taking as many as
    possible each time takes the fewest steps, because zeros instead of weights always fit.

    Args:
        blocks: [blocks, n_taps, run, 16].
        codes: Lowest and highest.
    """
    least, most = _pair_ends(blocks[:, :, :-1], blocks[:, :, 1:], codes)
    fits = ((least >= INT16_MIN) & (most <= INT16_MAX)).all(axis=3)
    ok = np.pad(fits, ((0, 0), (0, 0), (0, 3)), constant_values=True)
    here, following, third = (ok[:, :, i : i + blocks.shape[2]] for i in range(3))
    plain = np.where(here, np.where(third, 4, 3), 1)
    early = np.where(following, 3, 2)
    early[:, :, 0] = 0  # nobody knows what lies before a run
    left = blocks.shape[2] - np.arange(blocks.shape[2])
    return np.minimum(np.maximum(plain, early), left), (early > plain).astype(np.int64)


def _steps(block: I8, covers: I64, early: I64, offsets: I64) -> tuple[I8, I64]:
    """A block's steps, [steps, 16, 4], and their places; a full number of them.

    Args:
        block: Weights [n_taps, run, 16].
        covers: How many bytes a step takes from each byte on, [n_taps, run].
        early: Whether it begins one byte before, [n_taps, run].
        offsets: Of each byte, [n_taps * run].
    """
    weights, take = block.reshape(-1, LANES), covers.ravel().tolist()
    firsts, at = list[int](), 0
    while at < len(take):
        firsts.append(at)
        at += take[at]
    starts = np.array(firsts, np.int64)
    begins = starts - early.ravel()[starts]
    step = np.repeat(np.arange(len(starts)), covers.ravel()[starts])
    found = np.zeros((-(-len(starts) // UNROLL) * UNROLL, LANES, STEP), np.int8)
    found[step, :, np.arange(len(weights)) - begins[step]] = weights
    places = np.zeros(len(found), np.int64)
    places[: len(starts)] = offsets[starts] - (starts - begins)
    return found, places


def _chain(least: I32, most: I32) -> int:
    """How many steps fit int16 together, whichever block; what passes by on the way wraps."""
    before = [np.cumsum(ends, axis=1, dtype=np.int64) for ends in (least, most)]
    for chain in CHAINS:
        if _fit(*(_chain_sums(sums, chain) for sums in before)):
            return chain
    return 1


def _chain_sums(sums: I64, chain: int) -> I64:
    """Sums of each chain of steps from those of all steps up to one, [blocks, steps, ...]."""
    ends = np.concatenate([sums[:, chain - 1 : -1 : chain], sums[:, -1:]], axis=1)
    return np.diff(ends, axis=1, prepend=0)


def unpack_naive(
    blocks: int, table: npt.NDArray[np.uint8], weights: npt.NDArray[np.uint8]
) -> list[tuple[I64, I64]]:
    """Offsets [steps] and weights [16, steps, 4] of each block, of bytes that begin there."""
    starts = table[: 8 * (blocks + 1)].view(np.int64)
    offsets = table[starts.nbytes : starts.nbytes + 4 * starts[-1]].view(np.int32)
    steps = weights[: STEP_BYTES * starts[-1]].view(np.int8).reshape(-1, LANES, STEP)
    return [
        (offsets[a:b].astype(np.int64), steps[a:b].transpose(1, 0, 2).astype(np.int64))
        for a, b in itertools.pairwise(starts.tolist())
    ]


def _starts(builder: mk.Builder, places: mk.Vector, shift: mk.Vector) -> list[mk.Vector]:
    """Addresses of the pixels of a block."""
    return [
        builder.add(mk.load(builder, mk.at(builder, places, 8 * i), mk.I64), shift)
        for i in range(PIXELS)
    ]


def _pairs(
    builder: mk.Builder, first: Sequence[mk.Vector], offsets: mk.Vector, weight: mk.Vector, u: int
) -> Iterator[mk.Vector]:
    """Emit sums of pairs of one of the steps from here on, of each pixel and register."""
    where = mk.load(builder, mk.at(builder, offsets, 4 * u), mk.I32)
    where = builder.sext(where, mk.I64)
    rows = [
        mk.load(builder, mk.at(builder, weight, STEP_BYTES * u + WIDTH * part), BYTES)
        for part in range(PARTS)
    ]
    for address in first:
        four = mk.load(builder, builder.add(address, where), mk.I32)
        codes = builder.bitcast(mk.splat(builder, four, SUMS), BYTES)
        for row in rows:
            yield product(builder, codes, row)


def product(builder: mk.Builder, codes: mk.Vector, weights: mk.Vector) -> mk.Vector:
    """Sums of two neighbouring products of a register, int16."""
    return mk.call(builder, _PRODUCT, WORDS, [codes, weights])


def widened(builder: mk.Builder, words: mk.Vector) -> mk.Vector:
    """Sums of two neighbours, int32."""
    return mk.call(builder, _WIDEN, SUMS, [words, mk.constant(1, WORDS)])


def _next(builder: mk.Builder, offsets: mk.Vector, weight: mk.Vector) -> list[mk.Vector]:
    return [mk.at(builder, offsets, 4 * UNROLL), mk.at(builder, weight, STEP_BYTES * UNROLL)]


@mk.microkernel("places", "shift", "offsets", "count", "weight", "acc")
def _by_pairs(builder: mk.Builder, *values: mk.Vector) -> None:
    """Widen every sum of a pair."""
    places, shift, offsets, count, weight, acc = values
    first = _starts(builder, places, shift)

    def body(
        builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        del turn
        *sums, where, w = carried
        for u in range(UNROLL):
            for j, words in enumerate(_pairs(builder, first, where, w, u)):
                sums[j] = builder.add(sums[j], widened(builder, words))
        return [*sums, *_next(builder, where, w)]

    zeros = [mk.constant(0, SUMS)] * (PIXELS * PARTS)
    turns = builder.sdiv(count, mk.number(UNROLL))
    *sums, _, _ = mk.loop(builder, turns, [*zeros, offsets, weight], body)
    for j, vector in enumerate(sums):
        mk.store(builder, vector, mk.at(builder, acc, WIDTH * j))


@mk.microkernel("places", "shift", "offsets", "count", "chain", "weight", "acc")
def _by_chains(builder: mk.Builder, *values: mk.Vector) -> None:
    """Widen sums of `chain` steps; those of 32 bits are in memory meanwhile."""
    places, shift, offsets, count, chain, weight, acc = values
    first = _starts(builder, places, shift)
    size = PIXELS * PARTS
    for j in range(size):
        mk.store(builder, mk.constant(0, SUMS), mk.at(builder, acc, WIDTH * j))

    def steps(
        builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        del turn
        *words, where, w = carried
        for u in range(UNROLL):
            for j, pairs in enumerate(_pairs(builder, first, where, w, u)):
                words[j] = builder.add(words[j], pairs)
        return [*words, *_next(builder, where, w)]

    def chained(
        builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        left = builder.sub(count, builder.mul(turn, chain))
        some = builder.select(builder.icmp_signed("<", left, chain), left, chain)
        zeros = [mk.constant(0, WORDS)] * size
        turns = builder.sdiv(some, mk.number(UNROLL))
        *words, where, w = mk.loop(builder, turns, [*zeros, *carried], steps)
        for j, vector in enumerate(words):
            at = mk.at(builder, acc, WIDTH * j)
            total = builder.add(mk.load(builder, at, SUMS), widened(builder, vector))
            mk.store(builder, total, at)
        return [where, w]

    more = builder.sub(builder.add(count, chain), mk.number(1))
    mk.loop(builder, builder.sdiv(more, chain), [offsets, weight], chained)


@lean_jit
def multiply(
    places: int, shift: int, offsets: int, count: int, chain: int, weight: int, acc: int
) -> None:
    """Write the sums of a block of PIXELS pixels and 16 channels to address `acc`.

    Args:
        places: Address of the pixels' addresses, i64 [PIXELS].
        shift: Bytes to add to each of them.
        offsets: Address of the steps' offsets, i32 [count].
        count: Steps, a multiple of UNROLL, at least UNROLL.
        chain: How many of them stay in int16 together.
        weight: Address of their weights.
        acc: i32 [PIXELS, 16].
    """
    if chain > 1:
        _by_chains(places, shift, offsets, count, chain, weight, acc)
    else:
        _by_pairs(places, shift, offsets, count, weight, acc)

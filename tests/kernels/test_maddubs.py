"""Packing for sums of pairs: nothing saturates, and nothing is lost."""

import itertools

import numpy as np
import pytest

from onnxptq.kernels import maddubs

INT16 = np.iinfo(np.int16)
# Lowest and highest code, largest weight, how many steps fit int16 together.
LEVELS = {
    "8 bit": ((0, 255), 127, 1),
    "7-bit weights": ((0, 255), 63, 1),
    "4-bit weights": ((0, 255), 7, 8),
    "4-bit codes": ((0, 15), 127, 8),
    "4-bit codes and weights of at most 68": ((0, 15), 68, 16),
    "4 bit": ((0, 15), 7, 64),
    "codes far from 0": ((200, 255), 127, 1),
    "one code": ((3, 3), 127, 32),
}


def weights(rng: np.random.Generator, top: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """With the largest ones beside each other for long enough."""
    found = rng.integers(-top, top + 1, (2, 32, 3, 104)).astype(np.int8)
    found[:, 5], found[:, 7] = top, -top
    return found


@pytest.mark.parametrize("name", LEVELS)
def test_no_sum_leaves_int16_and_chains_are_as_long_as_they_may(
    name: str, rng: np.random.Generator
) -> None:
    codes, top, chain = LEVELS[name]

    packed = maddubs.pack(weights(rng, top), np.array([0, 500, 1000]), codes)

    assert packed.chain == chain
    for first, last in itertools.pairwise(packed.starts):
        assert (last - first) % maddubs.UNROLL == 0
        steps = packed.weights[first:last].astype(np.int64)
        ends = np.stack([code * steps for code in codes])
        low, high = (
            limit(ends, axis=0).reshape(-1, 16, 2, 2).sum(axis=3) for limit in (np.min, np.max)
        )
        for i in range(0, int(last - first), chain):
            assert low[i : i + chain].sum(axis=0).min() >= INT16.min
            assert high[i : i + chain].sum(axis=0).max() <= INT16.max


@pytest.mark.parametrize("name", LEVELS)
def test_sums_of_steps_are_those_of_the_weights(name: str, rng: np.random.Generator) -> None:
    codes, top, _ = LEVELS[name]
    weight, taps = weights(rng, top), np.array([0, 500, 1000])
    x = rng.integers(codes[0], codes[1] + 1, 1200).astype(np.int64)
    runs = np.stack([x[tap : tap + 104] for tap in taps])
    expected = np.einsum("gctk,tk->gc", weight.astype(np.int64), runs)

    packed = maddubs.pack(weight, taps, codes)
    raw = packed.weights.view(np.uint8).ravel()
    blocks = maddubs.unpack_naive(4, packed.table(), raw)

    found = [sum(w[:, i] @ x[at : at + 4] for i, at in enumerate(places)) for places, w in blocks]
    np.testing.assert_array_equal(np.concatenate(found), expected.ravel())


@pytest.mark.parametrize(
    ("large", "offsets"),
    [
        ([], [0, 4, 8, 12]),
        ([0], [0, 1, 5, 9, 13, 0]),
        ([4], [0, 3, 7, 11, 15, 0]),
        ([5], [0, 4, 8, 12]),
        ([6], [0, 4, 7, 11, 15, 0]),
        ([3, 4, 5], [0, 3, 6, 10, 14, 0]),
        (list(range(15)), [0, 0, 2, 4, 6, 8, 10, 12, 15, 0]),
    ],
)
def test_steps_begin_where_pairs_fit(large: list[int], offsets: list[int]) -> None:
    weight = np.full((1, 16, 1, 16), 40, np.int8)
    # Alternating in sign all over, so that only what is said adds up.
    weight[0, 3, 0] = 100 * (-1) ** np.cumsum([0, *(i not in large for i in range(15))])

    packed = maddubs.pack(weight, np.array([0]), (0, 255))

    assert packed.offsets.tolist() == offsets

"""Arguments that tests and benchmarks run the kernels of numeric.py on."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxptq.kernels import numeric

Arguments = tuple[Any, ...]
Generator = np.random.Generator

SIZES = (0, 1, 2, 7, numeric.SMALL, numeric.SMALL + 1, numeric.CHUNK, 3 * numeric.CHUNK + 5)
HISTOGRAM_WORK = 1 << 20
CHANNEL_WORK = 8 * 64 * 1024
GROW_WORK = 16384
GRID_WORK = 16384
DIVERGENCE_WORK = 2048
WEIGHT_WORK = 4608 * 64


def histograms(rng: Generator) -> Iterator[Arguments]:
    """Sizes around the borders of chunks; extreme values, NaN, inf, a state with a past."""
    for size in SIZES:
        x = rng.standard_normal(size).astype(np.float32)
        yield x, np.zeros(64, np.int64), numeric.new_state()
        yield np.maximum(x, 0), np.zeros(64, np.int64), numeric.new_state()
    for values in EXTREMES:
        for repeat in (1, 2000):
            x = np.tile(np.asarray(values, np.float32), repeat)
            yield x, np.zeros(64, np.int64), numeric.new_state()
    counts, state = np.zeros(64, np.int64), numeric.new_state()
    numeric.update_histogram_naive(np.array([1.0, -3.0, 0.0], np.float32), counts, state)
    yield np.array([100.0, 0.5], np.float32), counts, state


EXTREMES = (
    (0.0, -0.0),
    (3.4e38, -3.4e38),
    (1e-45, -1e-45, 1e-38),
    (1.0, 2.0, 4.0, -1.0, -2.0, -4.0),
    (np.nan, np.inf, -np.inf, 1.0),
    (np.nan,),
    (np.nextafter(np.float32(32), np.float32(0)), 31.0),
)


def histogram_work(rng: Generator) -> Arguments:
    """Outputs of a Relu."""
    x = np.maximum(rng.standard_normal(HISTOGRAM_WORK), 0).astype(np.float32)
    return x, np.zeros(16384, np.int64), numeric.new_state()


def channels(rng: Generator) -> Iterator[Arguments]:
    """Ranks and sizes with ones, an empty batch, extreme values."""
    for shape in ((1, 1, 1), (2, 3, 1), (1, 5, 49), (3, 2, 7), (0, 4, 3), (2, 3, 0)):
        x = rng.standard_normal(shape).astype(np.float32)
        yield x, np.zeros((shape[1], 16), np.int64), np.tile(numeric.new_state(), (shape[1], 1))
    for values in EXTREMES:
        x = np.tile(np.asarray(values, np.float32), (2, 2, 1))
        yield x, np.zeros((2, 16), np.int64), np.tile(numeric.new_state(), (2, 1))


def channel_work(rng: Generator) -> Arguments:
    """A map of 64 channels, 32x32."""
    x = rng.standard_normal((8, 64, 1024)).astype(np.float32)
    return x, np.zeros((64, 256), np.int64), np.tile(numeric.new_state(), (64, 1))


def grown(rng: Generator) -> Iterator[Arguments]:
    """No, one and more doublings than there are bins."""
    for half in (1, 2, 8, 64):
        for doublings in (0, 1, 2, 5, 80):
            yield rng.integers(0, 9, 2 * half), doublings


def grow_work(rng: Generator) -> Arguments:
    """One doubling of a full histogram."""
    return rng.integers(0, 9, GROW_WORK), 1


def _grid(rng: Generator, bins: int, half: int, p: float) -> Arguments:
    counts = np.exp(-(((np.arange(bins) - half + 0.5) / bins * 5) ** 2)) * rng.random(bins) * 1e4
    edges = np.arange(bins + 1) - half
    distance = np.abs((np.arange(bins) - half + 0.5)[None, :] - edges[:, None]) ** p
    right = np.arange(bins)[None, :] >= np.arange(bins + 1)[:, None]
    above = (distance * right * counts).sum(axis=1)
    below = (distance * ~right * counts).sum(axis=1)
    return counts, half, (above, below), p


def grids(rng: Generator) -> Iterator[Arguments]:
    """One-sided and two-sided histograms, few and many codes, all fine against the step."""
    for bins, half, limits in (
        (512, 0, (0, 3, 0, 0)),
        (512, 200, (0, 3, 0, 3)),
        (512, 512, (0, 15, 15, 15)),
        (1024, 500, (-8, 7, 0, 0)),
        (1024, 300, (0, 15, 0, 15)),
    ):
        for p in (2.0, 2.4):
            counts, _, tails, _ = _grid(rng, bins, half, p)
            full = bins / (limits[1] - limits[0])
            scales = full * np.linspace(1.2, 0.3, 12)
            yield counts, half, tails, scales, limits, (p, numeric.power_table(p))


def grid_work(rng: Generator) -> Arguments:
    """One scale of an 8-bit search with all zero points; time is for a bin and a scale."""
    counts, half = rng.random(GRID_WORK), GRID_WORK // 2
    tails = (rng.random(GRID_WORK + 1), rng.random(GRID_WORK + 1))
    limits, power = (0, 255, 0, 255), (2.4, numeric.power_table(2.4))
    return counts, half, tails, np.full(1, GRID_WORK / 255), limits, power


def divergences(rng: Generator) -> Iterator[Arguments]:
    """Ranges that clip nothing, one side, both; empty bins at the ends; nothing inside."""
    for low, high in ((0, 64), (8, 64), (0, 40), (10, 50), (31, 33), (31, 32)):
        for empty in (0.0, 0.5, 0.9):
            counts = rng.random(64) * (rng.random(64) >= empty)
            for step in (0.7, 3.0, 8.3):
                yield counts, low, high, step, 32
    yield np.zeros(64), 0, 64, 3.0, 32


def divergence_work(rng: Generator) -> Arguments:
    """One candidate of TensorRT's size."""
    return rng.random(DIVERGENCE_WORK), 0, DIVERGENCE_WORK, 8.0, 0


def weights(rng: Generator) -> Iterator[Arguments]:
    """Odd and even rows, one and many candidates, 2 to 8 bits, several powers."""
    for size in (0, 1, 2, 9, 64, 577):
        for candidates in (1, 7, 64):
            for top in (1, 7, 127):
                for p in (1.0, 2.0, 2.4, 4.0):
                    yield _weights(rng, size, candidates, top, p)


def _weights(rng: Generator, size: int, candidates: int, top: int, p: float) -> Arguments:
    row = rng.standard_normal(size).astype(np.float32)
    inverses = (top / np.linspace(3, 0.3, candidates)).astype(np.float32)
    codes = (np.full(candidates, -top - 1, np.float32), np.full(candidates, top, np.float32))
    return row, inverses, codes, p, np.zeros(candidates, np.float32)


def weight_work(rng: Generator) -> Arguments:
    """A row of ResNet-50's largest layer; time is for a weight and a candidate."""
    return _weights(rng, 4608, 64, 7, 2.4)

"""Arguments that tests and benchmarks run the kernels of fake_quantize.py on."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxptq.kernels.fake_quantize import CHUNK, LANES

Arguments = tuple[Any, ...]
Generator = np.random.Generator

WORK = 1 << 19
SIZES = (0, 1, LANES - 1, LANES, CHUNK, CHUNK + 1, 3 * CHUNK + 5)


def fake_quantizes(rng: Generator) -> Iterator[Arguments]:
    """Sizes around the borders of lanes and chunks, signed and unsigned codes, ties, both ends."""
    for size in SIZES:
        for ends in ((0.0, 3.0), (-2.0, 1.0), (-100.0, 155.0)):
            yield _fake_quantize(rng, size, np.array([0.3, *ends], np.float32))
    ties = np.arange(-8, 8, dtype=np.float32) * 0.25
    yield ties, np.zeros(16, np.uint8), np.array([0.5, -2.0, 1.0], np.float32), np.empty_like(ties)


def fake_quantize_work(rng: Generator) -> Arguments:
    """A map of 16 channels, 32 samples, half of it free."""
    return _fake_quantize(rng, WORK, np.array([0.5, 0.0, 3.0], np.float32))


def gradients(rng: Generator) -> Iterator[Arguments]:
    """As `fake_quantizes`."""
    for x, free, grid, out in fake_quantizes(rng):
        yield x, free, grid, rng.standard_normal(x.size).astype(np.float32), out


def gradient_work(rng: Generator) -> Arguments:
    """As `fake_quantize_work`."""
    x, free, grid, out = fake_quantize_work(rng)
    return x, free, grid, rng.standard_normal(x.size).astype(np.float32), out


def mixes(rng: Generator) -> Iterator[Arguments]:
    """No row, rows twice, rows of one and of many elements."""
    for count, rows, size in ((3, 0, 4), (1, 2, 1), (5, 4, 33), (7, 7, 1000)):
        yield _mix(rng, count, rows, size)


def mix_work(rng: Generator) -> Arguments:
    """32 samples of 64."""
    return _mix(rng, 64, 32, WORK // 32)


def _fake_quantize(rng: Generator, size: int, grid: np.ndarray[Any, Any]) -> Arguments:
    x = rng.standard_normal(size).astype(np.float32)
    return x, rng.integers(0, 2, size).astype(np.uint8), grid, np.empty_like(x)


def _mix(rng: Generator, count: int, rows: int, size: int) -> Arguments:
    first, second = rng.standard_normal((2, count, size)).astype(np.float32)
    coins = rng.integers(0, 2, (rows, size)).astype(np.uint8)
    chosen = rng.integers(0, count, rows)
    return first, second, chosen, coins, np.empty((rows, size), np.float32)

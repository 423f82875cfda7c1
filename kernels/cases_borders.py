"""Arguments that tests and benchmarks run the kernels of borders.py on."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxptq.kernels.fake_quantize import CHUNK

Arguments = tuple[Any, ...]
Generator = np.random.Generator

WORK = 32 * 16 * 1024


def rounded(rng: Generator) -> Iterator[Arguments]:
    """Empty, short and long channels, one level and many, signed codes."""
    for shape in ((0, 2, 5), (2, 3, 7), (1, 4, CHUNK + 6), (3, 1, 1)):
        for levels, lo in ((3, 0.0), (1, 0.0), (15, -4.0)):
            yield _rounded(rng, shape, levels, lo)


def rounded_work(rng: Generator) -> Arguments:
    """A map of 16 channels, 32 samples, 2 bits, half of it free."""
    return _rounded(rng, (32, 16, 1024), 3, 0.0)


def gradients(rng: Generator) -> Iterator[Arguments]:
    """As `rounded`."""
    return map(_with_gradients, rounded(rng))


def gradient_work(rng: Generator) -> Arguments:
    """As `rounded_work`."""
    return _with_gradients(rounded_work(rng))


def _rounded(rng: Generator, shape: tuple[int, int, int], levels: int, lo: float) -> Arguments:
    x = rng.standard_normal(shape).astype(np.float32)
    free = rng.integers(0, 2, shape).astype(np.uint8)
    borders = rng.uniform(0, 1, (shape[1], levels)).astype(np.float32)
    grid = np.array([0.5, lo, lo + levels], np.float32)
    return x, free, grid, borders, np.empty_like(x)


def _with_gradients(arguments: Arguments) -> Arguments:
    x, free, grid, borders, out = arguments
    grad = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    return x, free, grid, borders, grad, out, np.empty(borders.shape)

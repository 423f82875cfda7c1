"""Arguments that tests and benchmarks run the kernels of table.py on."""

from collections.abc import Iterator

import numpy as np

from onnxptq.kernels import table
from onnxptq.kernels.cases_rows import Arguments, Layout, named

WORK = 56 * 56 * 64
SIZES = (0, 1, 2, 31, 64, 257)


def _table(rng: np.random.Generator, size: int) -> Arguments:
    layout = Layout()
    columns = named(
        table.TABLE_COLUMNS,
        x=layout.put(rng.integers(0, 256, size).astype(np.uint8)),
        y=layout.room(size),
        count=size,
        table=layout.const(rng.permutation(256).astype(np.uint8)),
    )
    return layout.arguments(columns)


def tables(rng: np.random.Generator) -> Iterator[Arguments]:
    """Empty, one, odd sizes."""
    for size in SIZES:
        yield _table(rng, size)


def table_work(rng: np.random.Generator) -> Arguments:
    """A map of 64 channels, 56x56."""
    return _table(rng, WORK)


def _clip(rng: np.random.Generator, size: int, lo: int, hi: int) -> Arguments:
    layout = Layout()
    columns = named(
        table.CLIP_COLUMNS,
        x=layout.put(rng.integers(0, 256, size).astype(np.uint8)),
        y=layout.room(size),
        count=size,
        lo=lo,
        hi=hi,
    )
    return layout.arguments(columns)


def clips(rng: np.random.Generator) -> Iterator[Arguments]:
    """Empty, one, odd sizes; ranges of one code, of all, at the ends."""
    for size in SIZES:
        for lo, hi in ((0, 255), (0, 15), (128, 143), (255, 255), (0, 0)):
            yield _clip(rng, size, lo, hi)


def clip_work(rng: np.random.Generator) -> Arguments:
    """A map of 64 channels, 56x56, to 4 bits."""
    return _clip(rng, WORK, 0, 15)

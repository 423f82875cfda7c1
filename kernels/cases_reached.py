"""Arguments that tests and benchmarks run the kernels of reached.py on."""

from collections.abc import Iterator

import numpy as np

from onnxptq.kernels import reached
from onnxptq.kernels.cases_rows import Arguments, Layout, named

WORK = 64 * 64 * 16
INT32 = np.iinfo(np.int32)


def _reached(
    rng: np.random.Generator, shape: tuple[int, int, int], steps: int, lo: int
) -> Arguments:
    layout = Layout()
    acc = rng.integers(-50, 50, shape).astype(np.int32)
    acc.ravel()[: min(2, acc.size)] = [INT32.min, INT32.max][: min(2, acc.size)]
    table = rng.integers(-50, 50, (steps, shape[1])).astype(np.int32)
    table.ravel()[: min(2, table.size)] = [INT32.max, INT32.min][: min(2, table.size)]
    columns = named(
        reached.COLUMNS,
        x=layout.put(acc.view(np.uint8).ravel()),
        y=layout.room(acc.size),
        outer=shape[0],
        channels=shape[1],
        inner=shape[2],
        table=layout.const(table.view(np.uint8).ravel()),
        steps=steps,
        lo=lo,
    )
    return layout.arguments(columns)


def counted(rng: np.random.Generator) -> Iterator[Arguments]:
    """Channels last and first, empty, one, odd sizes; one threshold and many."""
    for shape in ((0, 3, 1), (1, 1, 1), (5, 16, 1), (33, 7, 1), (2, 3, 49), (1, 16, 130)):
        for steps, lo in ((3, 0), (1, 7), (15, 240)):
            yield _reached(rng, shape, steps, lo)


def counted_work(rng: np.random.Generator) -> Arguments:
    """A map of 16 channels, channels last, to 2 bits."""
    return _reached(rng, (64 * 64, 16, 1), 3, 0)

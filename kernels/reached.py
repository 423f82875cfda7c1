"""Accumulators to codes by counting: the lowest code plus the number of thresholds reached.

Versions tried (64x64x16 codes, 3 thresholds, ns a code, one core of an AMD EPYC, 2026-11):
    one threshold after the other, 16 channels in a loop     2.5
    the same, 64 pixels in a loop (`plan_elementwise`)       0.34
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.boundary import channel_run
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

COLUMNS = ("x", "y", "outer", "channels", "inner", "table", "steps", "lo")
X, Y, OUTER, CHANNELS, INNER, TABLE, STEPS, LO = range(1, 1 + len(COLUMNS))


def reached_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `reached`."""
    shape = tuple(int(row[place]) for place in (OUTER, CHANNELS, INNER))
    count, entries = int(np.prod(shape)), int(row[STEPS] * row[CHANNELS])
    acc = arena[row[X] : row[X] + 4 * count].view(np.int32).reshape(shape)
    table = consts[row[TABLE] : row[TABLE] + 4 * entries].view(np.int32)
    steps = table.reshape(int(row[STEPS]), 1, shape[1], 1)
    arena[row[Y] : row[Y] + count] = (row[LO] + (acc >= steps).sum(axis=0)).astype(np.uint8).ravel()


@lean_jit
def reached(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Code lo + sum(acc >= table[:, c]) for each accumulator.

    Args:
        row: COLUMNS. x int32 and y uint8 [outer, channels, inner], contiguous; table int32
            [steps, channels] in consts.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    channels, inner = row[CHANNELS], row[INNER]
    start, stop = share(row[OUTER] * channels * inner, thread, n_threads)
    at = start
    while at < stop:
        c, _, run = channel_run(at, stop, channels, inner)
        x = arena[row[X] + 4 * at : row[X] + 4 * (at + run)].view(np.int32)
        y = arena[row[Y] + at : row[Y] + at + run]
        y[:] = np.uint8(row[LO])
        for k in range(row[STEPS]):
            place = row[TABLE] + 4 * (k * channels + c)
            if inner == 1:
                _count_each(x, consts[place : place + 4 * run].view(np.int32), y)
            else:
                _count(x, consts[place : place + 4].view(np.int32)[0], y)
        at += run


@lean_jit
def _count_each(x: I32, thresholds: I32, y: U8) -> None:
    for i in range(y.size):
        y[i] += np.uint8(x[i] >= thresholds[i])


@lean_jit
def _count(x: I32, threshold: np.int32, y: U8) -> None:
    for i in range(y.size):
        y[i] += np.uint8(x[i] >= threshold)

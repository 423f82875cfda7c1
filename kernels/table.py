"""One code to one code: any function by a table of 256 entries, and clipping."""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

TABLE_COLUMNS = ("x", "y", "count", "table")
CLIP_COLUMNS = ("x", "y", "count", "lo", "hi")
X, Y, COUNT, TABLE = range(1, 1 + len(TABLE_COLUMNS))
LO, HI = range(4, 6)


def table_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `table`."""
    codes = arena[row[X] : row[X] + row[COUNT]]
    arena[row[Y] : row[Y] + row[COUNT]] = consts[row[TABLE] : row[TABLE] + 256][codes]


@lean_jit
def table(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """y[i] = table[x[i]].

    Args:
        row: TABLE_COLUMNS; table: offset of uint8 [256] in consts.
        arena: uint8 [bytes], changed in place; y may be x.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    start, stop = share(row[COUNT], thread, n_threads)
    x = arena[row[X] + start : row[X] + stop]
    y = arena[row[Y] + start : row[Y] + stop]
    entries = consts[row[TABLE] : row[TABLE] + 256]
    for i in range(y.size):
        y[i] = entries[x[i]]


def clip_naive(row: I64, arena: U8, _consts: U8, *_threads: int) -> None:
    """Specification of `clip`."""
    codes = arena[row[X] : row[X] + row[COUNT]]
    arena[row[Y] : row[Y] + row[COUNT]] = np.minimum(np.maximum(codes, row[LO]), row[HI])


@lean_jit
def clip(row: I64, arena: U8, _consts: U8, thread: int, n_threads: int) -> None:
    """y[i] = min(max(x[i], lo), hi).

    Args:
        row: CLIP_COLUMNS; lo and hi are stored codes, 0..255.
        arena: uint8 [bytes], changed in place; y may be x.
        _consts: Not read.
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    start, stop = share(row[COUNT], thread, n_threads)
    x = arena[row[X] + start : row[X] + stop]
    y = arena[row[Y] + start : row[Y] + stop]
    lo, hi = np.uint8(row[LO]), np.uint8(row[HI])
    for i in range(y.size):
        y[i] = min(max(x[i], lo), hi)

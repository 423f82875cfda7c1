"""Runs the rows of a plan, one kernel call a row, inside one compiled call of each thread.

A row is cut into parts that threads claim one by one, so nobody waits for a thread that has not
come: on a busy machine the caller just does more of the work. A row begins when all parts of the
one before are finished. Small rows have one part.

Tried (CIFAR ResNet-20, 43 rows, 2 threads on 2 cores beside other work, 2026-11):
    equal shares and a barrier between rows              25 to 35 ms a run
    parts that are claimed                               3.1 ms (one thread: 2.9 to 4.8 ms)
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import (
    boundary,
    conv,
    conv_u8s8,
    depthwise,
    depthwise_u8s8,
    global_average_pool,
    matmul,
    move,
    pair,
    pool,
    requantize,
    softmax,
    table,
    window,
)
from onnxptq.kernels.intrinsics import atomic_add, atomic_load, give_way, pause
from onnxptq.kernels.jit import lean_jit

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

ROW = requantize.ROW
ALONE = ROW - 1
"""Column of every row: 1 if the first thread computes it alone."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "conv": window.COLUMNS,
    "depthwise": window.COLUMNS,
    "matmul": matmul.COLUMNS,
    "pair": pair.COLUMNS,
    "table": table.TABLE_COLUMNS,
    "clip": table.CLIP_COLUMNS,
    "copy": move.COPY_COLUMNS,
    "fill": move.FILL_COLUMNS,
    "take": move.TAKE_COLUMNS,
    "max_pool": pool.MAX_POOL_COLUMNS,
    "reduce": pool.REDUCE_COLUMNS,
    "global_average_pool": global_average_pool.COLUMNS,
    "average_pool": pool.AVERAGE_POOL_COLUMNS,
    "softmax": softmax.COLUMNS,
    "quantize": boundary.QUANTIZE_COLUMNS,
    "dequantize": boundary.DEQUANTIZE_COLUMNS,
    "acc_to_real": boundary.ACC_TO_REAL_COLUMNS,
    "conv_u8s8": conv_u8s8.COLUMNS,
    "depthwise_u8s8": depthwise_u8s8.COLUMNS,
}
"""What the columns of a row hold from 1 on, by kernel, in the order of the kernels' numbers."""

NUMBERS = {name: number for number, name in enumerate(COLUMNS)}
REQUANTIZING = (
    *("conv", "conv_u8s8", "depthwise", "depthwise_u8s8", "matmul", "global_average_pool"),
)

CLAIMED, FINISHED, PLACE = 0, 8, 16
"""Two counters of a row, each on a cache line of its own, and the numbers from row to row."""
PARTS_PER_THREAD = 4
"""Enough that a thread that is held up holds up little."""
SPINS = 2000
"""How often a thread looks whether a row is finished before it lets others run: some 50 us."""


def columns_of(kernel: str) -> dict[str, int]:
    """Position in a row of each column of a kernel."""
    own = {name: 1 + i for i, name in enumerate(COLUMNS[kernel])}
    if kernel not in REQUANTIZING:
        return own
    return own | {name: requantize.FORM + i for i, name in enumerate(requantize.REQUANT_COLUMNS)}


def new_claims(rows: int) -> I64:
    """What the threads of one run share: counters of each row, and whether to give up."""
    return np.zeros((rows + 1) * PLACE, np.int64)


def parts_of(n_threads: int) -> int:
    """Into how many parts a row is cut for so many threads."""
    return 1 if n_threads == 1 else PARTS_PER_THREAD * n_threads


@lean_jit
def run_row(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Call the kernel of a row.

    Args:
        row: row[0] is the kernel's number in NUMBERS, [64].
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    kernel = row[0]
    if kernel == 0:
        conv.conv(row, arena, consts, thread, n_threads)
    elif kernel == 1:
        depthwise.depthwise(row, arena, consts, thread, n_threads)
    elif kernel == 2:
        matmul.matmul(row, arena, consts, thread, n_threads)
    elif kernel == 3:
        pair.pair(row, arena, consts, thread, n_threads)
    elif kernel == 4:
        table.table(row, arena, consts, thread, n_threads)
    elif kernel == 5:
        table.clip(row, arena, consts, thread, n_threads)
    elif kernel == 6:
        move.copy(row, arena, consts, thread, n_threads)
    elif kernel == 7:
        move.fill(row, arena, consts, thread, n_threads)
    elif kernel == 8:
        move.take(row, arena, consts, thread, n_threads)
    elif kernel == 9:
        pool.max_pool(row, arena, consts, thread, n_threads)
    elif kernel == 10:
        pool.reduce(row, arena, consts, thread, n_threads)
    elif kernel == 11:
        global_average_pool.global_average_pool(row, arena, consts, thread, n_threads)
    elif kernel == 12:
        pool.average_pool(row, arena, consts, thread, n_threads)
    elif kernel == 13:
        softmax.softmax(row, arena, consts, thread, n_threads)
    elif kernel == 14:
        boundary.quantize(row, arena, consts, thread, n_threads)
    elif kernel == 15:
        boundary.dequantize(row, arena, consts, thread, n_threads)
    elif kernel == 16:
        boundary.acc_to_real(row, arena, consts, thread, n_threads)
    elif kernel == 17:
        conv_u8s8.conv_u8s8(row, arena, consts, thread, n_threads)
    else:
        depthwise_u8s8.depthwise_u8s8(row, arena, consts, thread, n_threads)


def dispatch_naive(rows: I64, arena: U8, consts: U8, parts: int, claims: I64) -> None:
    """Specification of `dispatch`: row by row, each in one part."""
    del parts, claims
    for row in rows:
        run_row(row, arena, consts, 0, 1)


@lean_jit
def dispatch(rows: I64, arena: U8, consts: U8, parts: int, claims: I64) -> None:
    """Run rows in order, with whoever else calls this; return when the last one is finished.

    Args:
        rows: One kernel call each, [n, 64].
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        parts: Into how many parts a row is cut that does not say ALONE.
        claims: From `new_claims`, shared by the threads of this run.
    """
    given_up = rows.shape[0] * PLACE
    for i in range(rows.shape[0]):
        row = rows[i]
        count = 1 if row[ALONE] != 0 else parts
        claimed, finished = i * PLACE + CLAIMED, i * PLACE + FINISHED
        # The look before the claim keeps those who come late from writing to finished rows.
        while atomic_load(claims, claimed) < count and atomic_load(claims, given_up) == 0:
            part = atomic_add(claims, claimed, 1)
            if part < count:
                run_row(row, arena, consts, part, count)
                atomic_add(claims, finished, 1)
        spins = 0
        while atomic_load(claims, finished) < count:
            if atomic_load(claims, given_up) != 0:
                return
            if spins < SPINS:
                spins += 1
                pause()
            else:
                give_way()


@lean_jit
def give_up(claims: I64) -> None:
    """Let other threads of a run go home without finishing it."""
    atomic_add(claims, claims.size - PLACE, 1)

"""Runs the rows of a plan, one kernel call a row, inside one compiled call of each thread.

A row is cut into parts that threads claim one by one, so nobody waits for a thread that has not
come: on a busy machine the caller just does more of the work. A row begins when all parts of the
one before are finished. Small rows have few parts.

Tried (CIFAR ResNet-20, 43 rows, 2 threads on 2 cores beside other work, 2026-11):
    equal shares and a barrier between rows              25 to 35 ms a run
    parts that are claimed                               3.1 ms (one thread: 2.9 to 4.8 ms)
Parts a thread (W8A8, 2 threads against 1, quiet machine with AMX, 2026-11):
                     1     2     3     4     6
    ResNet-50        2.03  1.99  1.89  1.83  1.75
    RegNetX-600MF    1.61  1.50  1.42  1.37  1.37
    MobileNetV2      1.48  1.43  1.42  1.40  1.39
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import (
    ROW_KERNELS,
    boundary,
    conv_amx,
    conv_u8s8,
    depthwise_u8s8,
    global_average_pool,
    matmul,
    move,
    pair,
    pool,
    reached,
    requantize,
    softmax,
    table,
    window,
    winograd,
)
from onnxptq.kernels.intrinsics import atomic_add, atomic_load, call_kernel, give_way, pause
from onnxptq.kernels.jit import address_of, lean_jit

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

ROW = requantize.ROW
MOST_PARTS = ROW - 1
"""Column of every row: into how many parts it may be cut, at least 1."""

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
    "conv_amx": conv_amx.COLUMNS,
    "depthwise_u8s8": depthwise_u8s8.COLUMNS,
    "winograd": winograd.COLUMNS,
    "reached": reached.COLUMNS,
}
"""What the columns of a row hold from 1 on, by kernel, in the order of the kernels' numbers."""

NUMBERS = {name: number for number, name in enumerate(COLUMNS)}
REQUANTIZING = (
    *("conv", "conv_u8s8", "conv_amx", "winograd", "depthwise", "depthwise_u8s8"),
    *("matmul", "global_average_pool"),
)

CLAIMED, FINISHED, PLACE = 0, 8, 16
"""Two counters of a row, each on a cache line of its own, and the numbers from row to row."""
PARTS_PER_THREAD = 1
"""More would let the others do more of the work of a thread that is held up in the middle, but each
copies borders and reads weights of its own."""
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


def new_addresses() -> I64:
    """Where each kernel is, by number: nowhere yet."""
    return np.zeros(len(NUMBERS), np.int64)


def update_addresses(addresses: I64, rows: I64) -> None:
    """Fill in where the kernels are that rows call; those that no process used yet are compiled."""
    for number in set(rows[:, 0].tolist()) & set(NUMBERS.values()):
        if addresses[number] == 0:
            addresses[number] = address_of(list(ROW_KERNELS.values())[number])


def dispatch_naive(
    rows: I64, addresses: I64, arena: U8, consts: U8, parts: int, claims: I64
) -> bool:
    """Specification of `dispatch`: row by row, each in one part."""
    del parts, claims
    kernels = list(ROW_KERNELS.values())
    for row in rows:
        if not 0 <= row[0] < addresses.size or addresses[row[0]] == 0:
            return False
        kernels[row[0]](row, arena, consts, 0, 1)
    return True


@lean_jit
def dispatch(rows: I64, addresses: I64, arena: U8, consts: U8, parts: int, claims: I64) -> bool:
    """Run rows in order, with whoever else calls this; return when the last one is finished.

    Args:
        rows: One kernel call each, [n, 64].
        addresses: Where the kernels are, by number; from `new_addresses`.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        parts: Into how many parts a row is cut that does not say it has fewer.
        claims: From `new_claims`, shared by the threads of this run.

    Returns:
        False where somebody gave up, or a row calls a kernel without an address: all threads stop
        there.
    """
    given_up = rows.shape[0] * PLACE
    for i in range(rows.shape[0]):
        row = rows[i]
        number = row[0]
        if number < 0 or number >= addresses.size or addresses[number] == 0:
            atomic_add(claims, given_up, 1)
            return False
        count = min(parts, row[MOST_PARTS])
        claimed, finished = i * PLACE + CLAIMED, i * PLACE + FINISHED
        # The look before the claim keeps those who come late from writing to finished rows.
        while atomic_load(claims, claimed) < count and atomic_load(claims, given_up) == 0:
            part = atomic_add(claims, claimed, 1)
            if part < count:
                call_kernel(addresses[number], row, arena, consts, part, count)
                atomic_add(claims, finished, 1)
        spins = 0
        while atomic_load(claims, finished) < count:
            if atomic_load(claims, given_up) != 0:
                return False
            if spins < SPINS:
                spins += 1
                pause()
            else:
                give_way()
    return True


@lean_jit
def give_up(claims: I64) -> None:
    """Let other threads of a run go home without finishing it."""
    atomic_add(claims, claims.size - PLACE, 1)

"""What the instructions for products of bytes allow at most, measured on registers alone."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from onnxptq.kernels import maddubs, target
from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit

SUMS = 12
UNROLL = 4
ROUNDS = 50_000
_OPAQUE = "=v,0" if maddubs.WIDE else "=x,0"


def _emit(builder: mk.Builder, count: mk.Vector, to: mk.Vector, *, chained: bool) -> None:
    kind = maddubs.WORDS if chained else maddubs.SUMS
    same = mk.ir.FunctionType(maddubs.BYTES, [maddubs.BYTES])

    def body(
        builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]
    ) -> Sequence[mk.Vector]:
        del turn
        *sums, w, x = carried
        for j in range(SUMS * UNROLL):
            # LLVM must not see that all products are the same.
            w = builder.asm(same, "", _OPAQUE, [w], side_effect=True)
            words = maddubs.product(builder, x, w)
            added = words if chained else maddubs.widened(builder, words)
            sums[j % SUMS] = builder.add(sums[j % SUMS], added)
        return [*sums, w, x]

    first = mk.load(builder, to, maddubs.BYTES)
    zeros = [mk.constant(0, kind)] * SUMS
    *sums, _, _ = mk.loop(builder, count, [*zeros, first, first], body)
    for j, vector in enumerate(sums):
        mk.store(builder, vector, mk.at(builder, to, maddubs.WIDTH * j))


@mk.microkernel("count", "to")
def _pairs(builder: mk.Builder, count: mk.Vector, to: mk.Vector) -> None:
    _emit(builder, count, to, chained=False)


@mk.microkernel("count", "to")
def _chained(builder: mk.Builder, count: mk.Vector, to: mk.Vector) -> None:
    _emit(builder, count, to, chained=True)


@lean_jit
def pairs(count: int, to: int) -> None:
    """Products, widened each time."""
    _pairs(count, to)


@lean_jit
def chained(count: int, to: int) -> None:
    """Products that stay in int16."""
    _chained(count, to)


def limits() -> dict[str, Callable[[], float]]:
    """What gives the GMAC/s of each way of one run; nothing where the target has no AVX2."""
    if not target.HAS_AVX2:
        return {}
    memory = np.zeros(maddubs.WIDTH * (SUMS + 1), np.uint8)

    def measure(kernel: Callable[[int, int], None]) -> Callable[[], float]:
        kernel(1, memory.ctypes.data)

        def run() -> float:
            started = time.thread_time()
            kernel(ROUNDS, memory.ctypes.data)
            seconds = time.thread_time() - started
            return ROUNDS * UNROLL * SUMS * maddubs.WIDTH / seconds / 1e9

        return run

    return {"pairs": measure(pairs), "chained": measure(chained)}

"""Instructions that Numba does not reach by itself, each beside its plain twin.

The atomic ones take a one-dimensional int64 array and the position of one element in it.
"""

import os
import platform
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from onnxptq.kernels.jit import ROW_KERNEL, RowKernel

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_ALIGN_BYTES = 8
_HAS_PAUSE = platform.machine().lower() in ("x86_64", "amd64")
# What gives the rest of a time slice away, in the C library of the process.
_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


def atomic_add_naive(array: I64, index: int, value: int) -> int:
    """Specification of `atomic_add`, for one thread."""
    old = int(array[index])
    array[index] += value
    return old


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Address of the element that the first two arguments name."""
    kind = signature.args[0]
    array = context.make_array(kind)(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, kind, array, [arguments[1]])


def _atomic_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    del typing, index, value

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature, arguments)
        return builder.atomic_rmw("add", place, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), build


def atomic_load_naive(array: I64, index: int) -> int:
    """Specification of `atomic_load`, for one thread."""
    return int(array[index])


def _atomic_load(typing: Any, array: Any, index: Any) -> Any:
    del typing, index

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature, arguments)
        return builder.load_atomic(place, "seq_cst", _ALIGN_BYTES)

    return types.int64(array, types.intp), build


def pause_naive() -> None:
    """Specification of `pause`: nothing happens."""


def _pause(typing: Any) -> Any:
    del typing

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature, arguments
        if _HAS_PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.none(), build


def give_way_naive() -> None:
    """Specification of `give_way`: any other thread may run first."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def _give_way(typing: Any) -> Any:
    del typing

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature, arguments
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.none(), build


def call_kernel_naive(
    kernel: RowKernel, row: I64, arena: U8, consts: U8, thread: int, n_threads: int
) -> None:
    """Specification of `call_kernel`, which takes the kernel's address instead."""
    kernel(row, arena, consts, thread, n_threads)


def _call_kernel(
    typing: Any, address: Any, row: Any, arena: Any, consts: Any, thread: Any, n_threads: Any
) -> Any:
    del typing, address, row, arena, consts, thread, n_threads

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        convention = context.call_conv
        kind = convention.get_function_type(types.none, ROW_KERNEL)
        kernel = builder.inttoptr(arguments[0], kind.as_pointer())
        status, result = convention.call_function(
            builder, kernel, types.none, ROW_KERNEL, arguments[1:]
        )
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return result

    return types.none(types.int64, *ROW_KERNEL), build


# Numba's decorator is not typed, and what compiled code calls has the type of the plain twin.
atomic_add = cast("Callable[[I64, int, int], int]", intrinsic(_atomic_add))
"""Add to an element, seen by all threads in one order; gives the value before."""
atomic_load = cast("Callable[[I64, int], int]", intrinsic(_atomic_load))
"""Read an element that other threads change, after all that they wrote before they changed it."""
pause = cast("Callable[[], None]", intrinsic(_pause))
"""Tell the core that this thread spins, so that its neighbour on the core gets more of it."""
give_way = cast("Callable[[], None]", intrinsic(_give_way))
"""Let another thread run, where more threads wait than there are cores."""
call_kernel = cast("Callable[[int, I64, U8, U8, int, int], None]", intrinsic(_call_kernel))
"""Call the kernel of the executor whose machine code begins at an address of `jit.address_of`."""


def signature_of(count: int) -> Any:
    """Numba's signature of a function of so many int64 that gives one."""
    return types.int64(*[types.int64] * count)

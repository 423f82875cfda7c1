"""The one Numba decorator: code is cached on disk, releases the GIL, never uses fastmath.

Fastmath would let LLVM reorder float sums and drop NaN checks, so equal inputs would no longer
give equal bits on two machines. Kernels that want vector sums write their lanes out.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")

_njit: Any = numba.njit


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` on its first call; its type stays that of the Python function."""
    return cast("Callable[P, R]", _njit(cache=True, nogil=True)(function))


def python_version(kernel: Callable[P, R]) -> Callable[P, R]:
    """The function behind a compiled kernel, to read its source or to run it without compiling."""
    return cast("Callable[P, R]", cast("Any", kernel).py_func)

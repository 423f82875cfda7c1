"""Design D4: no float instruction in a kernel between Quantize and Dequantize; none allocates."""

import re
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from onnxptq.kernels import ROW_KERNELS, target
from onnxptq.kernels.jit import python_version

FLOAT_KERNELS = frozenset({"quantize", "dequantize", "acc_to_real"})
"""Those of boundary.py, the one exemption."""

OF_OTHER_CPUS = frozenset[str]() if target.HAS_AMX else frozenset({"conv_amx"})
"""What would not compile here."""

ROW = types.Array(types.int64, 1, "C")
BYTES = types.Array(types.uint8, 1, "C")
ROW_SIGNATURE = (ROW, BYTES, BYTES, types.int64, types.int64)

# Text and names may hold any word: literals, quoted names, metadata, comments go first.
NOT_CODE = re.compile(r'"(?:[^"\\]|\\.)*"|;[^\n]*|[%@$!#][\w.$-]+')
FLOATS = re.compile(
    r"\b(?:half|bfloat|float|double|fp128|x86_fp80|ppc_fp128"
    r"|f(?:add|sub|mul|div|rem|neg|cmp|ptrunc|pext|ptosi|ptoui)|[su]itofp)\b"
)
ALLOCATIONS = re.compile(r"@NRT_(?:\w*[Aa]lloc\w*|MemInfo_new\w*|Reallocate)")


def llvm(function: Callable[..., Any], signature: tuple[Any, ...]) -> str:
    """Optimised LLVM code of a function and all that it calls.

    Compiled afresh: code that comes from the cache on disk has no text any more.
    """
    dispatcher: Any = numba.njit(nogil=True)(function)
    dispatcher.compile(signature)
    return dispatcher.inspect_llvm(signature)


def floats(code: str) -> set[str]:
    return set(FLOATS.findall(NOT_CODE.sub(" ", code)))


@pytest.mark.parametrize("name", sorted(set(ROW_KERNELS) - FLOAT_KERNELS - OF_OTHER_CPUS))
def test_kernel_computes_in_integers_and_allocates_nothing(name: str) -> None:
    code = llvm(python_version(ROW_KERNELS[name]), ROW_SIGNATURE)

    assert f"{len(name)}{name}" in code  # its mangled name: there is code to look at
    assert floats(code) == set()
    assert set(ALLOCATIONS.findall(code)) == set()


def quotient(a: int, b: int) -> int:
    return int(a / b)


def float32_product(x: np.ndarray[Any, Any]) -> None:
    for i in range(x.size):
        x[i] = np.int32(np.float32(x[i]) * np.float32(0.5))


def calls_another(x: np.ndarray[Any, Any]) -> None:
    inner(x)


inner: Any = numba.njit(float32_product)


@pytest.mark.parametrize(
    ("function", "signature", "found"),
    [
        (quotient, (types.int64, types.int64), {"double", "sitofp", "fdiv", "fptosi"}),
        (float32_product, (types.Array(types.int32, 1, "C"),), {"float", "sitofp", "fmul"}),
        (calls_another, (types.Array(types.int32, 1, "C"),), {"float", "sitofp", "fmul"}),
    ],
)
def test_the_checker_finds_floats(
    function: Callable[..., Any], signature: tuple[Any, ...], found: set[str]
) -> None:
    assert found <= floats(llvm(function, signature))


def test_the_checker_is_not_misled_by_names() -> None:
    code = '%double.1 = add i32 %float, 1 ; fadd\n@"a float" = c"half\\22 double"\ncall @f.float()'

    assert floats(code) == set()


def allocates(n: int) -> int:
    x = np.empty(n, np.int64)
    x[:] = n
    return x[n // 2] + x[n // 3]


def test_the_checker_finds_allocations() -> None:
    assert ALLOCATIONS.findall(llvm(allocates, (types.int64,)))

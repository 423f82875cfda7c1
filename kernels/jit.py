"""The one door to Numba: code is cached on disk, releases the GIL, never uses fastmath.

Fastmath would let LLVM reorder float sums and drop NaN checks, so equal inputs would no longer
give equal bits on two machines. Kernels that want vector sums write their lanes out.

Numba's cache asks only whether the file of a kernel has changed. Machine code of a kernel also
holds what it calls from other files of this folder, so a stale caller would run the old callee.
`jit` therefore makes every stored kernel depend on its file and on all that this imports from here.
"""

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types

P = ParamSpec("P")
R = TypeVar("R")
RowKernel = Callable[
    [npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.uint8], int, int], None
]
"""A kernel of the executor: kernel(row, arena, consts, thread, n_threads)."""

_njit: Any = numba.njit
_ROW = types.Array(types.int64, 1, "C")
_BYTES = types.Array(types.uint8, 1, "C")
ROW_KERNEL = (_ROW, _BYTES, _BYTES, types.int64, types.int64)
"""Numba's types of its arguments."""


@functools.cache
def _sources() -> dict[str, str]:
    """Contents of the Python files beside this one, by name without suffix."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


@functools.cache
def imports_of(file: str) -> frozenset[str]:
    """Files of this folder that a file of this folder imports, itself among them.

    Read from the text: Python's parser would take longer than all else that happens at the start.
    """
    pattern = rf"^\s*(?:from|import)\s+{re.escape(__package__)}([^(\n]*(?:\([^)]*\))?)"
    found = {file}
    for rest in re.findall(pattern, _sources()[file], re.MULTILINE):
        words = re.findall(r"\w+", rest)
        # "from here.file import ...", "import here.file" or "from here import file, ...".
        names = words[:1] if rest.startswith(".") else words[1:]
        found |= {name if name in _sources() else "__init__" for name in names}
    return frozenset(found)


@functools.cache
def digest_of(module: str) -> str:
    """Digest of a module of this folder and of all that it imports from here; of others, of all."""
    package, _, file = module.rpartition(".")
    known = package == __package__ and file in _sources()
    wanted, found = {file} if known else set(_sources()), set[str]()
    while wanted:
        found |= wanted
        wanted = set[str]().union(*map(imports_of, wanted)) - found
    digest = hashlib.sha256()
    for name in sorted(found):
        content = _sources()[name].encode()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def stamp(kernel: Any, digest: str) -> bool:
    """Make what Numba has stored of `kernel` count only for this digest.

    Returns:
        Whether it was possible. Where Numba keeps its stamp elsewhere, or nothing is stored, its
        own check of the kernel's file remains.
    """
    try:
        file = kernel._cache._cache_file  # noqa: SLF001 - there is no public way to it
        file._source_stamp = (file._source_stamp, digest)  # noqa: SLF001
    except AttributeError:
        return False
    return True


def _stored(kernel: Any) -> Any:
    stamp(kernel, digest_of(kernel.__module__))
    return kernel


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` on its first call; its type stays that of the Python function."""
    return _stored(_njit(cache=True, nogil=True, no_cfunc_wrapper=True)(function))


def lean_jit(function: Callable[P, R]) -> Callable[P, R]:
    """As `jit`, for code that allocates nothing: views of arrays are not counted, so they are free.

    Numba counts references to arrays by atomic instructions, two a view, which costs a small layer
    half its time. Code that allocates, or gives an array back, does not compile here.
    """
    return _stored(_njit(cache=True, nogil=True, no_cfunc_wrapper=True, _nrt=False)(function))


def address_of(kernel: RowKernel) -> int:
    """Where the machine code of a kernel of the executor begins; compiles or loads it first.

    It is what `intrinsics.call_kernel` calls, valid as long as the process lives and in its forked
    children.
    """
    compiled = cast("Any", kernel)
    if ROW_KERNEL not in compiled.overloads:
        compiled.compile(ROW_KERNEL)
    found = compiled.overloads[ROW_KERNEL]
    return found.library.get_pointer_to_function(found.fndesc.llvm_func_name)


def python_version(kernel: Callable[P, R]) -> Callable[P, R]:
    """The function behind a compiled kernel, to read its source or to run it without compiling."""
    return cast("Callable[P, R]", cast("Any", kernel).py_func)

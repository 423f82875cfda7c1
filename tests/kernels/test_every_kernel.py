"""All rows of KERNELS equal their plain twins; the rules of kernels/ hold."""

import ast
import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxptq.kernels import KERNELS, ROW_KERNELS
from onnxptq.kernels.jit import python_version

FOLDER = Path(__file__).parents[2] / "kernels"
FILES = sorted(FOLDER.glob("*.py"))
THREADS = 3
"""Cases of kernels with a row have scratch for so many."""


def outcome(function: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """What a kernel gives back and what it left in its arguments."""
    own = copy.deepcopy(arguments)
    result = function(*own)
    clear_scratch(function, own)
    return [result, *(argument for argument in own if isinstance(argument, np.ndarray))]


def clear_scratch(function: Any, arguments: tuple[Any, ...]) -> None:
    """Zero the scratch of a kernel whose row names one: what it leaves there is no result."""
    columns = getattr(sys.modules[function.__module__], "COLUMNS", ())
    if "scratch" in columns:
        row, arena = arguments[:2]
        scratch = int(row[1 + columns.index("scratch")])
        arena[scratch : scratch + THREADS * int(row[1 + columns.index("scratch_bytes")])] = 0


def assert_equal(found: Any, expected: Any, rtol: float) -> None:
    if found is None:
        assert expected is None
        return
    found, expected = np.asarray(found), np.asarray(expected)
    if expected.dtype.kind in "iu":
        np.testing.assert_array_equal(found, expected)
    else:
        # Sums are taken in another order: zero may come out as a rounding error of what was summed.
        top = np.abs(expected[np.isfinite(expected)]).max(initial=1)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * 1e-3 * top)


@pytest.mark.parametrize("name", [name for name in KERNELS if not name.startswith("search")])
def test_kernel_equals_its_plain_twin(name: str, request: pytest.FixtureRequest) -> None:
    kernel = KERNELS[name]
    rng = np.random.default_rng(hash(request.node.name) % 2**32)

    for arguments in kernel.cases(rng):
        found = outcome(kernel.function, arguments)
        expected = outcome(kernel.naive, arguments)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other, kernel.rtol)


@pytest.mark.parametrize("name", [name for name in ROW_KERNELS if name in KERNELS])
@pytest.mark.parametrize("n_threads", [2, THREADS])
def test_threads_together_compute_the_whole(name: str, n_threads: int) -> None:
    kernel = KERNELS[name]

    for *arguments, _, _ in kernel.cases(np.random.default_rng(n_threads)):
        one, parts = copy.deepcopy(arguments), copy.deepcopy(arguments)
        kernel.function(*one, 0, 1)
        for thread in reversed(range(n_threads)):
            kernel.function(*parts, thread, n_threads)
        for data in (one, parts):
            clear_scratch(kernel.function, tuple(data))

        np.testing.assert_array_equal(one[1], parts[1])


def test_grid_search_finds_an_error_as_small_as_trying_everything() -> None:
    kernel = KERNELS["search_grid"]

    for arguments in kernel.cases(np.random.default_rng(0)):
        _, _, found = kernel.function(*arguments)
        _, _, least = kernel.naive(*arguments)
        assert found == pytest.approx(least, rel=kernel.rtol)  # tails are interpolated in a bin


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_says_its_contract(name: str) -> None:
    doc = python_version(KERNELS[name].function).__doc__

    assert doc is not None
    assert "Args:" in doc or len(doc) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_our_decorator_compiles(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    decorators = [
        ast.unparse(decorator)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    ]
    plain = {"property", "classmethod", "staticmethod", "functools.cache"}
    ours = {"jit", "lean_jit", "microkernel", *plain}

    assert {name.split("(")[0].removeprefix("mk.") for name in decorators} <= ours


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_numba_has_one_door(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    imports |= {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }

    doors = {"jit.py", "intrinsics.py", "target.py", "peak.py"}
    assert "numba" not in imports or path.name in doors


def test_the_decorators_cache_release_the_gil_and_keep_floats_strict() -> None:
    calls = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(ast.parse((FOLDER / "jit.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_njit"
    ]

    common = {"cache": "True", "nogil": "True", "no_cfunc_wrapper": "True"}
    assert calls == [common, {**common, "_nrt": "False"}]

"""All rows of KERNELS equal their plain twins; the rules of kernels/ hold."""

import ast
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxptq.kernels import KERNELS
from onnxptq.kernels.jit import python_version

FOLDER = Path(__file__).parents[2] / "kernels"
FILES = sorted(FOLDER.glob("*.py"))


def outcome(function: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """What a kernel gives back and what it left in its arguments."""
    own = copy.deepcopy(arguments)
    return [function(*own), *(argument for argument in own if isinstance(argument, np.ndarray))]


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

    assert set(decorators) <= {"jit", "property", "classmethod", "staticmethod"}


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

    assert "numba" not in imports or path.name in {"jit.py", "intrinsics.py"}


def test_the_decorator_caches_releases_the_gil_and_keeps_floats_strict() -> None:
    call = next(
        node
        for node in ast.walk(ast.parse((FOLDER / "jit.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_njit"
    )

    assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} == {
        "cache": "True",
        "nogil": "True",
    }

"""The budgets of the house, measured. They change by decision, not in passing.

ruff holds complexity, parameters, public docstrings and `print` (C90, PLR0913, D, T20); the rest
is here.
"""

import ast
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_paths import ROOT

MAX_FILE_LINES = 500
MAX_KERNEL_FILE_LINES = 800
MAX_MEDIAN_FILE_LINES = 150
MAX_FUNCTION_LINES = 80
USUAL_FUNCTION_LINES = 40
SHARE_OF_USUAL_FUNCTIONS = 0.95
MAX_PARAMETERS = 6
MAX_NESTING = 3
BLOCK_LINES = 6
MAX_REPEATED_SHARE = 0.03
PRINTERS = {"onnxptq/cli.py", "onnxptq/report/terminal.py"}
# One parameter a flag, and onnxruntime's own signature: the length is that of a contract.
MANY_PARAMETERS = {"onnxptq/cli.py", "onnxptq/compat.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef

BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)


def python_files(*folders: str) -> list[Path]:
    """Our files in these folders; links are not walked, since their targets are named."""
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not any((ROOT / part).is_symlink() for part in path.relative_to(ROOT).parents)
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters_of(function: Function) -> list[ast.arg]:
    """All parameters but self and cls."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [argument for argument in [*named, *extra] if argument.arg not in ("self", "cls")]


def depth(node: ast.AST) -> int:
    """How deep blocks are nested inside of `node`; an `elif` stands beside its `if`, not inside."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef | ast.ClassDef):
                continue
            is_elif = isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If)
            opens = isinstance(child, BLOCKS) and not is_elif
            deepest = max(deepest, depth(child) + opens)
    return deepest


def our_lines(path: Path) -> list[str]:
    """Stripped code lines; blank lines, comments, imports and lone brackets repeat by nature."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    skipped = ("#", "import ", "from ")
    return [line for line in lines if not line.startswith(skipped) and len(line) > 3]


def repeated_share(files: list[Path]) -> float:
    """Share of code lines that lie in a block of six lines which occurs twice or more."""
    places: defaultdict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    total = 0
    for path in files:
        lines = our_lines(path)
        total += len(lines)
        for start in range(len(lines) - BLOCK_LINES + 1):
            places[tuple(lines[start : start + BLOCK_LINES])].append((path, start))
    repeated = {
        (path, start + offset)
        for starts in places.values()
        if len(starts) > 1
        for path, start in starts
        for offset in range(BLOCK_LINES)
    }
    return len(repeated) / max(total, 1)


@pytest.mark.parametrize("folder", ["onnxptq", "models", "tests", "benchmarks"])
def test_no_file_is_too_long(folder: str) -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in python_files(folder)}

    assert {name: n for name, n in long.items() if n > MAX_FILE_LINES} == {}


def test_no_kernel_file_is_too_long() -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in python_files("kernels")}

    assert {name: n for name, n in long.items() if n > MAX_KERNEL_FILE_LINES} == {}


def test_the_usual_file_is_short() -> None:
    lengths = [len(path.read_text().splitlines()) for path in python_files("onnxptq")]

    assert statistics.median(lengths) < MAX_MEDIAN_FILE_LINES


def test_no_function_is_too_long() -> None:
    long = [
        f"{name_of(path)}:{function.lineno} {function.name}: {lines_of(function)} lines"
        for path in python_files("onnxptq", "models", "benchmarks")
        for function in functions(path)
        if lines_of(function) > MAX_FUNCTION_LINES
    ]

    assert long == []


def test_functions_are_short_as_a_rule() -> None:
    lengths = sorted(
        (lines_of(function), f"{name_of(path)}:{function.lineno}")
        for path in python_files("onnxptq")
        for function in functions(path)
    )

    long = [place for length, place in lengths if length >= USUAL_FUNCTION_LINES]

    assert len(long) <= (1 - SHARE_OF_USUAL_FUNCTIONS) * len(lengths), long


def test_functions_take_few_parameters() -> None:
    wide = [
        f"{name_of(path)}:{function.lineno} {function.name}"
        for path in python_files("onnxptq", "models")
        if name_of(path) not in MANY_PARAMETERS
        for function in functions(path)
        if len(parameters_of(function)) > MAX_PARAMETERS
    ]

    assert wide == []


def test_blocks_are_not_nested_deeply() -> None:
    deep = [
        f"{name_of(path)}:{function.lineno} {function.name}"
        for path in python_files("onnxptq", "models")
        for function in functions(path)
        if depth(function) > MAX_NESTING
    ]

    assert deep == []


def test_an_elif_is_not_deeper_than_its_if() -> None:
    code = "def f(x):\n if x == 1: pass\n elif x == 2: pass\n elif x == 3: pass\n"

    assert depth(ast.parse(code).body[0]) == 1


def test_every_parameter_and_result_is_annotated() -> None:
    bare = [
        f"{name_of(path)}:{function.lineno} {function.name}"
        for path in python_files("onnxptq", "models")
        for function in functions(path)
        if function.returns is None or any(a.annotation is None for a in parameters_of(function))
    ]

    assert bare == []


def test_only_the_terminal_modules_print() -> None:
    printing = {
        name_of(path)
        for path in python_files("onnxptq", "kernels")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }

    assert printing <= PRINTERS


def test_little_is_written_twice() -> None:
    files = python_files("onnxptq", "benchmarks")

    assert repeated_share(files) < MAX_REPEATED_SHARE


def test_a_repeated_block_is_found(tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    block = "".join(f"value_{i} = compute({i})\n" for i in range(BLOCK_LINES))
    first.write_text(block)
    second.write_text(block)

    assert repeated_share([first, second]) == 1.0


def test_ruff_holds_the_budgets_that_are_not_measured_here() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    lint = ruff["lint"]

    assert {"C90", "D", "PL", "T20"} <= set(lint["select"])
    assert lint["mccabe"]["max-complexity"] == 10
    assert lint["pylint"]["max-args"] == MAX_PARAMETERS

"""What Numba has stored of a kernel is used until a file of the folder that it imports changes."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxptq.kernels import jit
from tests.data_paths import ROOT

CALLEE = """
from onnxptq_small.jit import jit

@jit
def number(x: int) -> int:
    return x + {added}
"""
CALLER = """
from onnxptq_small.callee import number
from onnxptq_small.jit import jit

@jit
def twice(x: int) -> int:
    return 2 * number(x)
"""
OTHER = """
from onnxptq_small.jit import jit

@jit
def same(x: int) -> int:
    return x
"""
RUN = """
from onnxptq_small.caller import twice
from onnxptq_small.other import same
print(twice(1), *(sum(kernel.stats.cache_hits.values()) for kernel in (twice, same) if kernel(1)))
"""


def run(folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_change_in_a_called_file_compiles_the_caller_again(tmp_path: Path) -> None:
    package = tmp_path / "onnxptq_small"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "kernels" / "jit.py", package / "jit.py")
    (package / "callee.py").write_text(CALLEE.format(added=1))
    (package / "caller.py").write_text(CALLER)
    (package / "other.py").write_text(OTHER)

    first, second = run(tmp_path), run(tmp_path)
    (package / "callee.py").write_text(CALLEE.format(added=2))
    third = run(tmp_path)

    assert first == "4 0 0"
    assert second == "4 1 1"
    assert third == "6 0 1"


FILES = {path.stem: path for path in sorted((ROOT / "kernels").glob("*.py"))}


@pytest.mark.parametrize("file", FILES)
def test_imports_are_those_that_python_sees(file: str) -> None:
    expected = {file}
    for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxptq.kernels"):
            module = (node.module or "").removeprefix("onnxptq.kernels").removeprefix(".")
            names = [module] if module else [name.name for name in node.names]
            expected |= {name if name in FILES else "__init__" for name in names}

    assert jit.imports_of(file) == expected


def test_a_digest_is_of_what_is_imported_far_away_too() -> None:
    own, other = jit.digest_of("onnxptq.kernels.conv"), jit.digest_of("onnxptq.kernels.pool")

    assert jit.imports_of("conv") >= {"window"}
    assert jit.imports_of("window") >= {"requantize"}
    assert own != other
    assert jit.digest_of("elsewhere.conv") not in (own, other)


def test_a_kernel_is_stamped_with_the_digest() -> None:
    file = SimpleNamespace(_source_stamp="file")
    kernel = SimpleNamespace(_cache=SimpleNamespace(_cache_file=file))

    assert jit.stamp(kernel, "digest")

    assert vars(file) == {"_source_stamp": ("file", "digest")}


def test_another_numba_keeps_its_own_check() -> None:
    assert not jit.stamp(object(), "digest")

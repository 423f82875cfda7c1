"""What Numba has stored of a kernel is used until any file of the folder changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
RUN = """
from onnxptq_small.caller import twice
print(twice(1), sum(twice.stats.cache_hits.values()))
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

    first, second = run(tmp_path), run(tmp_path)
    (package / "callee.py").write_text(CALLEE.format(added=2))
    third = run(tmp_path)

    assert first == "4 0"
    assert second == "4 1"
    assert third == "6 0"


def test_a_kernel_is_stamped_with_the_contents_of_the_folder() -> None:
    file = SimpleNamespace(_source_stamp="file")
    kernel = SimpleNamespace(_cache=SimpleNamespace(_cache_file=file))

    assert jit.stamp(kernel, "digest")

    assert vars(file) == {"_source_stamp": ("file", "digest")}


def test_another_numba_keeps_its_own_check() -> None:
    assert not jit.stamp(object(), "digest")

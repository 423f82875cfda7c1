import importlib.metadata
import subprocess
import sys

import pytest

import onnxptq

HEAVY = (
    "numpy",
    "scipy",
    "numba",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxsim",
    "matplotlib",
    "PIL",
    "rich",
    "torch",
    "typer",
)


@pytest.mark.parametrize("name", onnxptq.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    assert getattr(onnxptq, name).__doc__


@pytest.mark.parametrize("name", onnxptq.__all__)
def test_dir_lists_every_public_name(name: str) -> None:
    assert name in dir(onnxptq)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = onnxptq.quantise


def test_import_brings_in_nothing_heavy() -> None:
    code = "import sys, onnxptq; print(*sorted(sys.modules))"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert [name for name in HEAVY if name in loaded] == []


def test_import_takes_less_than_a_tenth_of_a_second() -> None:
    # The best of five: the budget is about our imports, not about a busy machine.
    code = "import time; t = time.perf_counter(); import onnxptq; print(time.perf_counter() - t)"

    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    ]

    assert min(seconds) < 0.1


def test_version_is_the_packaged_one() -> None:
    assert onnxptq.__version__ == importlib.metadata.version("onnxptq")

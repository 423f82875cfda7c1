"""Smaller CPUs than this one: what is compiled for them computes the same, without what they lack.

Each test compiles in a process of its own, and an instruction that a target lacks would end it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxptq
from onnxptq import demo_data
from onnxptq.kernels import ROW_KERNELS, target
from onnxptq.runtime.lower import lower
from tests.data_paths import ROOT

AMX = r"\btdpb|\btile"
VNNI = r"vpdpbusd|" + AMX
WIDE = r"%zmm|%k[0-7]|%[xy]mm(?:1[6-9]|2\d|3[01])|" + VNNI
LACKS = {
    "x86-64": r"%ymm|\bv[a-z]+\w*\s|" + WIDE,
    "haswell": WIDE,
    "skylake-avx512": VNNI,
    "cascadelake": AMX,
}
"""What must not be in the assembly for a CPU, by LLVM's name for it."""
CPUS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not target.features_of(name, "") <= target.FEATURES | {"fma"},
            reason="this CPU does not run it",
        ),
    )
    for name in LACKS
]
FOREIGN = frozenset({"conv_amx"})
"""Kernels that no other CPU compiles."""


def on(cpu: str | None, job: str, *arguments: Any) -> dict[str, Any]:
    """What a job of on_target.py answers, compiled for a CPU, or for this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cpu is not None:
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "tests.kernels.on_target", job, *map(str, arguments)]
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert ran.returncode == 0, f"{ran.returncode}: {ran.stderr[-2000:]}"
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small network's program, and what to feed."""
    folder = tmp_path_factory.mktemp("targets")
    images = demo_data.load()[0]
    onnxptq.quantize(demo_data.model_path(), images[:32], report_samples=0).save(folder / "q.onnx")
    lower(folder / "q.onnx").save(folder / "q.program.npz")
    np.savez(folder / "x.npz", allow_pickle=False, **{demo_data.INPUT_NAME: images[32:40]})
    return folder / "q.program.npz", folder / "x.npz"


needs_avx2 = pytest.mark.skipif(not target.HAS_AVX2, reason="this CPU does not run it")


@needs_avx2
@pytest.mark.parametrize("cpu", ["haswell", *CPUS[2:3]])
def test_sums_of_pairs_are_exact(cpu: str) -> None:
    found = on(cpu, "products")

    assert found["wrong"] == 0
    assert found["chains"][0] == 1
    assert found["chains"][-1] > 16


@needs_avx2
def test_products_for_avx2_are_chains_of_pairs_in_16_registers() -> None:
    assembly = on("haswell", "product_code")["assembly"]

    assert not re.findall(LACKS["haswell"], assembly)
    # Two loops: one that widens each product, and one that does not.
    assert assembly.count("vpmaddubsw") == 2 * 24
    assert assembly.count("vpaddw") == 24


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_convolutions_equal_their_plain_twin(cpu: str) -> None:
    here, there = on(None, "cases"), on(cpu, "cases")

    assert there["wrong"] == 0
    assert there["digest"] == here["digest"]
    if there["by_steps"]:
        assert {1, 4, 64} < set(there["chains"])


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_a_network_has_the_same_codes(cpu: str, digits: tuple[Path, Path]) -> None:
    here, there = on(None, "network", *digits), on(cpu, "network", *digits)

    assert there == here
    assert there["tensors"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("name", ["conv", "conv_u8s8", "max_pool", "pair"])
def test_no_kernel_has_what_its_cpu_lacks(cpu: str, name: str) -> None:
    assembly = on(cpu, "kernel_code", name)["assembly"]

    assert not re.findall(LACKS[cpu], assembly)
    by_pairs = name == "conv_u8s8" and cpu in ("haswell", "skylake-avx512")
    assert ("vpmaddubsw" in assembly) == by_pairs


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ROW_KERNELS) - FOREIGN))
def test_other_machines_compile_what_is_not_for_x86(name: str) -> None:
    known = on("generic", "has_arm")
    if not known["known"]:
        pytest.skip("this LLVM compiles for no other machine")
    assert not known["is_x86"]

    found = on("generic", "arm_code", name)

    assert found["foreign"] == []
    assert "\tret\n" in found["assembly"]

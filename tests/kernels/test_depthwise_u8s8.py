"""Columns of the fast depthwise convolution, and its code for a CPU without vpdpbusd."""

import os
import subprocess
import sys

import pytest

from onnxptq.kernels.depthwise_u8s8 import COUNT, IN_COPY, IN_X, PLACE, TAPS, Line, columns_of
from tests.data_paths import ROOT

WITHOUT_VNNI = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+sse2"}


def line(channels: int, width: int, stride: int = 1, pad: int = 1) -> Line:
    out = (width + 2 * pad - 3) // stride + 1
    return Line(channels, channels, width, out, 3, stride, 1, pad, in_h=5)


@pytest.mark.parametrize("channels", [1, 16, 24, 33, 48, 64, 100, 144])
@pytest.mark.parametrize("stride", [1, 2])
def test_columns_cover_a_line(channels: int, stride: int) -> None:
    found = columns_of(line(channels, 9, stride))

    covered = {byte for c in found.table for byte in range(c[PLACE], c[PLACE] + c[COUNT])}
    assert covered == set(range(channels * line(channels, 9, stride).out_w))


@pytest.mark.parametrize("channels", [64, 100, 192])
def test_columns_of_one_pixel_are_not_put_together(channels: int) -> None:
    found = columns_of(line(channels, 9, stride=2))

    assert len(found.copies) == 0


def test_only_the_ends_of_a_line_are_put_together() -> None:
    found = columns_of(line(96, 12))

    kinds = found.table[:, TAPS::2]
    assert (kinds[2:-2] == IN_X).all()
    assert (kinds == IN_COPY).any(axis=1).sum() == 2


@pytest.mark.slow  # it compiles for 6 s
def test_cases_without_vnni_equal_the_plain_twin() -> None:
    """In a process of its own, since a process compiles for one CPU."""
    script = (
        "import numpy as np;"
        "from onnxptq.kernels import KERNELS;"
        "from onnxptq.kernels.target import HAS_VNNI;"
        "from tests.kernels.test_every_kernel import outcome;"
        "kernel = KERNELS['depthwise_u8s8'];"
        "cases = list(kernel.cases(np.random.default_rng(0)));"
        "assert not HAS_VNNI;"
        "pairs = [(outcome(kernel.function, c), outcome(kernel.naive, c)) for c in cases];"
        "assert all(np.array_equal(a[2], b[2]) for a, b in pairs)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | WITHOUT_VNNI,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr

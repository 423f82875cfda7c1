"""Convolutions by Winograd's tiles: never where something would not fit, exact where it does."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq.kernels import target
from onnxptq.kernels.dispatch import NUMBERS
from onnxptq.program import IntegerProgram, Value
from onnxptq.runtime import plan_conv
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.plan import make_plan
from tests.cpus import needs_vnni
from tests.runtime.small_programs import Builder, found, found_pair

pytestmark = pytest.mark.skipif(not target.HAS_AVX2, reason="this CPU convolves the portable way")

Array = npt.NDArray[Any]
BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])


@contextmanager
def preferred(kernel: str) -> Generator[None]:
    """Let plans take a kernel wherever it can be used."""

    def cycles(_: plan_conv.Layer, layout: plan_conv.Layout) -> float:
        return float(layout.kernel != kernel)

    with mock.patch.object(plan_conv, "_cycles", cycles):
        yield


def program(
    weight: Array,
    codes: tuple[int, int],
    *,
    zero: int = 0,
    pads: tuple[int, ...] = (1, 1, 1, 1),
    signed: bool = False,
    ending: str = "codes",
) -> IntegerProgram:
    """Codes that are clipped, and convolved with `weight` [M, C, 3, 3]; channels last."""
    b, kind = Builder(), "int8" if signed else "uint8"
    x = b.input(kind)
    low = b.add("clip", (x,), kind, {"lo": codes[0], "hi": codes[1]})
    b.values[low] = Value(b.values[low].name, kind, *codes)
    arrays = {
        "weight": weight.astype(np.int8),
        "weight_zero": np.zeros(1, np.int8),
        "bias": np.arange(len(weight), dtype=np.int32) * 7,
    }
    attrs = {"group": 1, "x_zero": zero, "channels_last": 1, "pads": pads}
    if ending == "accumulators":
        return b.program(b.add("conv", (low,), "int32", attrs, arrays=arrays))
    requant = found(np.full(len(weight), 0.004004, np.float32), 100, "uint8", 1 << 22)
    y = b.add("conv", (low,), "uint8", attrs, arrays=arrays, requant=requant)
    if ending == "sum":
        add = found_pair("add", (0.0312, 0.0523, 0.0617), (3, 120, 70), "uint8")
        y = b.add("add", (y, low), "uint8", requant=add)
    return b.program(y)


def kernels_of(made: IntegerProgram, shape: tuple[int, ...]) -> set[str]:
    (rows,) = make_plan(made, {"v0": shape}).steps
    assert isinstance(rows, np.ndarray)
    return {list(NUMBERS)[number] for number in rows[:, 0]}


def results(made: IntegerProgram, x: Array, kernel: str, threads: int = 1) -> Array:
    with preferred(kernel):
        assert kernel in kernels_of(made, x.shape)
        return Executor(made, threads).run(None, {"v0": x})[0]


def random_weight(rng: np.random.Generator, outs: int, channels: int) -> Array:
    return rng.integers(-8, 8, (outs, channels, 3, 3)).astype(np.int8)


@needs_vnni
@pytest.mark.parametrize(
    ("shape", "outs", "pads"),
    [
        ((1, 1, 1, 3), 5, (1, 1, 1, 1)),
        ((2, 7, 9, 16), 16, (1, 1, 1, 1)),
        ((1, 5, 4, 20), 70, (0, 2, 1, 0)),
        ((1, 33, 30, 64), 64, (1, 1, 1, 1)),
        ((1, 9, 9, 70), 130, (2, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_give_what_the_direct_kernel_gives(
    shape: tuple[int, ...], outs: int, pads: tuple[int, ...], threads: int, rng: np.random.Generator
) -> None:
    x = rng.integers(0, 256, shape).astype(np.uint8)
    made = program(random_weight(rng, outs, shape[-1]), (0, 15), zero=3, pads=pads)

    y = results(made, x, "winograd", threads)

    np.testing.assert_array_equal(y, results(made, x, "conv_u8s8"))


@needs_vnni
@pytest.mark.parametrize("ending", ["sum", "accumulators"])
def test_sums_and_accumulators_too(ending: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (1, 7, 6, 16)).astype(np.uint8)
    made = program(random_weight(rng, 16, 16), (40, 55), zero=44, ending=ending)

    y = results(made, x, "winograd")

    np.testing.assert_array_equal(y, results(made, x, "conv_u8s8"))


@needs_vnni
def test_signed_codes_are_moved_as_they_are_stored(rng: np.random.Generator) -> None:
    x = rng.integers(-128, 128, (1, 6, 6, 8)).astype(np.int8)
    made = program(random_weight(rng, 8, 8), (-31, 32), zero=-31, signed=True)

    y = results(made, x, "winograd")

    np.testing.assert_array_equal(y, results(made, x, "conv_u8s8"))


def test_codes_that_the_program_is_fed_may_be_any(rng: np.random.Generator) -> None:
    b = Builder()
    x = b.input("uint8")
    b.values[x] = Value("v0", "uint8", 0, 15)
    arrays = {"weight": random_weight(rng, 4, 4), "weight_zero": np.zeros(1, np.int8)}
    attrs = {"group": 1, "x_zero": 0, "channels_last": 1}
    made = b.program(b.add("conv", (x,), "int32", attrs, arrays=arrays))

    with preferred("winograd"):
        assert "winograd" not in kernels_of(made, (1, 5, 5, 4))


@pytest.mark.parametrize(
    "attrs", [{"strides": (2, 2)}, {"dilations": (2, 2)}, {"group": 2}, {"channels_last": 0}]
)
def test_other_windows_are_left_to_other_kernels(
    attrs: dict[str, Any], rng: np.random.Generator
) -> None:
    b = Builder()
    low = b.add("clip", (b.input("uint8"),), "uint8", {"lo": 0, "hi": 15})
    b.values[low] = Value("low", "uint8", 0, 15)
    weight = random_weight(rng, 8, 4 if "group" in attrs else 8)
    arrays = {"weight": weight, "weight_zero": np.zeros(1, np.int8)}
    given = {"group": 1, "x_zero": 0, "channels_last": 1, **attrs}
    made = b.program(b.add("conv", (low,), "int32", given, arrays=arrays))

    with preferred("winograd"):
        assert "winograd" not in kernels_of(made, (1, 8, 8, 8))


@needs_vnni
@given(
    lo=st.integers(0, 255),
    width=st.integers(58, 68) | st.integers(0, 255),
    outside=st.integers(-3, 3),
    top=st.integers(12, 18) | st.integers(1, 127),
    seed=st.integers(0, 2**16),
)
def test_chosen_only_where_everything_fits_and_exact_there(
    lo: int, width: int, outside: int, top: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lo, hi = min(lo, 255 - min(width, 255)), min(lo + width, 255)
    zero = int(np.clip(lo + outside if outside <= 0 else hi + outside, 0, 255))
    signs = rng.choice([-1, 1], (3, 2, 3, 3)) if seed % 2 else np.ones((3, 2, 3, 3))
    weight = (signs * top).astype(np.int8)
    x = np.where(rng.integers(0, 2, (1, 5, 6, 2)), lo, hi).astype(np.uint8)
    made = program(weight, (lo, hi), zero=zero, ending="accumulators")

    with preferred("winograd"):
        is_chosen = "winograd" in kernels_of(made, x.shape)
        y = Executor(made).run(None, {"v0": x})[0]

    assert is_chosen == fits(weight.astype(np.int64), min(lo, zero), max(hi, zero))
    bordered = np.pad(x.astype(np.int64) - zero, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(bordered, (3, 3), (1, 2))
    expected = np.einsum("nhwcij,ocij->nhwo", windows, weight.astype(np.int64))
    np.testing.assert_array_equal(y, expected + np.arange(3) * 7)


def fits(weight: Array, lo: int, hi: int) -> bool:
    """By the matrices: V spans at most 255 at each position, U is int8."""
    forms = np.einsum("ik,jl->ijkl", BT, BT).reshape(16, 16)
    most = np.where(forms > 0, forms * hi, forms * lo).sum(axis=1)
    least = np.where(forms > 0, forms * lo, forms * hi).sum(axis=1)
    u = np.einsum("ik,ockl,jl->ijoc", G, weight, G)
    return bool((most - least).max() <= 255 and u.min() >= -128 and u.max() <= 127)


def test_a_setting_keeps_tile_registers_from_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.TILES_SETTING, "0")

    assert not target.allow_tiles()

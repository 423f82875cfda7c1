"""kernels/softfloat.py equals the float32 unit on random, extreme and tied bit patterns."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq.kernels import softfloat
from onnxptq.kernels.jit import jit

U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

COUNT = 1_000_000
FINITE = st.integers(0, 0x7F7FFFFF) | st.integers(0x80000000, 0xFF7FFFFF)


@jit
def add_all(a: I64, b: I64, out: I64) -> None:
    """Every a + b."""
    for i in range(a.size):
        out[i] = softfloat.add(a[i], b[i])


@jit
def mul_all(a: I64, b: I64, out: I64) -> None:
    """Every a * b."""
    for i in range(a.size):
        out[i] = softfloat.mul(a[i], b[i])


@jit
def div_all(a: I64, b: I64, out: I64) -> None:
    """Every a / b."""
    for i in range(a.size):
        out[i] = softfloat.div(a[i], b[i])


@jit
def round_all(a: I64, out: I64) -> None:
    """Every rint(a)."""
    for i in range(a.size):
        out[i] = softfloat.round_to_int(a[i])


@jit
def convert_all(values: I64, out: I64) -> None:
    """Every float32(value)."""
    for i in range(values.size):
        out[i] = softfloat.from_int32(values[i])


RUN = {"add": add_all, "mul": mul_all, "div": div_all}
NUMPY: dict[str, Callable[[F32, F32], F32]] = {
    "add": np.add,
    "mul": np.multiply,
    "div": np.true_divide,
}
SCALAR = {
    "add": (softfloat.add, softfloat.add_naive),
    "mul": (softfloat.mul, softfloat.mul_naive),
    "div": (softfloat.div, softfloat.div_naive),
}


def finite(bits: U32) -> U32:
    """The same patterns, those of inf and NaN with a smaller exponent."""
    return np.where(bits & 0x7F800000 == 0x7F800000, bits ^ 0x40000000, bits).astype(np.uint32)


def any_pairs(rng: np.random.Generator) -> tuple[U32, U32]:
    """All exponents alike, subnormal numbers and zeros among them."""
    a, b = rng.integers(0, 1 << 32, (2, COUNT), dtype=np.uint32)
    return finite(a), finite(b)


def near_pairs(rng: np.random.Generator) -> tuple[U32, U32]:
    """Exponents at most 30 apart, where sums cancel and round."""
    a, b = any_pairs(rng)
    exponent = np.clip(
        ((a >> 23) & 255).astype(np.int64) + rng.integers(-30, 31, COUNT), 0, 254
    ).astype(np.uint32)
    return a, (b & np.uint32(0x807FFFFF)) | (exponent << np.uint32(23))


def tied_pairs(rng: np.random.Generator) -> tuple[U32, U32]:
    """Mantissas of few bits set at either end: many exact halves, carries and cancellations."""
    few = rng.integers(0, 8, (2, COUNT), dtype=np.uint32)
    top = rng.integers(0, 8, (2, COUNT), dtype=np.uint32) << np.uint32(20)
    flip = rng.integers(0, 2, (2, COUNT), dtype=np.uint32) * np.uint32(0x7FFFFF)
    exponents = rng.integers(100, 150, (2, COUNT), dtype=np.uint32) << np.uint32(23)
    signs = rng.integers(0, 2, (2, COUNT), dtype=np.uint32) << np.uint32(31)
    a, b = signs | exponents | ((few | top) ^ flip)
    return a, b


def tiny_pairs(rng: np.random.Generator) -> tuple[U32, U32]:
    """Results around the smallest normal number, where products and quotients lose bits."""
    a, b = any_pairs(rng)
    exponent = (np.clip(rng.integers(100, 155, COUNT), 0, 254)).astype(np.uint32)
    small = rng.integers(0, 40, COUNT, dtype=np.uint32)
    few = np.where(rng.random(COUNT) < 0.5, np.uint32(0x80700000), np.uint32(0x807FFFFF))
    return (
        (a & few) | (small << np.uint32(23)),
        (b & few) | (exponent << np.uint32(23)),
    )


def equal_bits(found: I64, expected: F32) -> None:
    np.testing.assert_array_equal(found, expected.view(np.uint32))


@pytest.mark.parametrize("pairs", [any_pairs, near_pairs, tied_pairs, tiny_pairs])
@pytest.mark.parametrize("name", ["add", "mul", "div"])
def test_every_bit_equals_the_float_unit(
    name: str,
    pairs: Callable[[np.random.Generator], tuple[U32, U32]],
    rng: np.random.Generator,
) -> None:
    a, b = pairs(rng)
    if name == "div":
        b = np.where(b & 0x7FFFFFFF == 0, np.uint32(0x3F800000), b)
    with np.errstate(all="ignore"):
        expected = NUMPY[name](a.view(np.float32), b.view(np.float32))
    found = np.empty(COUNT, np.int64)

    RUN[name](a.astype(np.int64), b.astype(np.int64), found)

    equal_bits(found, expected)


SPECIAL = [0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0x3F800000, 0x4B800000, 0x7F7FFFFF]


@pytest.mark.parametrize("name", ["add", "mul", "div"])
def test_ends_of_the_range_and_signed_zeros(name: str) -> None:
    function, naive = SCALAR[name]
    signed = [*SPECIAL, *(bits | 0x80000000 for bits in SPECIAL)]

    for a in signed:
        for b in signed:
            if name != "div" or b & 0x7FFFFFFF:
                assert function(a, b) == naive(a, b), (hex(a), hex(b))


@given(FINITE, FINITE)
def test_twins_agree(a: int, b: int) -> None:
    for name, (function, naive) in SCALAR.items():
        if name != "div" or b & 0x7FFFFFFF:
            assert function(a, b) == naive(a, b)
    assert softfloat.from_int32(a - (1 << 31)) == softfloat.from_int32_naive(a - (1 << 31))
    if a & 0x7FFFFFFF < 0x5E000000:
        assert softfloat.round_to_int(a) == softfloat.round_to_int_naive(a)


def test_integers_convert_as_the_float_unit_does(rng: np.random.Generator) -> None:
    shifts = rng.integers(0, 31, COUNT)
    ties = (rng.integers(1 << 23, 1 << 24, COUNT) << 7) + 64
    for values in (rng.integers(-(1 << 31), 1 << 31, COUNT) >> shifts, ties, -ties >> 1):
        values[:3] = 0, -(1 << 31), (1 << 31) - 1
        found = np.empty(COUNT, np.int64)

        convert_all(values, found)

        equal_bits(found, values.astype(np.float32))


def test_rounding_to_integers_halves_to_even(rng: np.random.Generator) -> None:
    halves = (rng.integers(-(1 << 23), 1 << 23, COUNT) / 2).astype(np.float32)
    spread = (rng.standard_normal(COUNT) * 2.0 ** rng.integers(-30, 55, COUNT)).astype(np.float32)
    for values in (halves, spread):
        found = np.empty(COUNT, np.int64)

        round_all(values.view(np.uint32).astype(np.int64), found)

        np.testing.assert_array_equal(found, np.rint(values).astype(np.int64))


def test_rounding_saturates_far_outside() -> None:
    assert softfloat.round_to_int(0x7F7FFFFF) == 1 << 62
    assert softfloat.round_to_int(0xFF7FFFFF) == -(1 << 62)

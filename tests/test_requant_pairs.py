"""Pairs of codes against the float formulas: all pairs, on scales rich in ties and on others."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq import formulas
from onnxptq.errors import ProgramError
from onnxptq.formulas import Affine, Container, PairFormula
from onnxptq.requant_pairs import PairForm, PairRequant, apply_pair, find_pair, prove_pair

Array = npt.NDArray[Any]
F = np.float32
CONTAINERS: list[Container] = [np.dtype(np.uint8), np.dtype(np.int8)]
KINDS = ["add", "mul"]

by_kind = pytest.mark.parametrize("kind", KINDS)
by_container = pytest.mark.parametrize("dtype", CONTAINERS, ids=str)


def ends(dtype: Container) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def grid(a: tuple[int, int], b: tuple[int, int]) -> tuple[Array, Array]:
    first, second = np.arange(a[0], a[1] + 1), np.arange(b[0], b[1] + 1)
    return np.repeat(first, second.size), np.tile(second, first.size)


def expected(
    kind: str, formula: PairFormula, lo: int, hi: int, pairs: tuple[Array, Array]
) -> Array:
    compute = formulas.added if kind == "add" else formulas.multiplied
    return np.clip(compute(*pairs, formula), lo, hi)


def some_formula(rng: np.random.Generator, dtype: Container, decimal: bool) -> PairFormula:
    lo, hi = ends(dtype)
    if decimal:
        scales = [F(int(step) * 0.01) for step in rng.integers(1, 40, 3)]
    else:
        scales = [F(scale) for scale in rng.uniform(0.005, 0.1, 3)]
    a, b, y = (Affine(scale, int(rng.integers(lo, hi + 1))) for scale in scales)
    return PairFormula(a, b, y, dtype, bool(rng.integers(2)))


@by_kind
@by_container
@pytest.mark.parametrize("decimal", [True, False])
def test_all_pairs_are_exact(kind: str, dtype: Container, decimal: bool, rng: np.random.Generator):
    whole = ends(dtype)
    forms: set[PairForm] = set()
    for _ in range(25):
        formula = some_formula(rng, dtype, decimal)

        pair = find_pair(kind, formula, *whole, whole, whole)

        pairs = grid(whole, whole)
        forms.add(pair.form)
        assert pair.proved
        assert prove_pair(pair, whole, whole)
        np.testing.assert_array_equal(
            apply_pair(pair, *pairs), expected(kind, formula, *whole, pairs)
        )
    assert PairForm.TABLE in forms or not decimal


@by_kind
def test_windows_of_codes_are_exact_and_mostly_fixed_point(kind: str, rng: np.random.Generator):
    dtype = CONTAINERS[0]
    fixed = 0
    for _ in range(40):
        formula = some_formula(rng, dtype, decimal=False)
        a_range, b_range = (0, 15), (40, 55)

        pair = find_pair(kind, formula, 16, 31, a_range, b_range)

        pairs = grid(a_range, b_range)
        fixed += pair.form == PairForm.FIXED_POINT
        np.testing.assert_array_equal(
            apply_pair(pair, *pairs), expected(kind, formula, 16, 31, pairs)
        )
    assert fixed > 30


@by_kind
def test_a_table_holds_every_pair_of_the_container(kind: str):
    dtype = CONTAINERS[1]
    tied = Affine(F(0.5), 1)
    formula = PairFormula(tied, tied, Affine(F(1.0), -3), dtype)
    pair = find_pair(kind, formula, -128, 127, (-100, 100), (-100, 100))
    whole = ends(dtype)

    assert pair.form == PairForm.TABLE
    assert pair.table.shape == (256, 256)
    assert pair.table.dtype == np.int8
    assert prove_pair(pair, whole, whole)


def test_a_gate_of_simple_scales_is_fixed_point():
    gate, x = Affine(F(1 / 255.5), 0), Affine(F(0.031), 5)
    formula = PairFormula(gate, x, x, CONTAINERS[0])

    pair = find_pair("mul", formula, 0, 255, (0, 255), (0, 255))

    assert pair.form == PairForm.FIXED_POINT
    assert pair.table.size == 0


@by_kind
@pytest.mark.parametrize(
    ("a", "b", "y"),
    [(1e-30, 1e-30, 1.0), (3.0, 2.0, 1e-6), (1e6, 1e-6, 1.0), (2.0**-149, 1.0, 1.0)],
)
def test_extreme_scales_are_exact(kind: str, a: float, b: float, y: float):
    dtype = CONTAINERS[0]
    formula = PairFormula(Affine(F(a), 3), Affine(F(b), 250), Affine(F(y), 17), dtype)

    pair = find_pair(kind, formula, 0, 255, (0, 255), (0, 255))

    pairs = grid((0, 255), (0, 255))
    assert prove_pair(pair, (0, 255), (0, 255))
    np.testing.assert_array_equal(apply_pair(pair, *pairs), expected(kind, formula, 0, 255, pairs))


def test_exchanged_operands_are_another_formula():
    """Of one element: the roundings change places, and so does a code of these scales."""
    dtype = CONTAINERS[0]
    a, b, y = Affine(F(0.34), 69), Affine(F(0.25), 78), Affine(F(0.2), 10)
    straight = PairFormula(a, b, y, dtype)
    pairs = grid((0, 255), (0, 255))

    found = [
        apply_pair(find_pair("add", formula, 0, 255, (0, 255), (0, 255)), *pairs)
        for formula in (straight, replace(straight, swapped=True))
    ]

    assert (found[0] != found[1]).any()


@pytest.fixture
def fixed() -> PairRequant:
    a, b, y = Affine(F(0.0313), 3), Affine(F(0.0471), 100), Affine(F(0.0523), 7)
    formula = PairFormula(a, b, y, CONTAINERS[0])
    pair = find_pair("add", formula, 0, 255, (0, 40), (80, 120))
    assert pair.form == PairForm.FIXED_POINT
    return pair


@pytest.mark.parametrize("field", ["multipliers", "rounding", "shift", "lo", "hi", "formula"])
def test_a_changed_number_is_found(field: str, fixed: PairRequant):
    first, second = fixed.multipliers
    moved = replace(fixed.formula, y=Affine(fixed.formula.y.scale, 8))
    change: dict[str, Any] = {
        "multipliers": (first, second + (second >> 5)),
        "rounding": fixed.rounding + (1 << fixed.shift - 1),
        "shift": fixed.shift - 1,
        "lo": 5,
        "hi": 10,
        "formula": moved,
    }
    # A narrower range of output codes is another promise, not a wrong number.
    kept = {"lo": fixed.lo, "hi": fixed.hi}.get(field) is not None
    changed = replace(fixed, **{field: change[field]})

    assert prove_pair(fixed, (0, 40), (80, 120))
    assert prove_pair(changed, (0, 40), (80, 120)) == kept


@pytest.mark.parametrize(
    "change",
    [
        {"multipliers": (2**31, 1)},
        {"rounding": 2**62},
        {"rounding": -(2**63)},
        {"shift": 63},
        {"shift": -1},
        {"form": PairForm.TABLE},
    ],
)
def test_numbers_out_of_bounds_are_not_proved(change: dict[str, Any], fixed: PairRequant):
    assert not prove_pair(replace(fixed, **change), (0, 40), (80, 120))


def test_a_changed_entry_of_a_table_is_found():
    tied = Affine(F(0.5), 1)
    formula = PairFormula(tied, tied, Affine(F(1.0), 3), CONTAINERS[0])
    pair = find_pair("add", formula, 0, 255, (0, 255), (0, 255))
    table = pair.table.copy()
    table[17, 200] ^= 1

    changed = replace(pair, table=table)

    assert not prove_pair(changed, (0, 255), (0, 255))
    assert prove_pair(changed, (18, 255), (0, 255))


@given(
    st.sampled_from(KINDS),
    st.sampled_from(CONTAINERS),
    st.lists(st.floats(2.0**-20, 2.0**10, width=32), min_size=3, max_size=3),
    st.lists(st.integers(0, 255), min_size=3, max_size=3),
    st.lists(st.integers(0, 255), min_size=6, max_size=6),
    st.booleans(),
)
def test_any_pair_over_any_range(
    kind: str,
    dtype: Container,
    scales: list[float],
    zeros: list[int],
    borders: list[int],
    swapped: bool,
):
    first = ends(dtype)[0]
    a, b, y = (Affine(F(s), z + first) for s, z in zip(scales, zeros, strict=True))
    formula = PairFormula(a, b, y, dtype, swapped)
    sides = np.sort(np.reshape(borders, (3, 2)) + first, axis=1).tolist()
    (lo, hi), a_range, b_range = ((int(side[0]), int(side[1])) for side in sides)

    pair = find_pair(kind, formula, lo, hi, a_range, b_range)

    pairs = grid(a_range, b_range)
    assert prove_pair(pair, a_range, b_range)
    np.testing.assert_array_equal(apply_pair(pair, *pairs), expected(kind, formula, lo, hi, pairs))


@pytest.mark.parametrize(
    ("kind", "codes", "a_range", "message"),
    [
        ("sub", (0, 255), (0, 255), "no pair of codes is requantized by 'sub'"),
        ("add", (0, 256), (0, 255), "codes 0 to 256 are no range of uint8"),
        ("add", (0, 255), (-1, 255), "codes -1 to 255 are no range of uint8"),
        ("mul", (9, 8), (0, 255), "codes 9 to 8 are no range of uint8"),
    ],
)
def test_what_makes_no_sense_is_refused(
    kind: str, codes: tuple[int, int], a_range: tuple[int, int], message: str
):
    formula = PairFormula(Affine(F(1), 0), Affine(F(1), 0), Affine(F(1), 0), CONTAINERS[0])

    with pytest.raises(ProgramError, match=message):
        find_pair(kind, formula, *codes, a_range, (0, 255))

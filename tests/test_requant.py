"""The integer forms against the float formula: all accumulators, or both sides of every step."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq import formulas, requant
from onnxptq.errors import ProgramError
from onnxptq.requant import GROUP, Form, Requant
from onnxptq.staircase import INT32_MAX, INT32_MIN, NEVER, thresholds

Array = npt.NDArray[Any]
F = np.float32
SCALES = {"tiny": (1e-7, 1e-5), "small": (1e-4, 1e-2), "usual": (1e-2, 1e-1), "large": (0.1, 3.0)}


def log_uniform(rng: np.random.Generator, ends: tuple[float, float], count: int) -> Array:
    return np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]), count)).astype(F)


def expected(found: Requant, acc: Array) -> Array:
    return formulas.requantized(acc, found.scale, found.zero_point, found.lo, found.hi)


def forced(found: Requant, form: Form) -> Requant:
    """The same channels, all by one form."""
    table = thresholds(found.scale, found.zero_point, found.lo, found.hi)
    clipped = np.clip(table, INT32_MIN, INT32_MAX).astype(np.int32)
    return replace(found, form=np.full_like(found.form, form), thresholds=clipped)


def around_steps(found: Requant) -> Array:
    """Both sides of every step of every channel, and the ends of int32, [n, C]."""
    table = thresholds(found.scale, found.zero_point, found.lo, found.hi).T
    ends = np.tile([[INT32_MIN], [-1], [0], [1], [INT32_MAX]], found.scale.size)
    near = [table + offset for offset in (-2, -1, 0, 1)]
    return np.clip(np.concatenate([*near, ends]), INT32_MIN, INT32_MAX)


def tie_rich(count: int) -> Array:
    """Scales as a network with decimal scales has them: f(f(x * w) / y) of multiples of 0.01."""
    x, w, y = np.meshgrid(np.arange(1, 40, 7), np.arange(1, 40, 5), np.arange(1, 40, 3))
    scales = formulas.requant_scale(F(0.01) * x, F(0.01) * w, F(0.01) * y)
    return np.resize(scales.reshape(-1).astype(F), count)


def some_scales(rng: np.random.Generator, kind: str, count: int) -> Array:
    return tie_rich(count) if kind == "decimal" else log_uniform(rng, SCALES[kind], count)


@pytest.mark.parametrize("kind", [*SCALES, "decimal"])
@pytest.mark.parametrize(
    ("zero_point", "lo", "hi"), [(0, 0, 255), (113, 0, 255), (-128, -128, 127)]
)
def test_every_accumulator_of_a_small_range_is_exact(
    kind: str, zero_point: int, lo: int, hi: int, rng: np.random.Generator
):
    scales = some_scales(rng, kind, 48)

    found = requant.find(scales, zero_point, lo, hi, -3000, 3000)

    acc = np.tile(np.arange(-3000, 3001)[:, None], scales.size)
    assert found.proved.all()
    assert requant.prove(found, -3000, 3000).all()
    np.testing.assert_array_equal(requant.apply(found, acc), expected(found, acc))


@pytest.mark.parametrize("kind", [*SCALES, "decimal"])
@pytest.mark.parametrize(
    ("zero_point", "lo", "hi"),
    [(0, 0, 255), (128, 0, 255), (7, 0, 15), (40, 40, 55), (0, 0, 3), (-5, -128, 127)],
)
def test_both_sides_of_every_step_are_exact(
    kind: str, zero_point: int, lo: int, hi: int, rng: np.random.Generator
):
    scales = some_scales(rng, kind, 80)

    found = requant.find(scales, zero_point, lo, hi, INT32_MIN, INT32_MAX)

    acc = around_steps(found)
    assert found.proved.all()
    np.testing.assert_array_equal(requant.apply(found, acc), expected(found, acc))


def test_thresholds_are_where_the_formula_steps(rng: np.random.Generator):
    for ends in ((1e-8, 1e-5), (1e-5, 1.0), (1.0, 1e4)):
        scales = log_uniform(rng, ends, 60)

        table = thresholds(scales, 100, 0, 255)

        codes = np.arange(1, 256)
        for offset in (0, -1):
            acc = (table + offset).T
            inside = (acc >= INT32_MIN) & (acc <= INT32_MAX)
            found = formulas.requantized(np.where(inside, acc, 0), scales, 100, 0, 255).T
            right = found >= codes if offset == 0 else found < codes
            assert (right | ~inside.T).all()
        beyond = formulas.requantized(np.full(60, INT32_MAX), scales, 100, 0, 255)
        assert ((table == NEVER).sum(axis=1) == 255 - beyond).all()


@pytest.mark.parametrize("form", list(Form))
def test_a_form_that_proves_is_exact_and_one_that_is_not_is_seen(
    form: Form, rng: np.random.Generator
):
    scales = np.concatenate([log_uniform(rng, (1e-5, 1e-1), 150), tie_rich(150)])
    found = forced(requant.find(scales, 77, 0, 255, -(2**28), 2**28), form)

    proved = requant.prove(found, -(2**28), 2**28)

    acc = np.clip(around_steps(found), -(2**28), 2**28)
    equal = (requant.apply(found, acc) == expected(found, acc)).all(axis=0)
    np.testing.assert_array_equal(proved, equal)
    assert proved.any()
    assert proved.all() == (form != Form.FIXED_POINT)


def test_the_emulation_equals_the_formula_everywhere(rng: np.random.Generator):
    bits = rng.integers(1, 0x7F800000, 4096).astype(np.int32)  # all positive finite float32
    special = np.array([2.0**-149, 2.0**-126, 3e38, 1.0, 0.5, 2.0**-24, 2.0**-31], F)
    scales = np.concatenate([bits.view(F), special, log_uniform(rng, (1e-9, 10), 4096)])
    for zero_point, lo, hi in ((0, 0, 255), (255, 0, 255), (-128, -128, 127), (3, -128, 127)):
        found = forced(requant.find(scales, zero_point, lo, hi, 0, 0), Form.INT64)
        far = rng.integers(INT32_MIN, INT32_MAX + 1, (20, scales.size))
        near = np.rint(rng.uniform(-300, 300, (20, scales.size)) / scales.astype(np.float64))
        clipped = np.clip(near, INT32_MIN, INT32_MAX).astype(np.int64)

        acc = np.concatenate([far, clipped, around_steps(found)[::16]])

        np.testing.assert_array_equal(requant.apply(found, acc), expected(found, acc))


def test_a_group_takes_the_cheapest_form_that_all_its_channels_allow():
    easy = F(1 / 77.3)
    assert requant.provable(np.array([easy, F(0.5)]), 0, 0, 255).tolist() == [True, False]
    scales = np.full(3 * GROUP, easy)
    scales[GROUP] = F(0.5)  # ties go to the even code, so its steps are 1 and 3 apart by turns

    wide = requant.find(scales, 0, 0, 255, INT32_MIN, INT32_MAX)
    narrow = requant.find(scales, 0, 0, 15, INT32_MIN, INT32_MAX)
    short = requant.find(scales[: GROUP + 1], 0, 0, 255, 0, 2)

    assert wide.form.tolist() == [Form.FIXED_POINT, Form.INT64, Form.FIXED_POINT]
    assert wide.thresholds.shape == (3 * GROUP, 0)
    assert narrow.form.tolist() == [Form.FIXED_POINT, Form.THRESHOLDS, Form.FIXED_POINT]
    assert narrow.thresholds.shape == (3 * GROUP, 15)
    assert short.form.tolist() == [Form.FIXED_POINT] * 2


@pytest.mark.parametrize(
    ("scale", "acc_lo", "acc_hi"),
    [
        (1e-30, INT32_MIN, INT32_MAX),  # nothing ever steps
        (2.0**-149, INT32_MIN, INT32_MAX),
        (0.0, INT32_MIN, INT32_MAX),  # a product of tiny scales
        (1e9, INT32_MIN, INT32_MAX),  # every step at one accumulator
        (3e38, INT32_MIN, INT32_MAX),
        (300.0, -1, 1),
        (0.01, 1234, 1234),
        (0.01, 0, 0),
        (0.01, INT32_MAX - 3, INT32_MAX),
        (0.01, INT32_MIN, INT32_MIN + 3),
        (2.0**-24, INT32_MIN, INT32_MAX),
    ],
)
@pytest.mark.parametrize(("lo", "hi"), [(0, 255), (0, 15), (9, 9), (200, 255)])
def test_degenerate_channels_are_exact(scale: float, acc_lo: int, acc_hi: int, lo: int, hi: int):
    for zero_point in (0, 9, 255):
        found = requant.find(np.array([scale], F), zero_point, lo, hi, acc_lo, acc_hi)

        acc = np.array([acc_lo, acc_hi, *range(-3, 4), 2**24 + 1, -(2**24) - 1])
        acc = np.clip(acc, acc_lo, acc_hi)[:, None]
        assert found.proved.all()
        assert requant.prove(found, acc_lo, acc_hi).all()
        np.testing.assert_array_equal(requant.apply(found, acc), expected(found, acc))


def test_a_code_out_of_reach_of_thresholds_is_not_counted_at_the_last_accumulator():
    """A threshold of INT32_MAX is passed by INT32_MAX itself: such a range needs another form."""
    scale = np.full(GROUP, 5 / 2**31, F)
    table = forced(requant.find(scale, 0, 0, 15, 0, INT32_MAX), Form.THRESHOLDS)

    assert not requant.prove(table, 0, INT32_MAX).any()
    assert requant.prove(table, 0, INT32_MAX - 1).all()


@pytest.fixture
def fixed(rng: np.random.Generator) -> Requant:
    scales = log_uniform(rng, (1e-2, 1e-1), 4000)
    scales = scales[requant.provable(scales, 10, 0, 255)][: 40 * GROUP]
    found = requant.find(scales, 10, 0, 255, -(10**6), 10**6)
    assert (found.form == Form.FIXED_POINT).all()
    return found


@pytest.mark.parametrize("field", ["multiplier", "rounding", "shift"])
def test_a_changed_number_of_fixed_point_is_found(field: str, fixed: Requant):
    change = {
        "multiplier": fixed.multiplier + np.int32(2**18),
        "rounding": fixed.rounding + (np.int64(1) << fixed.shift.astype(np.int64) - 2),
        "shift": fixed.shift + np.int32(1),
    }
    changed = replace(fixed, **{field: change[field]})

    assert requant.prove(fixed, -(10**6), 10**6).all()
    assert not requant.prove(changed, -(10**6), 10**6).any()


def test_a_change_of_one_channel_is_found_there(fixed: Requant):
    shift = fixed.shift.copy()
    shift[5] -= 1

    proved = requant.prove(replace(fixed, shift=shift), -(10**6), 10**6)

    assert np.flatnonzero(~proved).tolist() == [5]


def test_the_smallest_change_that_matters_is_found(fixed: Requant):
    """`prove` says no exactly where some accumulator gets another code."""
    for change in (-40, -4, 4, 40):
        changed = replace(fixed, multiplier=fixed.multiplier + np.int32(change * 2**8))

        proved = requant.prove(changed, -(10**6), 10**6)

        acc = around_steps(changed)
        inside = (acc >= -(10**6)) & (acc <= 10**6)
        equal = requant.apply(changed, acc) == expected(changed, acc)
        np.testing.assert_array_equal(proved, (equal | ~inside).all(axis=0))


def test_another_zero_point_is_found(fixed: Requant):
    assert not requant.prove(replace(fixed, zero_point=11), -(10**6), 10**6).any()


def test_numbers_that_overflow_are_not_proved(fixed: Requant):
    wild = replace(fixed, rounding=np.full_like(fixed.rounding, 2**63 - 1))

    assert not requant.prove(wild, INT32_MIN, INT32_MAX).any()


def test_a_changed_threshold_is_found():
    scales = np.full(GROUP, 0.5, F)
    found = requant.find(scales, 3, 0, 15, -1000, 1000)
    assert found.form.tolist() == [Form.THRESHOLDS]
    moved = found.thresholds.copy()
    moved[2, 7] += 1

    proved = requant.prove(replace(found, thresholds=moved), -1000, 1000)

    assert np.flatnonzero(~proved).tolist() == [2]
    assert not requant.prove(replace(found, zero_point=4), -1000, 1000).any()
    assert not requant.prove(replace(found, thresholds=moved[:, :0]), -1000, 1000).any()


def test_only_the_steps_of_the_range_count():
    scale = np.array([0.5], F)
    narrow = requant.find(scale, 0, 0, 255, 0, 2)

    assert narrow.form.tolist() == [Form.FIXED_POINT]
    assert not requant.prove(narrow, 0, 100).any()


def test_provable_means_provable_for_every_range(rng: np.random.Generator):
    scales = log_uniform(rng, (1e-4, 1e-2), 400)

    can = requant.provable(scales, 128, 0, 255)

    found = requant.find(np.repeat(scales, GROUP), 128, 0, 255, INT32_MIN, INT32_MAX)
    np.testing.assert_array_equal(found.form == Form.FIXED_POINT, can)
    assert 0 < can.sum() < can.size


@given(
    st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=40),
    st.integers(-128, 255),
    st.integers(-128, 255),
    st.integers(0, 255),
    st.integers(INT32_MIN, INT32_MAX),
    st.integers(0, 2**32),
)
def test_any_channels_over_any_range(
    scales: list[float], zero_point: int, lo: int, codes: int, acc_lo: int, span: int
):
    hi, acc_hi = min(lo + codes, 255), min(acc_lo + span, INT32_MAX)

    found = requant.find(np.array(scales, F), zero_point, lo, hi, acc_lo, acc_hi)

    acc = np.concatenate(
        [
            np.clip(around_steps(found), acc_lo, acc_hi),
            np.linspace(acc_lo, acc_hi, 50).astype(np.int64)[:, None] + np.zeros(len(scales), int),
        ]
    )
    assert found.proved.all()
    assert requant.prove(found, acc_lo, acc_hi).all()
    np.testing.assert_array_equal(requant.apply(found, acc), expected(found, acc))


def test_shapes_are_kept():
    found = requant.find(np.full(5, 0.1, F), 0, 0, 255, -9, 9)

    assert requant.apply(found, np.zeros((2, 3, 5), np.int32)).shape == (2, 3, 5)
    assert requant.apply(found, np.zeros((0, 5), np.int32)).shape == (0, 5)
    assert requant.find(np.zeros(0, F), 0, 0, 255, -9, 9).form.shape == (0,)


@pytest.mark.parametrize(
    ("scale", "acc", "message"),
    [
        (-1.0, (0, 1), r"scale -1\.0 is not a positive number"),
        (np.nan, (0, 1), "scale nan is not a positive number"),
        (np.inf, (0, 1), "scale inf is not a positive number"),
        (0.1, (0, 2**31), "channel 0: accumulators 0 to 2147483648 are no int32 range"),
        (0.1, (1, 0), "channel 0: accumulators 1 to 0 are no int32 range"),
    ],
)
def test_what_cannot_be_requantized_is_refused(scale: float, acc: tuple[int, int], message: str):
    with pytest.raises(ProgramError, match=message):
        requant.find(np.array([scale], F), 0, 0, 255, *acc)

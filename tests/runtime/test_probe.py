"""The probe: formulas hold in this onnxruntime, and a wrong one is told."""

from typing import Any

import numpy as np
import pytest

from onnxptq import formulas
from onnxptq.runtime import probe
from onnxptq.runtime.probe_cases import COMPLETE, FORMULAS, RANDOM
from tests.ort_versions import IS_OLD, SOFTMAX_IS_EXACT

pytestmark = pytest.mark.skipif(IS_OLD, reason="an old onnxruntime has formulas of its own")

OTHER_WAY = " in float32" if SOFTMAX_IS_EXACT else "softmax"
ASKED = [name for name in FORMULAS if not name.endswith(OTHER_WAY) and probe.DEPRECATED not in name]


def test_all_formulas_hold():
    found = probe.probe(RANDOM.keys() & set(ASKED))

    assert found.holds
    assert found.elements > 500_000
    assert found.summary() == f"10 formulas hold on {found.elements} tie-rich results"


@pytest.mark.parametrize("name", [name for name in COMPLETE if name in ASKED])
def test_the_pixels_of_a_resize_are_those_of_onnxruntime(name: str):
    assert probe.probe([name]).holds


@pytest.mark.parametrize("dtype", ["", "int8 "])
def test_onnxruntime_has_one_way_of_softmax(dtype: str):
    holds = [not probe.check(f"{dtype}softmax{way}")[1] for way in ("", " in float32")]

    assert sum(holds) == 1


def test_each_formula_is_checked_once():
    assert probe.check("sum") is probe.check("sum")


def scaled_in_double(acc: Any, scale: Any, zero_point: int, lo: int, hi: int) -> Any:
    """`requantized` with the product in float64: what an FMA or a wider type would give."""
    real = np.asarray(acc, np.float64) * np.asarray(scale, np.float64)
    return np.clip(np.rint(real) + zero_point, lo, hi)


def added_exactly(a: Any, b: Any, formula: formulas.PairFormula) -> Any:
    """`added` in float64."""
    real = (a.astype(float) - formula.a.zero_point) * float(formula.a.scale)
    real = real + (b.astype(float) - formula.b.zero_point) * float(formula.b.scale)
    codes = np.rint(real / float(formula.y.scale)) + formula.y.zero_point
    return np.clip(codes, 0, 255).astype(np.int32)


def multiplied_exactly(a: Any, b: Any, formula: formulas.PairFormula) -> Any:
    """`multiplied` in float64."""
    product = (a.astype(float) - formula.a.zero_point) * (b.astype(float) - formula.b.zero_point)
    scale = float(formula.a.scale) * float(formula.b.scale) / float(formula.y.scale)
    return np.clip(np.rint(product * scale) + formula.y.zero_point, 0, 255).astype(np.int32)


@pytest.mark.parametrize(
    ("name", "replacement", "wrong"),
    [
        ("requantized", scaled_in_double, {"convolution", "matrix product", "global average"}),
        ("added", added_exactly, {"sum"}),
        ("multiplied", multiplied_exactly, {"product"}),
    ],
)
def test_a_formula_that_is_almost_right_is_told(
    name: str, replacement: Any, wrong: set[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(formulas, name, replacement)
    monkeypatch.setattr(probe, "check", probe.check.__wrapped__)  # nothing is remembered

    found = probe.probe(RANDOM.keys() & set(ASKED))

    assert not found.holds
    assert set(found.wrong) == wrong
    assert found.summary().startswith("differs: ")

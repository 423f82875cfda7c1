"""minmax, percentile, mse and entropy on small distributions."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.methods import METHODS, apply
from onnxptq.methods.method import Context
from onnxptq.methods.mse import Mse
from onnxptq.methods.percentile import quantile
from onnxptq.quant import F32, QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant

ACTIVATION_METHODS = ("minmax", "percentile", "mse", "entropy")
MODEL = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)


def recipe_for(bits: int = 8, role: Role = Role.ACTIVATION) -> Recipe:
    params = QParams.unit(QuantSpec(bits, signed=False))
    tensors = {
        "x": TensorQuant("x", role, params),
        "pooled": TensorQuant("pooled", Role.ACTIVATION, params, tied_to="x"),
    }
    return Recipe("digest", tensors)


def context(stats: Mapping[str, TensorStats]) -> Context:
    return Context(MODEL, stats)


def fitted(method: str, x: F32, bits: int = 8) -> QParams:
    recipe = apply(recipe_for(bits), method, context({"x": TensorStats.of(x)}))
    return recipe.tensors["x"].params


def error(params: QParams, x: F32, p: float = 2.4) -> float:
    return float((np.abs(params.round_trip(x) - x).astype(np.float64) ** p).mean())


def normal(seed: int = 0, size: int = 20_000) -> F32:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_minmax_covers_exactly_what_was_seen() -> None:
    params = fitted("minmax", np.array([[0.0, 2.0, 5.1]], np.float32))

    assert params.lo == 0
    assert params.hi == np.float32(5.1)


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_relu_output_keeps_zero_point_zero(method: str, bits: int) -> None:
    params = fitted(method, np.maximum(normal(), 0), bits)

    assert params.zero_point == 0
    assert params.code_lo == 0


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_constant_is_stored_exactly(method: str, sign: int) -> None:
    x = np.full((4, 3), 5 * sign, np.float32)

    params = fitted(method, x)

    np.testing.assert_allclose(params.round_trip(x), x, rtol=1e-6)  # float32 scale


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_range_contains_zero_though_no_value_is_near(method: str) -> None:
    params = fitted(method, normal() + 100)

    assert params.lo == 0
    assert 99 < params.hi < 106


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_all_zero_activation_warns_and_gets_scale_one(method: str) -> None:
    stats = {"x": TensorStats.of(np.zeros((2, 3), np.float32))}

    with pytest.warns(UserWarning, match=r"value 'x' was 0.0 in all 1 samples"):
        recipe = apply(recipe_for(), method, context(stats))

    assert recipe.tensors["x"].params.scale == 1
    assert recipe.undecided() == ()


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_all_zero_network_input_is_an_error(method: str) -> None:
    stats = {"x": TensorStats.of(np.zeros((2, 3), np.float32))}

    with pytest.raises(CalibrationError, match=r"'x' was 0.0 in all 1 samples.*preprocessing"):
        apply(recipe_for(role=Role.INPUT), method, context(stats))


def test_value_without_statistics_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="'x' was not measured"):
        apply(recipe_for(), "minmax", context({}))


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_tied_value_follows_its_root(method: str) -> None:
    recipe = apply(recipe_for(), method, context({"x": TensorStats.of(normal())}))

    assert recipe.tensors["pooled"].params is recipe.tensors["x"].params
    assert recipe.tensors["pooled"].set_by == method


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 1.0, -3.0])
def test_mse_beats_every_other_method_in_its_own_measure(bits: int, shift: float) -> None:
    x = normal() + np.float32(shift)

    best = error(fitted("mse", x, bits), x)

    for other in ("minmax", "percentile", "entropy"):
        assert best <= error(fitted(other, x, bits), x)


@pytest.mark.parametrize("bits", [2, 3])
def test_mse_is_near_the_exhaustive_optimum_on_the_values_themselves(bits: int) -> None:
    x = normal(3, 2000) * np.float32(2) + np.float32(0.7)
    spec = QuantSpec(bits, signed=False)
    code_lo = np.asarray(0, np.int32)
    candidates = [
        QParams(spec, np.asarray(s, np.float32), np.asarray(z, np.int32), code_lo)
        for s in np.linspace(0.2, 6, 400)
        for z in range(spec.levels)
    ]

    found = error(fitted("mse", x, bits), x)

    assert found <= 1.002 * min(error(params, x) for params in candidates)  # grid of 400 scales


def test_mse_searches_signed_formats_with_zero_point_zero() -> None:
    x = normal()

    params = Mse().choose(TensorStats.of(x), QuantSpec(4, signed=True))

    assert params.zero_point == 0
    assert params.code_lo == -8
    assert error(params, x) < error(QParams.from_range(x.min(), x.max(), params.spec), x) / 2


def test_entropy_clips_a_lone_outlier() -> None:
    x = np.append(np.maximum(normal(), 0), np.float32(50.0))

    params = fitted("entropy", x)

    assert 3 < params.hi < 10


def test_entropy_keeps_all_of_an_even_distribution() -> None:
    x = np.random.default_rng(0).uniform(0, 1, 50_000).astype(np.float32)

    params = fitted("entropy", x)

    assert params.hi > 0.95


def test_percentile_clips_the_share_it_says() -> None:
    x = np.abs(normal(size=100_000))

    params = fitted("percentile{percent=98}", x)

    assert np.mean(x > params.hi) == pytest.approx(0.01, abs=0.0005)


def test_percentile_of_100_is_minmax() -> None:
    x = normal()

    assert fitted("percentile{percent=100}", x).scale == fitted("minmax", x).scale


def test_percentile_of_almost_all_zeros_falls_back_to_what_is_left() -> None:
    x = np.zeros(1_000_000, np.float32)
    x[0] = 3.0

    assert fitted("percentile", x).hi == 3.0


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.4, 0.5, 0.77, 0.999, 1.0])
def test_quantile_agrees_with_numpy_to_one_bin(share: float) -> None:
    x = np.maximum(normal(), -0.3)
    x[:3000] = 0
    stats = TensorStats.of(x)

    found = quantile(stats, share)

    # numpy interpolates between neighbours; out in the tails those are far more than a bin apart
    spacing = 0.5 if share in (0.001, 0.999) else 2 * stats.width
    assert found == pytest.approx(float(np.quantile(x, share)), abs=spacing)


def test_every_method_leaves_a_step_that_reads_back() -> None:
    recipe = apply(recipe_for(), "minmax,mse{p=2}", context({"x": TensorStats.of(normal())}))

    assert [step.method for step in recipe.steps] == ["minmax", "mse{p=2.0}"]
    assert recipe.steps[0].numbers == {"tensors": 2.0}
    assert recipe.tensors["x"].set_by == "mse{p=2.0}"


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"unknown method 'mimax'.*did you mean minmax\?"):
        apply(recipe_for(), "mimax", context({}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("percentile{percent=40}", "above 50 and at most 100"),
        ("mse{p=-1}", "p must be between"),
        ("weights-mse{p=99}", "p must be between"),
        ("mse{q=2}", "unknown option of mse 'q'"),
    ],
)
def test_bad_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        apply(recipe_for(), text, context({}))


def test_method_names_are_the_keys() -> None:
    assert all(method.name == name for name, method in METHODS.items())

"""aciq: optimal clips on values that follow the law, the spread in front of a Relu, and the mix."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq import ort, quantize
from onnxptq.calibrate.source import Data, Taken
from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import SpecError
from onnxptq.methods import METHODS, apply, parse_methods, run_model
from onnxptq.methods.aciq import Aciq, Spread, from_positives
from onnxptq.methods.clip_constants import Prior, fused_relu, mid_rise, published
from onnxptq.methods.method import Context
from onnxptq.methods.minmax import cover
from onnxptq.methods.mse import grid_error
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from tests.small_models import from_text, proto_from_text

Array = npt.NDArray[Any]

CLAMPED = """
clamped (float[N, 4, 8, 8] x) => (float[N, 6] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  r = Relu (a)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  c = Conv (p, w1)
  s = HardSwish (c)
  g = GlobalAveragePool (s)
  f = Flatten (g)
  y = MatMul (f, w2)
}
"""
WEIGHTS = {"w0": (8, 4, 3, 3), "b0": (8,), "w1": (8, 8, 1, 1), "w2": (8, 6)}
SIZE = 400_000
SAMPLING = 0.02
"""Relative spread of constants fitted to so many numbers."""


def drawn(prior: Prior, mean: float = 0.0, spread: float = 1.0) -> Array:
    rng = np.random.default_rng(7)
    x = rng.laplace(size=SIZE) if prior == "laplace" else rng.normal(size=SIZE)
    return (mean + spread * x).astype(np.float32)


def error(x: Array, params: QParams) -> float:
    return float(np.square(params.round_trip(x) - x, dtype=np.float64).mean())


def spec(bits: int) -> QuantSpec:
    return QuantSpec(bits, signed=False)


@pytest.mark.parametrize("prior", ["laplace", "gauss"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_range_behind_a_relu_reaches_the_exact_optimum_of_the_law(prior: Prior, bits: int) -> None:
    x = drawn(prior, spread=2.0)
    rectified = np.maximum(x, 0)
    clip = Aciq(clip=prior)

    params = clip.choose(TensorStats.of(rectified), spec(bits), Spread.of(x))

    best = min(
        error(rectified, QParams.from_range(0.0, hi, spec(bits)))
        for hi in np.geomspace(0.5, 25, 120)
    )
    assert params.zero_point == 0
    assert float(params.hi) == pytest.approx(2.0 * fused_relu(prior, bits), rel=SAMPLING)
    assert error(rectified, params) <= best * (1 + SAMPLING)


@pytest.mark.parametrize("prior", ["laplace", "gauss"])
@pytest.mark.parametrize("bits", [3, 4])
def test_two_sided_range_is_near_the_best_symmetric_one(prior: Prior, bits: int) -> None:
    x = drawn(prior)

    params = Aciq(clip=prior).choose(TensorStats.of(x), spec(bits), None)

    reach = mid_rise(prior, bits) * (1 - 0.5**bits)
    assert float(params.hi - params.lo) == pytest.approx(2 * reach, rel=SAMPLING)
    tried = [QParams.from_range(-half, half, spec(bits)) for half in np.geomspace(0.5, 12, 120)]
    # The zero point is a whole number, so no grid is symmetric; the law does not know of that.
    assert error(x, params) <= 1.1 * min(error(x, params) for params in tried)


def test_the_mean_moves_the_range() -> None:
    x = drawn("laplace", mean=1.5)

    lo, hi = Aciq().range_of(TensorStats.of(x), 4, "laplace", None)

    assert (lo + hi) / 2 == pytest.approx(1.5, abs=0.05)


def test_a_range_begins_at_the_smallest_value_and_keeps_its_width() -> None:
    x = np.abs(drawn("laplace")) + 1

    lo, hi = Aciq(constants="published").range_of(TensorStats.of(x), 4, "laplace", None)

    stats = TensorStats.of(x)
    assert lo == 0.0
    assert hi == pytest.approx(stats.min + 2 * published("laplace", 4) * stats.mad, rel=1e-6)


def test_a_positive_mean_in_front_of_a_relu_moves_its_upper_end() -> None:
    stats = TensorStats.of(np.maximum(drawn("gauss", mean=3.0), 0))

    ends = [
        Aciq(constants="published").range_of(stats, 3, "gauss", Spread(mean, 0.5, 0.6))[1]
        for mean in (-2.0, 0.0, 1.0)
    ]

    unit = 0.6 * published("gauss", 4)
    assert ends == pytest.approx([unit, unit, 1.0 + unit])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_nothing_is_covered_that_was_never_seen(bits: int) -> None:
    stats = TensorStats.of(np.clip(drawn("laplace"), -0.4, 1.0))

    lo, hi = Aciq().range_of(stats, bits, "laplace", None)

    assert stats.min <= lo <= hi <= stats.max


@pytest.mark.parametrize("kind", ["laplace", "gauss", "uniform", "two humps"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_best_takes_the_least_error_of_both_laws_and_the_whole_range(kind: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    shapes: dict[str, Array] = {
        "laplace": rng.laplace(size=20_000),
        "gauss": rng.normal(size=20_000),
        "uniform": rng.uniform(-1, 2, size=20_000),
        "two humps": np.concatenate([rng.normal(-9, 1, 5000), rng.normal(9, 1, 5000)]),
    }
    stats = TensorStats.of(shapes[kind].astype(np.float32))

    found = grid_error(stats, Aciq().choose(stats, spec(bits), None), 2.0)

    others = [Aciq(clip="laplace"), Aciq(clip="gauss")]
    errors = [grid_error(stats, method.choose(stats, spec(bits), None), 2.0) for method in others]
    errors.append(grid_error(stats, cover(stats, spec(bits)), 2.0))
    assert found == min(errors)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_error_on_the_histogram_is_that_on_the_values(bits: int) -> None:
    x = drawn("laplace")
    params = QParams.from_range(-2.0, 3.0, spec(bits))

    found = grid_error(TensorStats.of(x), params, 2.0) / x.size

    assert found == pytest.approx(error(x, params), rel=1e-3)  # half a bin of 8192


@pytest.mark.parametrize("prior", ["laplace", "gauss"])
def test_the_spread_in_front_of_a_relu_is_told_from_its_output(prior: Prior) -> None:
    x = drawn(prior, spread=3.0)

    told = from_positives(TensorStats.of(np.maximum(x, 0)))

    assert told.unit(prior) == pytest.approx(Spread.of(x).unit(prior), rel=SAMPLING)


def clamped_recipe(ctx_batches: bool) -> tuple[Recipe, Array, Array]:
    """The recipe of the clamped network at a2, what its Relu reads, and what it gives."""
    rng = np.random.default_rng(3)
    model = from_text(CLAMPED, rng, WEIGHTS)
    x = np.random.default_rng(4).normal(size=(16, 4, 8, 8)).astype(np.float32)
    recipe = place(model, Placing(bits="w4a2"))
    taps = [t.value for t in recipe.activations() if t.value != "x"]
    values = {"x": x, **ort.session(ort.with_outputs(model, [*taps, "a"])).run({"x": x})}
    stats = {name: TensorStats.of(values[name]) for name in ("x", *taps)}
    data = two_batches(x) if ctx_batches else None
    decided = apply(recipe, "aciq{clip=gauss}", Context(model, stats, data))
    return decided, values["a"], np.maximum(values["a"], 0)


def two_batches(x: Array) -> Data:
    return Taken([{"x": x[:8]}, {"x": x[8:]}], None, 16, "digest")


def test_the_spread_is_taken_in_front_of_the_relu_batch_by_batch() -> None:
    recipe, before, _ = clamped_recipe(ctx_batches=True)

    halves = [Spread.of(before[:8]), Spread.of(before[8:])]
    mean = np.mean([half.mean for half in halves])
    sigma = np.mean([half.sigma for half in halves])
    expected = max(mean, 0.0) + fused_relu("gauss", 2) * sigma
    pooled = recipe.tensors["r"].tied_to or "r"
    assert float(recipe.tensors[pooled].params.hi) == pytest.approx(expected, rel=1e-5)


def test_without_batches_the_output_of_the_relu_tells_the_spread() -> None:
    recipe, _, after = clamped_recipe(ctx_batches=False)

    pooled = recipe.tensors["r"].tied_to or "r"
    top = float(recipe.tensors[pooled].params.hi)
    assert 0 < top < after.max()
    assert recipe.undecided() == tuple(sorted(t.value for t in recipe.weights()))


def test_a_file_that_it_made_runs_and_comes_back() -> None:
    model = proto_from_text(CLAMPED, np.random.default_rng(3), WEIGHTS)
    x = np.random.default_rng(4).normal(size=(24, 4, 8, 8)).astype(np.float32)

    made = quantize(model, {"x": x}, bits="w8a4", method="aciq")

    expected = ort.session(model.SerializeToString()).run({"x": x})["y"]
    found = ort.session(made.model).run({"x": x})["y"]
    assert np.square(expected - found).sum() < 0.1 * np.square(expected).sum()
    assert Recipe.from_json(made.recipe.to_json()).to_json() == made.recipe.to_json()


def test_it_asks_for_data_that_can_be_read_again() -> None:
    assert run_model("aciq")
    assert METHODS["aciq"] is Aciq


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="clip must be laplace, gauss or best, not 'laplce'"):
        parse_methods("aciq{clip=laplce}")

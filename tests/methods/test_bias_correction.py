"""bias-correction: sums of codes that fit, means that come back, and what is held out has a say."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper

from onnxptq import ort, quantize
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.methods import apply, parse_methods, run_model
from onnxptq.methods.bias_correction import BiasCorrection, Sums, stretch, with_sums
from onnxptq.methods.method import Context
from onnxptq.methods.moments import Moments
from onnxptq.pipeline import Quantized
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant
from onnxptq.runtime.lint import lint
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.methods.test_allocate_bits import NETWORK, WEIGHTS
from tests.methods.test_weights import model_with
from tests.small_models import from_text, proto_from_text

Array = npt.NDArray[Any]

HALF_A_STEP = 0.5 + 1e-9


def images(count: int = 48, seed: int = 1) -> Array:
    """Positive on average, as behind a Relu, so that weight errors do not cancel."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 4, 10, 10)) + 0.7).astype(np.float32)


def network() -> Any:
    return proto_from_text(NETWORK, np.random.default_rng(5), WEIGHTS)


def made(method: str, bits: str = "w3a8", **options: Any) -> Quantized:
    return quantize(network(), {"x": images()}, bits=bits, method=method, **options)


def distance(result: Quantized) -> float:
    """Squared error of the outputs on images that were not used, as a share of their square."""
    feeds = {"x": images(64, 2)}
    expected = ort.session(network().SerializeToString()).run(feeds)["y"].astype(np.float64)
    found = ort.session(result.model).run(feeds)["y"]
    return float(np.square(expected - found).sum() / np.square(expected).sum())


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_codes_come_within_half_a_step_of_the_real_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.normal(scale=2, size=(6, 40)) + rng.normal(size=(6, 1))
    codes = np.clip(np.floor(steps), -8, 7)  # floor errs to one side by up to 20 steps

    moved = with_sums(steps, codes, (np.full(6, -8), np.full(6, 7)))

    assert (np.abs((steps - moved).sum(axis=1)) <= HALF_A_STEP).all()
    assert np.abs(moved - codes).max() <= 1
    assert moved.min() >= -8
    assert moved.max() <= 7


@pytest.mark.parametrize("seed", range(5))
def test_no_other_codes_with_that_sum_are_nearer_to_the_weights(seed: int) -> None:
    steps = np.random.default_rng(seed).normal(scale=1.5, size=(1, 7)) + 0.3
    nearest = np.rint(steps)

    moved = with_sums(steps, nearest, (np.array([-9]), np.array([9])))

    around = itertools.product((-1, 0, 1), repeat=7)
    tried = [nearest + np.array(change) for change in around]
    fitting = [codes for codes in tried if codes.sum() == moved.sum()]
    least = min(float(np.square(steps - codes).sum()) for codes in fitting)
    assert np.square(steps - moved).sum() == pytest.approx(least)


def test_codes_at_their_ends_stay_there() -> None:
    steps = np.full((1, 4), 1.4)

    moved = with_sums(steps, np.array([[1.0, 1.0, 0.0, 1.0]]), (np.array([0]), np.array([1])))

    assert moved.tolist() == [[1, 1, 1, 1]]


def fitted(method: str, rows: Array, bits: int = 4, axis: int = 0) -> Recipe:
    unit = QParams.unit(QuantSpec(bits, signed=True, axis=axis), rows.shape[axis])
    recipe = Recipe("digest", {"w": TensorQuant("w", Role.WEIGHT, unit)})
    return apply(recipe, method, Context(model_with(rows), {}))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("before", ["weights-minmax", "weights-mse", "allocate-bits"])
def test_each_channels_mean_is_kept_to_half_a_step(axis: int, before: str) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(50, 60)) + rng.normal(scale=0.1, size=(50, 1))).astype(np.float32)

    recipe = fitted(f"{before},bias-correction{{kind=weights}}", rows, 3, axis)

    params = recipe.tensors["w"].params
    real = np.moveaxis(rows / params.along(params.scale, 2), axis, 0).sum(axis=1)
    sums = np.moveaxis(recipe.codes["w"], axis, 0).sum(axis=1, dtype=np.int64)
    assert (np.abs(real - sums) <= 0.5 + 1e-3).all()  # float32 sums
    low, high = (params.along(end, 2) for end in recipe.code_ends("w"))
    assert ((low <= recipe.codes["w"]) & (recipe.codes["w"] <= high)).all()


def test_variance_stretches_the_scale_and_still_fits_the_sums() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 60)).astype(np.float32)
    plain, wide = (
        fitted(f"weights-mse,bias-correction{{kind=weights,variance={on}}}", rows, 2)
        for on in ("false", "true")
    )

    before = fitted("weights-mse", rows, 2).tensors["w"].params
    xi = stretch(rows.astype(np.float64), before.round_trip(rows).astype(np.float64))
    after = wide.tensors["w"].params
    np.testing.assert_array_equal(plain.tensors["w"].params.scale, before.scale)
    np.testing.assert_allclose(after.scale, before.scale * xi, rtol=1e-6)
    sums = wide.codes["w"].sum(axis=1) - (rows / after.scale[:, None]).sum(axis=1)
    assert (np.abs(sums) <= 0.5 + 1e-3).all()  # float32 sums


def test_a_channel_of_equal_codes_is_not_stretched() -> None:
    assert stretch(np.array([[1.0, 2.0]]), np.array([[1.5, 1.5]])).tolist() == [1.0]


def test_sums_give_the_bias_that_all_moments_give() -> None:
    model = from_text(NETWORK, np.random.default_rng(5), WEIGHTS)
    node = next(node for node in model.graph if node.name and node.outputs[0].name == "b")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 16, 10, 10)).astype(np.float32)
    target = rng.normal(size=(3, 16, 10, 10)).astype(np.float32)
    weights = rng.normal(size=(1, 16, 144))

    sums, moments = Sums.of(node, x, target), Moments.of(node, x, target)

    np.testing.assert_allclose(sums.bias(weights), moments.bias(weights), atol=1e-9)


def test_means_of_a_layers_outputs_are_those_of_the_float_network() -> None:
    """Two layers whose outputs go nowhere but into 8-bit codes, on all calibration images."""
    text = """
    net (float[N, 4, 10, 10] x) => (float[N, 6, 8, 8] y) {
      a = Conv (x, w0, b0)
      y = Conv <pads = [1, 1, 1, 1]> (a, w1, b1)
    }
    """
    shapes = {"w0": (8, 4, 3, 3), "b0": (8,), "w1": (6, 8, 3, 3), "b1": (6,)}
    model = proto_from_text(text, np.random.default_rng(0), shapes)
    data = images(7)  # too few to hold some out

    def off(method: str) -> float:
        options: dict[str, Any] = {"bits": "w2a8", "keep_first_last": False, "method": method}
        result = quantize(model, {"x": data}, **options)
        expected = ort.session(model.SerializeToString()).run({"x": data})["y"]
        found = ort.session(result.model).run({"x": data})["y"]
        return float(np.abs((expected - found).mean(axis=(0, 2, 3), dtype=np.float64)).max())

    step = 0.02  # outputs reach about 4, so a code is this far from the next
    assert off("minmax,weights-mse,bias-correction") < step / 4 < off("minmax,weights-mse") / 4


@pytest.mark.parametrize("bits", ["w3a8", "w2a8", "w3a3"])
def test_outputs_are_nearer_to_float(bits: str) -> None:
    plain = distance(made("mse,weights-minmax", bits))

    assert distance(made("mse,weights-minmax,bias-correction", bits)) < 0.7 * plain


def test_a_layer_keeps_its_bias_if_the_outputs_come_no_nearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = iter([10.0, 11.0, 10.9, 12.0])  # before, and with each of three layers corrected

    def output_db(_recipe: Recipe, _ctx: Context) -> float:
        return next(heard)

    monkeypatch.setattr("onnxptq.methods.bias_correction.output_db", output_db)

    result = made("mse,weights-minmax,bias-correction")

    assert set(result.recipe.biases) == {"b0", "b3"}
    assert result.recipe.steps[2].numbers["layers"] == 2


def test_a_channel_takes_nothing_of_a_correction_that_is_wrong_where_it_lands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Sums.bias

    def wrong(sums: Sums, weights: Array) -> Array:
        return right(sums, weights) + 1000.0

    def better(_recipe: Recipe, _ctx: Context) -> float:
        return next(rising)  # so that only the channels themselves can refuse

    rising = itertools.count(0.0)
    monkeypatch.setattr(Sums, "bias", wrong)
    monkeypatch.setattr("onnxptq.methods.bias_correction.output_db", better)

    result = made("minmax,weights-minmax,bias-correction")

    assert set(result.recipe.biases) == {"b0", "b1", "b3"}
    for name in ("b0", "b1"):
        given = next(t for t in network().graph.initializer if t.name == name)
        np.testing.assert_array_equal(result.recipe.biases[name], numpy_helper.to_array(given))


@needs_vnni
@pytest.mark.parametrize(
    "method",
    [
        "aciq,allocate-bits,bias-correction",
        "aciq,allocate-bits,bias-correction{kind=weights},bias-correction",
    ],
)
def test_the_file_runs_in_integers_bit_for_bit(method: str, tmp_path: Path) -> None:
    result = made(method, "w3a3")
    result.save(tmp_path / "q.onnx")

    found = verify(tmp_path / "q.onnx", [{"x": images(4)}])

    assert [row.node for row in lint(tmp_path / "q.onnx").float_nodes if row.inside] == []
    assert found.bit_exact
    assert len(result.recipe.biases) >= 2
    assert Recipe.from_json(result.recipe.to_json()).to_json() == result.recipe.to_json()


def test_it_leaves_codes_alone_where_it_corrects_biases() -> None:
    before = made("mse,allocate-bits", "w3a3").recipe
    after = made("mse,allocate-bits,bias-correction", "w3a3").recipe

    for name, codes in before.codes.items():
        np.testing.assert_array_equal(after.codes[name], codes)


def test_only_the_kind_that_runs_the_model_asks_for_data() -> None:
    assert run_model("bias-correction")
    assert not run_model("bias-correction{kind=weights}")
    model = from_text(NETWORK, np.random.default_rng(5), WEIGHTS)
    with pytest.raises(CalibrationError, match="bias-correction runs the model and needs"):
        apply(Recipe("digest"), "bias-correction", Context(model, {}))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SpecError, match="kind must be output or weights, not 'weight'"):
        parse_methods("bias-correction{kind=weight}")
    assert BiasCorrection().kind == "output"

"""gptq: outputs nearer to the float network's, codes that are stored and written, and refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxptq import ort, quantize
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.methods import apply
from onnxptq.methods.gptq import Gptq
from onnxptq.methods.method import Context, Method
from onnxptq.methods.moments import Moments
from onnxptq.methods.reconstruction.finetune import FineTune
from onnxptq.ops.nodes import constant
from onnxptq.pipeline import Quantized
from onnxptq.recipe import Recipe
from onnxptq.runtime.lint import lint
from tests import learned
from tests.small_models import from_text, proto_from_text

Array = npt.NDArray[Any]

RESIDUAL = """
residual (float[N, 6, 10, 10] x) => (float[N, 8] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  b = Conv <pads = [1, 1, 1, 1]> (ar, w1, b1)
  c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, w2)
  s = Add (c, ar)
  sr = Relu (s)
  d = Conv <strides = [2, 2]> (sr, w3, b3)
  g = GlobalAveragePool (d)
  f = Flatten (g)
  h = Gemm <transB = 1> (f, w4, b4)
  y = MatMul (h, w5)
}
"""
WEIGHTS = {
    "w0": (16, 6, 3, 3),
    "b0": (16,),
    "w1": (16, 16, 3, 3),
    "b1": (16,),
    "w2": (16, 1, 3, 3),
    "w3": (24, 16, 2, 2),
    "b3": (24,),
    "w4": (20, 24),
    "b4": (20,),
    "w5": (20, 8),
}


def network() -> onnx.ModelProto:
    return proto_from_text(RESIDUAL, np.random.default_rng(3), WEIGHTS)


def images(count: int, seed: int) -> Array:
    """Smooth ones, whose neighbouring values tell of each other, as those of real images do."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 6, 4, 4)).repeat(3, axis=2).repeat(3, axis=3)
    return (coarse[:, :, :10, :10] + 0.2 * rng.normal(size=(count, 6, 10, 10))).astype(np.float32)


def made(method: str, bits: str, **options: Any) -> Quantized:
    return quantize(network(), {"x": images(48, 0)}, bits=bits, method=method, **options)


def distance(result: Quantized) -> float:
    """Squared error of the outputs on images that were not used, as a share of their square."""
    feeds = {"x": images(64, 1)}
    expected = ort.session(network().SerializeToString()).run(feeds)["y"].astype(np.float64)
    found = ort.session(result.model).run(feeds)["y"]
    return float(((expected - found) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize("bits", ["w4a8", "w3a8", "w2a8"])
def test_outputs_are_nearer_to_float_than_with_rounding_to_nearest(bits: str) -> None:
    options = {"keep_first_last": False}

    nearest = distance(made("mse,weights-mse", bits, **options))

    assert distance(made("mse,weights-mse,gptq", bits, **options)) < 0.6 * nearest


def test_all_layers_still_run_on_integers() -> None:
    result = made("gptq", "w4a4")

    assert [row.node for row in lint(result.model).float_nodes if row.inside] == []
    assert set(result.recipe.codes) == {"w0", "w1", "w2", "w3", "w4", "w5"}


def test_codes_lie_on_the_grid_of_their_bits() -> None:
    recipe = made("gptq", "w3a8", keep_first_last=False).recipe

    for name, codes in recipe.codes.items():
        params = recipe.tensors[name].params
        low, high = (params.along(end, codes.ndim) for end in (params.code_lo, params.code_hi))
        assert (codes >= low).all()
        assert (codes <= high).all()


def test_the_same_seed_gives_the_same_recipe_and_it_comes_back_from_its_file() -> None:
    first, second = made("gptq", "w2a4").recipe, made("gptq", "w2a4").recipe

    assert first.to_json() == second.to_json()
    assert Recipe.from_json(first.to_json()).to_json() == first.to_json()


def test_few_samples_are_enough_to_run() -> None:
    """No sample is held out of five, and the inputs' moments are far from full rank."""
    result = quantize(network(), {"x": images(5, 0)}, bits="w4a8", method="gptq")

    assert np.isfinite(distance(result))


def test_no_more_samples_are_learned_from_than_asked_for() -> None:
    """16 of 36 that are not held out, in whole batches of eight."""
    some, other = (made(f"mse,weights-mse,gptq{{samples={n}}}", "w4a8") for n in (16, 36))
    every = made("mse,weights-mse,gptq", "w4a8")

    assert some.recipe.codes.keys() == every.recipe.codes.keys()
    assert all(
        np.array_equal(other.recipe.codes[k], every.recipe.codes[k]) for k in every.recipe.codes
    )
    assert any(
        not np.array_equal(some.recipe.codes[k], every.recipe.codes[k]) for k in every.recipe.codes
    )


def test_samples_that_a_later_method_is_judged_on_are_not_learned_from() -> None:
    rng = np.random.default_rng(0)
    recipe, ctx = learned.context(learned.network(rng), rng)
    others = replace(ctx, held_out=learned.data_of(rng, "others held out"))

    def codes(seen: Context, *later: Method) -> Array:
        return Gptq(ridge=0.1).apply(recipe, replace(seen, later=later)).codes["w0"]

    assert not np.array_equal(codes(ctx), codes(others))
    assert np.array_equal(codes(ctx, FineTune()), codes(others, FineTune()))


def test_a_source_that_can_be_read_once_is_kept() -> None:
    once = ({"x": image[None]} for image in images(20, 0))

    result = quantize(network(), once, bits="w4a8", method="gptq")

    assert "w1" in result.recipe.codes


def test_without_data_it_says_what_is_missing() -> None:
    model = from_text(RESIDUAL, np.random.default_rng(3), WEIGHTS)

    with pytest.raises(CalibrationError, match="gptq runs the model and needs calibration data"):
        apply(Recipe("digest"), "gptq", Context(model, {}))


@pytest.mark.parametrize("option", ["ridge", "damping", "rounds", "sweeps", "samples"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(SpecError, match=f"gptq: {option} must be"):
        Gptq(**{option: -1})


def heard(monkeypatch: pytest.MonkeyPatch, better: float) -> list[Recipe]:
    """Let outputs seem better by so much each time they are judged; what was judged."""
    seen: list[Recipe] = []

    def output_db(recipe: Recipe, ctx: Context) -> float:
        assert ctx.held_out is not None
        seen.append(recipe)
        return better * len(seen)

    monkeypatch.setattr("onnxptq.methods.gptq.output_db", output_db)
    return seen


def test_outputs_decide_whether_biases_make_up_for_coarse_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"keep_first_last": False}
    asked = heard(monkeypatch, -1.0)
    with_inputs = made("mse,weights-mse,gptq", "w8a3", **options).recipe
    assert len(asked) == 2 * len(with_inputs.biases)
    heard(monkeypatch, 1.0)
    alone = made("mse,weights-mse,gptq", "w8a3", **options).recipe

    model = from_text(RESIDUAL, np.random.default_rng(3), WEIGHTS)
    first = next(node for node in model.graph if node.outputs[0].name == "a")
    weight, bias = (constant(value) for value in first.inputs[1:] if value is not None)
    assert weight is not None
    assert bias is not None
    codes = alone.tensors["x"].params.round_trip(images(48, 0))
    seen = Moments.of(first, codes, np.zeros((48, 16, 10, 10), np.float32))
    lost = weight - alone.tensors["w0"].params.dequantize(alone.codes["w0"])
    expected = bias + lost.reshape(16, -1) @ (seen.input_sum[0] / seen.count)
    np.testing.assert_allclose(alone.biases["b0"], expected, atol=1e-5)
    assert np.abs(with_inputs.biases["b0"] - expected).max() > 1e-3


def test_at_8_bits_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = heard(monkeypatch, 1.0)

    made("mse,weights-mse,gptq", "w8a8")

    assert asked == []

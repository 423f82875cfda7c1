"""A context follows the channels of a recipe, in model, statistics and outputs; and judges."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.calibrate.data import open_data
from onnxptq.calibrate.model import calibrate
from onnxptq.calibrate.ports import Array, PortInfo
from onnxptq.calibrate.run import CollectOptions
from onnxptq.methods.held_out import float_distance, output_db
from onnxptq.methods.method import Context
from onnxptq.methods.ready import ready
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from tests.small_models import array_of, from_text

NET = """
net (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
  a = Conv (x, w0, b0)
  r = Relu (a)
  y = Conv (r, w1, b1)
}
"""
PORTS = (PortInfo("x", np.dtype(np.float32), ("N", 3, 6, 6)),)
WEIGHTS = {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (5, 8, 1, 1), "b1": (5,)}


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    return from_text(NET, rng, WEIGHTS)


def measured(model: ir.Model, rng: np.random.Generator) -> tuple[Recipe, Context]:
    x = rng.normal(size=(16, 3, 6, 6)).astype(np.float32)
    data = open_data({"x": x}, PORTS)
    recipe, stats = calibrate(model, place(model, Placing()), data, Placing(), CollectOptions())
    return recipe, Context(model, stats, data)


def scaled(recipe: Recipe, factor: float) -> Recipe:
    return replace(recipe, channel_scales={"r": np.full(8, factor, np.float32)})


def test_model_and_changed_statistics_are_the_scaled_ones(
    model: ir.Model, rng: np.random.Generator
) -> None:
    recipe, ctx = measured(model, rng)

    seen = ctx.following(scaled(recipe, 4))

    np.testing.assert_array_equal(array_of(seen.model, "w0"), array_of(model, "w0") / 4)
    assert seen.stats["r"].max == ctx.stats["r"].max / 4
    assert seen.stats["r"].samples == 16
    assert seen.stats["x"].max == ctx.stats["x"].max
    assert ctx.model is model


def test_it_follows_back_and_stays_where_nothing_moved(
    model: ir.Model, rng: np.random.Generator
) -> None:
    recipe, ctx = measured(model, rng)
    seen = ctx.following(scaled(recipe, 4))

    back = seen.following(recipe)

    assert ctx.following(recipe) is ctx
    assert seen.following(scaled(recipe, 4)) is seen
    assert back.model is model
    assert back.stats["r"].max == ctx.stats["r"].max


def test_quantized_values_are_those_of_the_scaled_model(
    model: ir.Model, rng: np.random.Generator
) -> None:
    recipe, ctx = measured(model, rng)
    recipe = scaled(recipe, 4)
    seen = ctx.following(recipe)
    assert ctx.batches is not None

    (codes,) = list(seen.coded_taps(ready(recipe, seen), ["r"]).values(ctx.batches))[:1]
    (real,) = list(seen.float_values(ctx.batches, ["r"]))[:1]

    assert np.abs(codes["r"] - real["r"]).max() < 0.03 * real["r"].max()


def test_outputs_are_judged_in_db(model: ir.Model, rng: np.random.Generator) -> None:
    recipe, ctx = measured(model, rng)

    assert 30 < output_db(ready(recipe, ctx), ctx) < 60


def test_a_distance_is_relative_to_the_largest_number_of_the_same_output() -> None:
    def outputs(first: float, second: float) -> list[dict[str, Array]]:
        large, small = np.array([100.0, first]), np.array([1.0, second])
        return [{"a": large, "b": small, "class": np.array([int(first)])}]

    assert float_distance(outputs(1, 0), outputs(2, 0.5)) == 0.5
    assert float_distance(outputs(1, 0), outputs(2, 0)) == 0.01
    assert np.isnan(float_distance(outputs(1, 0), outputs(1, np.nan)))

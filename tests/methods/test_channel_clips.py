"""aciq{per_channel=true}: a clip for each channel where that helps, and files that run."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxptq import ort, passes
from onnxptq.calibrate.source import Taken
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.graph import io
from onnxptq.methods import apply
from onnxptq.methods.method import Context
from onnxptq.pipeline import Quantized
from onnxptq.recipe import Recipe
from onnxptq.runtime.lint import lint
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.methods.test_equalize import (
    RESIDUAL,
    RESIDUAL_WEIGHTS,
    TRIPLE,
    TRIPLE_WEIGHTS,
    images,
    made,
    unbalanced,
)
from tests.small_models import sqnr_db

PER_CHANNEL = "aciq{per_channel=true}"


def wide() -> tuple[onnx.ModelProto, Quantized, Quantized]:
    """A network whose channels differ in range in front of its depthwise layer, clipped twice."""
    net = unbalanced(TRIPLE, TRIPLE_WEIGHTS, ("ar",))
    x = images(96, 3)
    return net, made(net, "aciq", x, bits="w8a3"), made(net, PER_CHANNEL, x, bits="w8a3")


def test_channels_clipped_on_their_own_come_nearer_to_float() -> None:
    net, one, each = wide()
    feeds = {"x": images(64, 5)}
    expected = ort.session(net.SerializeToString()).run(feeds)["y"]

    gained = sqnr_db(expected, ort.session(each.model).run(feeds)["y"]) - sqnr_db(
        expected, ort.session(one.model).run(feeds)["y"]
    )

    assert "ar" in each.recipe.channel_scales
    assert each.recipe.steps[0].numbers["scaled"] >= 1
    assert gained > 1.0


def test_factors_are_the_clips_relative_to_the_middle_one() -> None:
    net, _, each = wide()
    prepared = passes.prepare(io.from_proto(net, "test")).model
    x = images(96, 3)
    before = ort.session(ort.with_outputs(prepared, ["a"])).run({"x": x})["a"]
    scale = each.recipe.channel_scales["ar"]

    # Where means are near 0 a clip is so many mean distances; the constant cancels.
    spread = np.abs(before - before.mean(axis=(0, 2, 3), keepdims=True)).mean(axis=(0, 2, 3))
    assert np.corrcoef(np.log(scale), np.log(spread))[0, 1] > 0.9
    assert np.log(scale).mean() == pytest.approx(0.0, abs=0.5)


@needs_vnni
def test_the_file_runs_in_integers_bit_for_bit(tmp_path: Path) -> None:
    _, _, each = wide()
    each.save(tmp_path / "q.onnx")

    assert [row.node for row in lint(tmp_path / "q.onnx").float_nodes if row.inside] == []
    assert verify(tmp_path / "q.onnx", [{"x": images(4, 1)}]).bit_exact
    assert Recipe.from_json(each.recipe.to_json()).to_json() == each.recipe.to_json()


def test_where_scaling_does_not_help_the_clips_are_those_of_whole_values() -> None:
    net = unbalanced(RESIDUAL, RESIDUAL_WEIGHTS, ())
    x = images(96, 3)

    one, each = made(net, "aciq", x, bits="w2a8"), made(net, PER_CHANNEL, x, bits="w2a8")

    assert dict(each.recipe.channel_scales) == {}
    for tensor in one.recipe.activations():
        assert each.recipe.tensors[tensor.value].params.scale == tensor.params.scale


def test_codes_that_were_chosen_already_are_refused() -> None:
    net = unbalanced(TRIPLE, TRIPLE_WEIGHTS, ("ar",))

    with pytest.raises(SpecError, match="aciq changes the weights, for which codes"):
        made(net, f"mse,weights-mse,gptq,{PER_CHANNEL}", images(32, 3))


def test_without_data_it_asks_for_some() -> None:
    model = passes.prepare(io.from_proto(unbalanced(TRIPLE, TRIPLE_WEIGHTS, ("ar",)), "t")).model

    with pytest.raises(CalibrationError, match="aciq runs the model and needs calibration data"):
        apply(Recipe("digest"), PER_CHANNEL, Context(model, {}))


def test_a_network_without_room_for_factors_says_so() -> None:
    net = unbalanced(RESIDUAL, RESIDUAL_WEIGHTS, ())
    model = passes.prepare(io.from_proto(net, "t")).model
    data = Taken([{"x": images(8, 3)}], None, 8, "digest")

    with pytest.warns(UserWarning, match="aciq: no channels that could have clips of their own"):
        found = apply(Recipe("digest"), PER_CHANNEL, Context(model, {}, data))

    assert found.steps[0].numbers["scaled"] == 0.0

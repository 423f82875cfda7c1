"""Each step of a recipe says what it brought on samples that no method learned from."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxptq import quantize
from onnxptq.methods import apply
from onnxptq.methods.gptq import FITTED
from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.finetune import FineTune
from onnxptq.recipe import Recipe
from tests import learned
from tests.small_models import proto_from_text

NET = """
net (float[N, 4, 8, 8] x) => (float[N, 6] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  b = Conv (ar, w1, b1)
  br = Relu (b)
  g = GlobalAveragePool (br)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w2, b2)
}
"""
WEIGHTS = {
    "w0": (12, 4, 3, 3), "b0": (12,), "w1": (12, 12, 1, 1), "b1": (12,), "w2": (6, 12), "b2": (6,),
}  # fmt: skip


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return proto_from_text(NET, np.random.default_rng(1), WEIGHTS)


def images(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, 4, 8, 8)).astype(np.float32)


def test_gains_add_up_from_step_to_step(net: onnx.ModelProto) -> None:
    result = quantize(net, {"x": images(64)}, bits="w3a4", keep_first_last=False)

    steps = result.report.steps
    names = [step.method.partition("{")[0] for step in steps]
    assert names == ["equalize", "mse", "weights-mse", "zero-point", "gptq", "provable-scales"]
    for before, step in itertools.pairwise(steps):
        assert before.held_out_db is not None
        assert step.held_out_db is not None
        assert step.gain_db is not None
        assert step.held_out_db == pytest.approx(before.held_out_db + step.gain_db, abs=0.011)
    gains = dict(zip(names, (step.gain_db for step in steps), strict=True))
    assert gains["mse"] is not None
    assert gains["mse"] > 0
    assert gains["gptq"] is not None
    assert gains["gptq"] > 1
    assert dict(result.recipe.steps[4].numbers)["gain_db"] == gains["gptq"]


def test_gptq_says_that_it_was_fitted_to_the_samples_held_out(net: onnx.ModelProto) -> None:
    gptq, *_ = quantize(net, {"x": images(64)}, bits="w3a4", method="gptq").report.steps

    assert "fitted held out samples 16" in gptq.cells()[-1]


def test_nothing_is_measured_where_no_samples_are_held_out(net: onnx.ModelProto) -> None:
    quick = quantize(net, {"x": images(64)}, quality="quick")
    few = quantize(net, {"x": images(4)}, method="gptq")

    for result in (quick, few):
        assert all(step.held_out_db is step.gain_db is None for step in result.report.steps)


def test_a_recipe_tells_what_its_steps_brought(net: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "net.recipe.json"
    made = quantize(net, {"x": images(64)}, bits="w4a4")
    path.write_text(made.recipe.to_json(), encoding="utf-8")

    again = quantize(net, recipe=path)

    assert [(s.method, s.gain_db) for s in again.report.steps] == [
        (s.method, s.gain_db) for s in made.report.steps
    ]


def learned_behind_gptq(monkeypatch: pytest.MonkeyPatch, brings_db: float) -> tuple[Recipe, Recipe]:
    """A recipe of `gptq` and of learning that changes nothing but seems to, and of `gptq` alone."""
    rng = np.random.default_rng(0)
    recipe, ctx = learned.context(learned.network(rng), rng)

    def unchanged(_: FineTune, recipe: Recipe, __: Context) -> Recipe:
        return recipe

    def seems(_: Recipe, __: Context) -> float:
        return next(seen)

    monkeypatch.setattr(FineTune, "apply", unchanged)
    alone = apply(recipe, "gptq", ctx)
    seen = iter([0.0, 5.0, 5.0 + brings_db, 6.0])
    monkeypatch.setattr("onnxptq.methods.gains._held_out_db", seems)
    return apply(recipe, "gptq,finetune", ctx), alone


def test_where_learning_brings_nothing_gptq_has_all_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def remark(_: Context, message: str) -> None:
        said.append(message)

    monkeypatch.setattr(Context, "remark", remark)
    found, alone = learned_behind_gptq(monkeypatch, brings_db=0.05)

    assert [step.method for step in found.steps[-3:]] == ["gptq", "finetune", "gptq"]
    assert all(np.array_equal(found.codes[name], alone.codes[name]) for name in alone.codes)
    assert ["gptq is made anew" in message for message in said] == [True]


def test_where_learning_brings_something_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    found, alone = learned_behind_gptq(monkeypatch, brings_db=0.5)

    assert [step.method for step in found.steps[-2:]] == ["gptq", "finetune"]
    assert [FITTED in step.numbers for step in found.steps[-2:]] == [False, False]
    assert any(not np.array_equal(found.codes[name], alone.codes[name]) for name in alone.codes)


@pytest.mark.filterwarnings("error")
def test_what_the_default_could_not_do_is_no_warning() -> None:
    """Neither the first value, which a Clip bounds, nor the second can be scaled."""
    ends = "lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> ()"
    body = NET.replace("{", "{ " + ends, 1)
    body = body.replace("Relu (a)", "Clip (a, lo, hi)").replace("Relu (b)", "Clip (b, lo, hi)")
    net = proto_from_text(body, np.random.default_rng(1), WEIGHTS)

    result = quantize(net, {"x": images(64)})

    assert result.recipe.channel_scales == {}

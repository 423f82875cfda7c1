"""Blocks judged by the network's outputs, and samples moved to what training saw."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxptq.methods.layerwise import layers_of
from onnxptq.passes import Norm
from tests.learned import SAMPLES, context, network

torch = pytest.importorskip("torch", reason="needs the torch extra")
blocks = pytest.importorskip("onnxptq.methods.reconstruction.blocks")
coins = pytest.importorskip("onnxptq.methods.reconstruction.coins")
corrections = pytest.importorskip("onnxptq.methods.reconstruction.corrections")
objective = pytest.importorskip("onnxptq.methods.reconstruction.objective")
plan = pytest.importorskip("onnxptq.methods.reconstruction.plan")
quantized_block = pytest.importorskip("onnxptq.methods.reconstruction.quantized_block")
samples = pytest.importorskip("onnxptq.methods.reconstruction.samples")
step_search = pytest.importorskip("onnxptq.methods.reconstruction.step_search")
suffix = pytest.importorskip("onnxptq.methods.reconstruction.suffix")

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    return network(rng)


def test_a_network_after_a_value_is_what_onnxruntime_computes(
    model: ir.Model, rng: np.random.Generator
):
    _, ctx = context(model, rng)
    value = next(v for node in model.graph for v in node.outputs if v.name == "h")
    taps = list(ctx.float_values(ctx.samples("test"), ["h", "y"]))

    behind = suffix.Suffix.of(model, value, CPU)
    found = behind(torch.from_numpy(np.concatenate([tap["h"] for tap in taps])), {})

    assert behind.beside == ()
    assert behind.outputs == ("y",)
    assert found["y"].numpy() == pytest.approx(np.concatenate([t["y"] for t in taps]), abs=1e-5)


def test_the_difference_of_predictions_is_kl_for_rows_of_logits(rng: np.random.Generator):
    real, found = torch.from_numpy(rng.normal(size=(2, 6, 10)))

    p, q = (torch.softmax(z / 4.0, 1) for z in (real, found))
    expected = (p * (p.log() - q.log())).sum(1).mean()
    apart = suffix.prediction_difference({"y": found}, {"y": real}, 4.0)

    assert float(apart) == pytest.approx(float(expected))


@pytest.mark.parametrize("fisher", [False, True])
def test_parts_of_a_batch_have_the_gradients_of_the_whole(
    fisher: bool,
    model: ir.Model,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe, ctx = context(model, rng)
    block = blocks.blocks_of(model, layers_of(model, recipe))[1]
    shelf, data = samples.Shelf(), ctx.samples("test")
    seen = samples.Samples.of(block, recipe, ctx, data, shelf)
    if fisher:
        weight = rng.uniform(1, 2, size=seen.target.shape).astype(np.float32)
        seen = replace(seen, weight=weight)
    behind = suffix.Suffix.of(model, block.exit, CPU)
    names = [*behind.beside, *behind.outputs]
    values = shelf.gathered(ctx.float_taps(names).values(data), len(data))
    how = plan.Plan(steps=True, prediction=10.0, judged=5)
    learned = quantized_block.Learned(True, False, True, "all", "all")
    rows = rng.permutation(SAMPLES)[:10]

    def gradients() -> list[npt.NDArray[np.float32]]:
        net = quantized_block.QuantizedBlock(block, recipe, learned, CPU)
        ahead = objective.Ahead(behind, values)
        losses = objective.Objective(net, seen, how, ahead, coins.Coins(0, CPU)).losses(rows)
        parts = [part.backward() for part in losses]
        counts.append(len(parts))
        return [p.grad.numpy() for p in net.parameters() if p.requires_grad]

    counts: list[int] = []
    whole = gradients()
    monkeypatch.setattr(objective, "PART_BYTES", 3 * 6 * 6 * 6 * 4)
    parts = gradients()

    assert counts == [1, 4]  # of 3 samples and of 1; the first 5 are judged
    for found, expected in zip(parts, whole, strict=True):
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_a_step_that_spoils_the_prediction_is_found(model: ir.Model, rng: np.random.Generator):
    recipe, ctx = context(model, rng)
    block = blocks.blocks_of(model, layers_of(model, recipe))[1]
    name = "d"
    params = recipe.tensors[name].params
    spoilt = recipe.with_params({name: params.with_scale(params.scale * np.float32(2))}, "test")
    shelf, data = samples.Shelf(), ctx.samples("test")
    seen = samples.Samples.of(block, spoilt, ctx, data, shelf)
    learned = quantized_block.Learned(False, True, True, "none", "none")
    net = quantized_block.QuantizedBlock(block, spoilt, learned, CPU)
    behind = suffix.Suffix.of(model, block.exit, CPU)
    names = [*behind.beside, *behind.outputs]
    values = shelf.gathered(ctx.float_taps(names).values(data), len(data))
    ahead = objective.Ahead(behind, values)
    rows = np.arange(SAMPLES)
    begun = ahead.difference(net(torch.from_numpy(seen.coded)), rows, 4.0).item()

    step_search.choose_steps(net, seen, ahead, plan.Plan())

    found = ahead.difference(net(torch.from_numpy(seen.coded)), rows, 4.0).item()
    assert found < begun
    assert float(net.stored(spoilt, "test").tensors[name].params.scale) < 2 * float(params.scale)


def test_the_difference_of_other_outputs_is_relative_squared_error(rng: np.random.Generator):
    real = torch.from_numpy(rng.normal(size=(2, 3, 4, 4)))

    apart = suffix.prediction_difference({"y": real * 1.1}, {"y": real}, 4.0)

    assert float(apart) == pytest.approx(0.01)


def test_statistics_of_a_batch_norm_serve_until_channels_are_moved(
    model: ir.Model, rng: np.random.Generator
):
    recipe, ctx = context(model, rng)
    one, beta = (rng.uniform(0.5, 2.0, size=6).astype(np.float32) for _ in range(2))
    layer = next(node for node in model.graph if node.outputs[0].name == "c")
    ctx = replace(ctx, norms={str(layer.name): Norm(one, beta, one, one, 1e-5)})
    scales = {"d": np.linspace(0.5, 2.0, 6).astype(np.float32)}
    moved = ctx.following(replace(recipe, channel_scales=scales))
    (_, block, *_) = blocks.alone(model, layers_of(model, recipe))

    (before,) = corrections.spreads_of(block, ctx)
    (after,) = corrections.spreads_of(block, moved)

    assert before.mean.tolist() == beta.tolist()
    assert (after.mean != beta).all()

"""equalize: badly scaled channels are balanced exactly where that helps; else there is a reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxptq import ort, passes, quantize
from onnxptq.calibrate.source import Taken
from onnxptq.calibrate.stats import ChannelStats, TensorStats
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.graph import io
from onnxptq.methods import apply
from onnxptq.methods.balance import Costs, Limits, absorbed, chains, factors
from onnxptq.methods.equalize import Equalize
from onnxptq.methods.method import Context
from onnxptq.passes import Norm
from onnxptq.passes.affine import linear
from onnxptq.pipeline import Quantized
from onnxptq.recipe import Recipe
from onnxptq.rewrite.channels import with_channels
from onnxptq.rewrite.segments import Segment, find_segments
from onnxptq.runtime.lint import lint
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.small_models import from_text, proto_from_text, sqnr_db

Array = npt.NDArray[Any]

TRIPLE = """
net (float[N, 6, 10, 10] x) => (float[N, 8] y) {
  a = Conv (x, w0, b0)
  ar = Relu (a)
  d = Conv <group = 16, pads = [1, 1, 1, 1]> (ar, w1, b1)
  dr = Relu (d)
  e = Conv (dr, w2, b2)
  er = Relu (e)
  g = GlobalAveragePool (er)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w3, b3)
}
"""
TRIPLE_WEIGHTS = {
    "w0": (16, 6, 1, 1), "b0": (16,), "w1": (16, 1, 3, 3), "b1": (16,), "w2": (12, 16, 1, 1),
    "b2": (12,), "w3": (8, 12), "b3": (8,),
}  # fmt: skip

RESIDUAL = """
net (float[N, 6, 10, 10] x) => (float[N, 8] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  b = Conv <pads = [1, 1, 1, 1]> (ar, w1, b1)
  br = Relu (b)
  c = Conv <pads = [1, 1, 1, 1]> (br, w2, b2)
  s = Add (c, ar)
  sr = Relu (s)
  g = GlobalAveragePool (sr)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w3, b3)
}
"""
RESIDUAL_WEIGHTS = {
    "w0": (16, 6, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3),
    "b2": (16,), "w3": (8, 16), "b3": (8,),
}  # fmt: skip

OFFSET = """
net (float[N, 6, 8, 8] x) => (float[N, 8] y) {
  a = Conv (x, w0, b0)
  ar = Relu (a)
  e = Conv (ar, w1, b1)
  er = Relu (e)
  g = GlobalAveragePool (er)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w2, b2)
}
"""
OFFSET_WEIGHTS = {
    "w0": (16, 6, 1, 1), "b0": (16,), "w1": (12, 16, 1, 1), "b1": (12,), "w2": (8, 12), "b2": (8,),
}  # fmt: skip


def unbalanced(
    body: str, weights: dict[str, tuple[int, ...]], names: tuple[str, ...], spread: float = 1.5
) -> onnx.ModelProto:
    """A network with some channels scaled at random: the same outputs, worse codes."""
    rng = np.random.default_rng(7)
    proto = proto_from_text(body, rng, weights)
    model = passes.prepare(io.from_proto(proto, "test")).model
    scales = {
        segment.name: np.exp(spread * rng.normal(size=segment.channels)).astype(np.float32)
        for segment in find_segments(model)[0]
        if segment.name in names
    }
    assert len(scales) == len(names)
    moved = with_channels(model, Recipe("", channel_scales=scales))
    return ir.serde.serialize_model(moved)


def images(count: int, seed: int) -> Array:
    shape = (count, 6, 10, 10)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(net: onnx.ModelProto, method: str, x: Array, **options: Any) -> Quantized:
    return quantize(net, {"x": x}, method=method, **options)


def quality(net: onnx.ModelProto, result: Quantized, x: Array) -> float:
    """dB on images that were not used."""
    expected = ort.session(net.SerializeToString()).run({"x": x})["y"]
    return sqnr_db(expected, ort.session(result.model).run({"x": x})["y"])


@pytest.fixture(scope="module")
def triple() -> onnx.ModelProto:
    return unbalanced(TRIPLE, TRIPLE_WEIGHTS, ("ar", "dr"))


@pytest.fixture(scope="module")
def equalized(triple: onnx.ModelProto) -> Quantized:
    return made(triple, "equalize,mse,weights-mse", images(48, 0), per_channel=False)


def test_badly_scaled_channels_are_mended(triple: onnx.ModelProto, equalized: Quantized) -> None:
    before = made(triple, "mse,weights-mse", images(48, 0), per_channel=False)

    assert set(equalized.recipe.channel_scales) >= {"ar", "dr"}
    gain = quality(triple, equalized, images(64, 1)) - quality(triple, before, images(64, 1))
    assert gain > 6


def test_what_it_gained_is_in_the_recipe(equalized: Quantized) -> None:
    step = equalized.recipe.steps[0]

    assert step.method == "equalize"
    assert step.numbers["chains"] == 2
    assert step.numbers["chains_scaled"] >= 1
    assert step.numbers["tried_db"] > step.numbers["tried_db_before"] + 6


def test_stored_values_are_balanced_where_weights_have_scales_of_their_own(
    triple: onnx.ModelProto,
) -> None:
    plain, balanced = (
        made(triple, method, images(48, 0), bits="w8a4", keep_first_last=False)
        for method in ("mse,weights-mse", "equalize,mse,weights-mse")
    )

    assert quality(triple, balanced, images(64, 1)) > quality(triple, plain, images(64, 1)) + 2


def test_the_float_network_computes_the_same(triple: onnx.ModelProto, equalized: Quantized) -> None:
    model = passes.prepare(io.from_proto(triple, "test")).model
    moved = with_channels(model, equalized.recipe)
    feeds = {"x": images(64, 1)}

    expected, found = (ort.session(m).run(feeds)["y"] for m in (model, moved))

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@needs_vnni
def test_the_file_runs_on_integers_and_the_executor_agrees_bit_for_bit(
    equalized: Quantized, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    equalized.save(path)

    assert lint(io.load(path)).float_nodes == ()
    verification = verify(path, [{"x": images(4, 2)}])
    assert verification.bit_exact
    assert equalized.report.float_nodes == ()


def test_the_same_seed_gives_the_same_bytes_and_so_does_the_recipe(
    triple: onnx.ModelProto, equalized: Quantized, tmp_path: Path
) -> None:
    again = made(triple, "equalize,mse,weights-mse", images(48, 0), per_channel=False)
    path = tmp_path / "net.recipe.json"
    path.write_text(again.recipe.to_json(), encoding="utf-8")

    assert again.recipe.to_json() == equalized.recipe.to_json()
    assert io.to_bytes(again.model) == io.to_bytes(equalized.model)
    assert io.to_bytes(quantize(triple, recipe=path).model) == io.to_bytes(again.model)


def test_the_layers_are_compared_with_the_scaled_float_model(equalized: Quantized) -> None:
    found = [row.sqnr_db for row in equalized.report.layers]

    assert all(db is not None and db > 20 for db in found)


def test_later_methods_see_the_scaled_model(triple: onnx.ModelProto, equalized: Quantized) -> None:
    """gptq runs the quantized model that the recipe describes, channels and all."""
    result = made(triple, "equalize,gptq", images(48, 0), per_channel=False)

    assert set(result.recipe.codes) == {"w0", "w1", "w2", "w3"}
    assert quality(triple, result, images(64, 1)) > quality(triple, equalized, images(64, 1)) - 1


def test_twice_is_no_worse_than_once(triple: onnx.ModelProto, equalized: Quantized) -> None:
    options = {"per_channel": False}
    with pytest.warns(UserWarning, match="no nearer to float|lose the ranges"):
        twice = made(triple, "equalize,equalize,mse,equalize", images(48, 0), **options)

    assert quality(triple, twice, images(64, 1)) > quality(triple, equalized, images(64, 1)) - 1


def test_a_relu6_network_is_left_alone_with_a_reason() -> None:
    body = TRIPLE.replace("Relu (a)", "Clip (a, lo, hi)").replace("Relu (d)", "Clip (d, lo, hi)")
    body = body.replace("Relu (e)", "Clip (e, lo, hi)").replace(
        "{", "{ lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> ()", 1
    )
    net = proto_from_text(body, np.random.default_rng(7), TRIPLE_WEIGHTS)

    plain = made(net, "mse,weights-mse", images(48, 0))
    with pytest.warns(UserWarning, match=r"no channels that could be scaled: value 'a'.*\(Clip"):
        result = made(net, "equalize,mse,weights-mse", images(48, 0))

    assert result.recipe.channel_scales == {}
    assert result.recipe.steps[0].numbers["chains"] == 0
    assert result.recipe.tensors["dr"].params.scale == plain.recipe.tensors["dr"].params.scale


def test_in_a_residual_network_only_what_no_sum_reads_is_scaled() -> None:
    net = unbalanced(RESIDUAL, RESIDUAL_WEIGHTS, ("br",))

    result = made(net, "equalize,mse,weights-mse", images(48, 0), per_channel=False)
    plain = made(net, "mse,weights-mse", images(48, 0), per_channel=False)

    assert set(result.recipe.channel_scales) == {"br"}
    assert quality(net, result, images(64, 1)) > quality(net, plain, images(64, 1)) + 3


def test_what_does_not_help_is_undone() -> None:
    """With no room between their limits, all factors are 1."""
    net = proto_from_text(RESIDUAL, np.random.default_rng(7), RESIDUAL_WEIGHTS)

    with pytest.warns(UserWarning, match=r"no nearer to float \(.* dB on the samples held out\)"):
        result = made(net, "equalize{lowest=1,highest=1,absorb=false},mse", images(48, 0))

    assert result.recipe.channel_scales == {}
    assert result.recipe.steps[0].numbers["chains_scaled"] == 0


def test_ranges_that_were_chosen_before_are_chosen_anew(triple: onnx.ModelProto) -> None:
    with pytest.warns(UserWarning, match=r"\d+ tensors lose the ranges .* name it first"):
        result = made(triple, "minmax,weights-mse,equalize", images(48, 0), per_channel=False)

    assert result.recipe.tensors["ar"].set_by == "mse"
    assert result.recipe.tensors["x"].set_by == "minmax"


def offset_net(bias: float) -> tuple[onnx.ModelProto, Array]:
    """Half of the channels lie far above 0, where their Relu does nothing."""
    rng = np.random.default_rng(3)
    net = proto_from_text(OFFSET, rng, OFFSET_WEIGHTS)
    high = np.where(np.arange(16) % 2, np.float32(bias), np.float32(0))
    for tensor in net.graph.initializer:
        if tensor.name == "b0":
            tensor.CopyFrom(numpy_helper.from_array(high, "b0"))
    return net, rng.uniform(-1, 1, size=(48, 6, 8, 8)).astype(np.float32)


def test_what_a_channel_never_falls_below_is_absorbed() -> None:
    net, x = offset_net(8.0)

    without, absorbing = (
        made(net, f"equalize{{absorb={a}}},mse,weights-mse", x, bits="w8a4", keep_first_last=False)
        for a in ("false", "true")
    )

    shifts = absorbing.recipe.channel_shifts["ar"]
    assert (shifts[1::2] < 0).sum() >= 6
    assert not shifts[::2].any()
    assert absorbing.recipe.steps[0].numbers["channels_shifted"] >= np.count_nonzero(shifts)
    assert quality(net, absorbing, x) > quality(net, without, x) + 1
    assert without.recipe.channel_shifts == {}


def test_a_plan_that_changes_the_float_network_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if more were absorbed than the Relu lets through."""
    net, x = offset_net(8.0)

    def too_much(_: Segment, seen: ChannelStats, __: Norm | None) -> Array:
        return np.maximum(seen.max, 0)

    monkeypatch.setattr("onnxptq.methods.equalize.absorbed", too_much)

    result = made(net, "equalize,mse,weights-mse", x, bits="w8a4", keep_first_last=False)

    assert result.recipe.channel_shifts == {}


def one_segment(body: str, weights: dict[str, tuple[int, ...]]) -> Segment:
    model = from_text(body, np.random.default_rng(0), weights)
    return find_segments(model)[0][0]


def channel_stats(values: Array) -> ChannelStats:
    found = TensorStats.of(values, channels=True).channels
    assert found is not None
    return found


def test_a_norm_says_what_is_absorbed_and_what_was_seen_limits_it() -> None:
    segment = one_segment(OFFSET, OFFSET_WEIGHTS)
    seen = channel_stats(np.tile(np.linspace(4, 8, 50, dtype=np.float32), (1, 16, 1)))
    gamma, beta = np.full(16, 0.5, np.float32), np.full(16, 5.0, np.float32)
    beta[0], beta[1] = 6.0, -2.0
    norm = Norm(gamma, beta, beta, gamma, 1e-5)

    amount = absorbed(segment, seen, norm)

    assert amount is not None
    assert amount.tolist() == [0.0, 0.0] + [3.5] * 14  # 6 - 1.5 is above what was seen


def test_nothing_is_absorbed_where_zeros_are_padded() -> None:
    segment = one_segment(TRIPLE, TRIPLE_WEIGHTS)

    assert absorbed(segment, channel_stats(np.ones((1, 16, 4), np.float32)), None) is None


def test_factors_balance_rows_and_columns_and_spare_dead_channels() -> None:
    model = io.from_proto(unbalanced(RESIDUAL, RESIDUAL_WEIGHTS, ("br",), 0.5), "test")
    weight = model.graph.initializers["w1"]
    array = np.array(weight.const_value.numpy())  # type: ignore[union-attr]
    array[3] = 0
    weight.const_value = ir.tensor(array, name="w1")
    segment = next(s for s in find_segments(model)[0] if s.name == "br")

    found = factors([Costs(segment, None, True)], Limits(20, 1e-3, 1e3))["br"]

    maker, reader = linear(segment.maker), linear(segment.readers[0].layer)
    assert maker is not None
    assert reader is not None
    rows, columns = maker.output_ranges() / found, reader.input_ranges() * found
    shares = np.delete(rows / columns, 3)
    np.testing.assert_allclose(shares, shares[0], rtol=1e-6)
    assert found[3] == 1
    alive = np.delete(found, 3)
    assert np.exp(np.log(alive).mean()) == pytest.approx(1)


def test_factors_stay_inside_their_limits() -> None:
    model = io.from_proto(unbalanced(TRIPLE, TRIPLE_WEIGHTS, ("ar", "dr"), 3.0), "test")
    segments = find_segments(model)[0]

    found = factors([Costs(s, None, True) for s in segments], Limits(20, 0.5, 2.0))

    assert all(((f >= 0.5) & (f <= 2)).all() for f in found.values())
    assert any((f == 2).any() for f in found.values())


def test_a_depthwise_layer_links_its_two_sides() -> None:
    model = from_text(TRIPLE, np.random.default_rng(0), TRIPLE_WEIGHTS)

    assert chains(find_segments(model)[0]) == [("ar", "dr"), ("f",)]


def test_codes_that_were_chosen_before_are_refused() -> None:
    model = from_text(TRIPLE, np.random.default_rng(0), TRIPLE_WEIGHTS)
    recipe = Recipe("digest", biases={"b0": np.zeros(16, np.float32)})

    with pytest.raises(SpecError, match="name it before the methods that round"):
        apply(recipe, "equalize", Context(model, {}, Taken([], None, 0, "")))


def test_without_data_it_says_what_is_missing() -> None:
    model = from_text(TRIPLE, np.random.default_rng(0), TRIPLE_WEIGHTS)

    with pytest.raises(CalibrationError, match="equalize runs the model and needs calibration"):
        apply(Recipe("digest"), "equalize", Context(model, {}))


def test_statistics_of_moved_channels_are_not_guessed() -> None:
    model = from_text(TRIPLE, np.random.default_rng(0), TRIPLE_WEIGHTS)
    stats = {"ar": TensorStats.of(np.ones((1, 16, 4), np.float32))}
    recipe = Recipe("digest", channel_scales={"ar": np.full(16, 2, np.float32)})

    with pytest.raises(CalibrationError, match="channels of value 'ar' were moved, and without"):
        apply(recipe, "minmax", Context(model, stats))


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"lowest": 0}, {"lowest": 2}, {"highest": 0.5}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"equalize: (iterations|lowest) must be"):
        Equalize(**options)


def test_options_are_part_of_its_text() -> None:
    assert replace(Equalize(), absorb=False) == Equalize(absorb=False)

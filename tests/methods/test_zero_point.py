"""zero-point: shifts, windows and weight zero points are found where they must help, and proven."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from onnxptq import ort, passes, quantize
from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import SpecError
from onnxptq.graph import io
from onnxptq.methods.mse import Mse
from onnxptq.methods.weight_zeros import Row, with_zero
from onnxptq.methods.windows import Readers, Tally, candidates, tally
from onnxptq.pipeline import Quantized
from onnxptq.quant import QParams, QuantSpec
from onnxptq.rewrite.channels import with_channels
from onnxptq.runtime.lint import lint
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.small_models import from_text, proto_from_text, sqnr_db

Array = npt.NDArray[Any]

PLAIN = """
net (float[N, 6, 10, 10] x) => (float[N, 8] y) {
  a = Conv (x, w0, b0)
  b = Conv (a, w1, b1)
  br = Relu (b)
  g = GlobalAveragePool (br)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w2, b2)
}
"""
WEIGHTS = {
    "w0": (16, 6, 1, 1), "b0": (16,), "w1": (12, 16, 1, 1), "b1": (12,), "w2": (8, 12), "b2": (8,),
}  # fmt: skip
OPTIONS: dict[str, Any] = {"bits": "w8a4", "keep_first_last": False}


def images(count: int, seed: int) -> Array:
    shape = (count, 6, 10, 10)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(net: onnx.ModelProto, method: str, **options: Any) -> Quantized:
    return quantize(net, {"x": images(48, 0)}, method=method, **{**OPTIONS, **options})


def quality(net: onnx.ModelProto, result: Quantized) -> float:
    """dB on images that were not used."""
    x = images(64, 1)
    expected = ort.session(net.SerializeToString()).run({"x": x})["y"]
    return sqnr_db(expected, ort.session(result.model).run({"x": x})["y"])


def changed(net: onnx.ModelProto, name: str, change: Any) -> onnx.ModelProto:
    """A copy with other numbers in one initializer."""
    other = onnx.ModelProto()
    other.CopyFrom(net)
    for tensor in other.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            change(array)
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return other


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    return proto_from_text(PLAIN, np.random.default_rng(3), WEIGHTS)


@pytest.fixture(scope="module")
def ignored(plain: onnx.ModelProto) -> onnx.ModelProto:
    """A channel of `a` reaches ten times as far as the others, and nobody reads it."""

    def larger(w: Array) -> None:
        w[0] *= 10

    def blind(w: Array) -> None:
        w[:, 0] = 0

    return changed(changed(plain, "w0", larger), "w1", blind)


@pytest.fixture(scope="module")
def spread(plain: onnx.ModelProto) -> onnx.ModelProto:
    """Each channel of `a` lies somewhere else, far from 0."""

    def moved(b: Array) -> None:
        b += np.random.default_rng(0).uniform(-8, 8, b.shape).astype(np.float32)

    return changed(plain, "b0", moved)


def test_a_window_leaves_out_what_nobody_reads(ignored: onnx.ModelProto) -> None:
    before = made(ignored, "mse,weights-mse")
    after = made(ignored, "mse,weights-mse,zero-point{shifts=false}")

    scales = [float(result.recipe.tensors["a"].params.scale) for result in (before, after)]
    assert scales[1] < 0.8 * scales[0]
    assert quality(ignored, after) > quality(ignored, before) + 1
    step = next(step for step in after.recipe.steps if step.method.startswith("zero-point"))
    assert step.numbers["windows"] >= 1
    assert step.numbers["tried_db"] > step.numbers["tried_db_before"]


@needs_vnni
def test_channels_far_from_0_are_shifted_to_the_middle(
    spread: onnx.ModelProto, tmp_path: Path
) -> None:
    options = {"keep_first_last": True}  # only `a` has 4 bits
    before = made(spread, "mse,weights-mse", **options)
    after = made(spread, "mse,weights-mse,zero-point", **options)

    assert set(after.recipe.channel_shifts) == {"a"}
    assert quality(spread, after) > quality(spread, before) + 6

    model = passes.prepare(io.from_proto(spread, "test")).model
    moved = with_channels(model, after.recipe)
    feeds = {"x": images(8, 2)}
    expected, found = (ort.session(m).run(feeds)["y"] for m in (model, moved))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    path = tmp_path / "net.onnx"
    after.save(path)
    assert lint(io.load(path)).float_nodes == ()
    assert verify(path, [feeds]).bit_exact


def test_the_same_data_give_the_same_recipe(spread: onnx.ModelProto) -> None:
    first, second = (made(spread, "mse,weights-mse,zero-point") for _ in range(2))

    assert first.recipe.to_json() == second.recipe.to_json()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_kept_that_does_not_help(seed: int) -> None:
    net = proto_from_text(PLAIN, np.random.default_rng(seed), WEIGHTS)
    before = made(net, "mse,weights-mse")
    result = made(net, "mse,weights-mse,zero-point")

    numbers = next(s.numbers for s in result.recipe.steps if s.method == "zero-point")
    moved = numbers["shifted"] + numbers["windows"]
    assert (numbers["tried_db"] > numbers["tried_db_before"]) == (moved > 0)
    unmoved = result.recipe.tensors["br"].params
    assert unmoved.zero_point == before.recipe.tensors["br"].params.zero_point == 0


def test_codes_that_were_chosen_for_other_inputs_are_not_thrown_away(
    plain: onnx.ModelProto,
) -> None:
    with pytest.raises(SpecError, match=r"zero-point .*as in mse,weights-mse,zero-point,gptq"):
        made(plain, "mse,gptq,zero-point")


@pytest.mark.parametrize("options", ["candidates=0", "candidates=101", "samples=0"])
def test_options_out_of_range_are_refused(plain: onnx.ModelProto, options: str) -> None:
    with pytest.raises(SpecError, match="zero-point: "):
        made(plain, f"zero-point{{{options}}}")


def one_sided(plain: onnx.ModelProto) -> onnx.ModelProto:
    def lifted(w: Array) -> None:
        w[::2] = np.abs(w[::2]) + 0.1

    return changed(plain, "w1", lifted)


@pytest.mark.parametrize("rounding", ["", ",gptq"])
def test_weights_on_one_side_of_0_get_zero_points(
    plain: onnx.ModelProto, rounding: str, tmp_path: Path
) -> None:
    net = one_sided(plain)
    options = {"bits": "w2a8"}
    before = made(net, "mse,weights-mse" + rounding, **options)
    with pytest.warns(UserWarning, match=r"about 1\.5 times slower"):
        after = made(net, "mse,weights-mse,zero-point{weights=true}" + rounding, **options)

    params = after.recipe.tensors["w1"].params
    assert params.zero_point[::2].any()
    assert quality(net, after) > quality(net, before) + 0.5
    if rounding:
        codes = after.recipe.codes["w1"].reshape(12, -1)
        assert (codes >= params.code_lo[:, None]).all()
        assert (codes <= params.code_hi[:, None]).all()
    path = tmp_path / "net.onnx"
    after.save(path)
    assert verify(path, [{"x": images(4, 2)}]).bit_exact


def test_a_zero_point_must_be_confirmed_by_other_inputs() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    row = Row(weights, 0.2, 0, (-4, 3))
    alike = np.eye(6)
    blind = np.zeros((6, 6))

    found = with_zero(row, alike, alike)

    assert found.zero < 0
    assert found.error(alike) < 0.5 * row.error(alike)
    assert with_zero(row, alike, blind) is row


LAYERS = """
net (float[N, 4, 9, 9] x) => (float[N, 6, 5, 5] y, float[N, 4, 9, 9] z) {
  y = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = 2> (x, w, b)
  z = Neg (x)
}
"""


def test_harm_is_what_the_layers_outputs_are_off_by() -> None:
    rng = np.random.default_rng(0)
    model = from_text(LAYERS, rng, {"w": (6, 2, 3, 3), "b": (6,)})
    x = rng.normal(size=(12, 4, 9, 9)).astype(np.float32)
    session = ort.session(model)
    outputs = session.run({"x": x})
    spec = QuantSpec(4, signed=False)
    grids = [QParams.from_range(-3.0, 3.0, spec), QParams.from_range(-1.0, 2.0, spec)]
    readers = Readers.of(model.graph.inputs[0])
    found = Tally(readers, grids)

    halves = ({"x": x[s], "y": outputs["y"][s]} for s in (slice(0, 6), slice(6, 12)))
    tally(halves, [found])

    assert readers.names == ["x", "y"]
    for harm, grid in zip(found.harm(), grids, strict=True):
        rounded = session.run({"x": grid.round_trip(x)})
        moved = outputs["y"].astype(np.float64) - rounded["y"]
        of_layer = moved.var(axis=(0, 2, 3)).sum() / outputs["y"].var(axis=(0, 2, 3)).sum()
        as_it_is = np.square(x - grid.round_trip(x)).mean() / np.square(x).mean()
        assert harm == pytest.approx(of_layer + as_it_is, rel=1e-4)


def test_the_window_there_is_comes_first_among_distinct_ones() -> None:
    x = np.random.default_rng(0).normal(0.5, 1, (100, 100)).astype(np.float32)
    stats = TensorStats.of(x)
    params = Mse().choose(stats, QuantSpec(4, signed=False))

    found = candidates(stats, params, 10)

    assert found[0] is params
    assert len(found) == 11
    assert len({(float(g.scale), int(g.zero_point)) for g in found}) == 11
    assert len({int(g.zero_point) for g in found}) > 3

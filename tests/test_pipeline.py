"""quantize from Python: the same answer by every road, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxptq import CalibrationError, ModelError, Quantized, SpecError, ort, quantize
from onnxptq.calibrate.progress import Silent
from onnxptq.graph import io
from tests.cpus import needs_vnni
from tests.small_models import Array, proto_from_text, sqnr_db

NET = """
net (float[N, 3, H, W] x) => (float[N, 5, 1, 1] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  b = Conv <pads = [1, 1, 1, 1]> (ar, w1, b1)
  s = Add (b, ar)
  sr = Relu (s)
  g = GlobalAveragePool (sr)
  y = Conv (g, w2)
}
"""
WEIGHTS = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "b1": (8,), "w2": (5, 8, 1, 1)}

UNUSABLE = """
unusable (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y, float[N, 3, 6, 6] z) {
  r = Sqrt (x)
  m = Mul (r, r)
  y = Conv <pads = [0, 0, 0, 0]> (m, w0)
  z = Conv (x, w1)
}
"""

ELEMENTWISE = """
elementwise (float[N, 4] x) => (float[N, 4] y) {
  e = Exp (x)
  y = Sqrt (e)
}
"""


class Reader:
    """What onnxruntime calls a CalibrationDataReader, without rewind."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


class Counting(Silent):
    """Remembers how many samples were fed to the model."""

    def __init__(self) -> None:
        self.fed = 0

    def advance(self, steps: int = 1) -> None:
        self.fed += steps


@pytest.fixture
def net(rng: np.random.Generator) -> onnx.ModelProto:
    return proto_from_text(NET, rng, WEIGHTS)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.normal(size=(12, 3, 8, 8)).astype(np.float32)


def feeds_of(images: Array) -> list[dict[str, Array]]:
    return [{"x": image[None]} for image in images]


def bytes_of(result: Quantized) -> bytes:
    return io.to_bytes(result.model)


def test_a_path_and_a_message_give_the_same_bytes(
    net: onnx.ModelProto, images: Array, tmp_path: Path
):
    path = tmp_path / "net.onnx"
    onnx.save(net, str(path))

    by_path, by_text, by_message = (
        quantize(source, {"x": images}) for source in (path, str(path), net)
    )

    assert bytes_of(by_path) == bytes_of(by_message) == bytes_of(by_text)


def test_the_message_is_not_changed(net: onnx.ModelProto, images: Array):
    before = net.SerializeToString(deterministic=True)

    quantize(net, {"x": images})

    assert net.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_result_stays_close_to_float(bits: str, net: onnx.ModelProto, images: Array):
    result = quantize(net, {"x": images}, bits=bits)

    expected = ort.session(net.SerializeToString()).run({"x": images})["y"]
    found = ort.session(result.model).run({"x": images})["y"]
    assert sqnr_db(expected, found) > {"w8a8": 30, "w4a4": 8}[bits]
    assert result.report.float_nodes == ()


@pytest.mark.parametrize("method", ["minmax", "mse,weights-mse", "percentile", "entropy"])
def test_the_same_seed_and_data_give_the_same_bytes(
    method: str, net: onnx.ModelProto, images: Array
):
    first = quantize(net, {"x": images}, bits="w4a4", method=method, seed=3)
    second = quantize(net, {"x": images}, bits="w4a4", method=method, seed=3)

    assert bytes_of(first) == bytes_of(second)
    assert first.recipe.to_json() == second.recipe.to_json()


@needs_vnni
def test_weight_zero_points_on_request_stay_fused(net: onnx.ModelProto, images: Array):
    with pytest.warns(UserWarning, match=r"about \S+ times slower"):
        result = quantize(net, {"x": images}, method="mse,weights-asymmetric")

    assert result.report.float_nodes == ()
    zero_points = [tensor.params.zero_point for tensor in result.recipe.weights()]
    assert all(zero_point.any() for zero_point in zero_points)
    expected = ort.session(net.SerializeToString()).run({"x": images})["y"]
    found = ort.session(result.model).run({"x": images})["y"]
    assert sqnr_db(expected, found) > 30


@pytest.mark.parametrize("option", [{"batch_size": 1}, {"batch_size": 5}, {"jobs": 1}, {"jobs": 4}])
def test_batches_and_threads_do_not_change_the_bytes(
    option: dict[str, Any], net: onnx.ModelProto, images: Array
):
    usual = quantize(net, {"x": images}, bits="w4a4")

    assert bytes_of(quantize(net, {"x": images}, bits="w4a4", **option)) == bytes_of(usual)


def test_every_form_of_data_gives_the_same_bytes(
    net: onnx.ModelProto, images: Array, tmp_path: Path
):
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", x=images)
    forms: list[object] = [
        images,
        tmp_path / "images.npy",
        str(tmp_path / "images.npz"),
        feeds_of(images),
        (feed for feed in feeds_of(images)),
        Reader(feeds_of(images)),
    ]

    results = [bytes_of(quantize(net, form)) for form in forms]

    assert results == [bytes_of(quantize(net, {"x": images}))] * len(forms)


def test_a_generator_is_read_once(net: onnx.ModelProto, images: Array):
    read: list[int] = []

    def feeds() -> Iterator[dict[str, Array]]:
        for position, feed in enumerate(feeds_of(images)):
            read.append(position)
            yield feed

    result = quantize(net, feeds())

    assert read == list(range(len(images)))
    assert all(row.sqnr_db is not None for row in result.report.layers)


def test_samples_says_how_many_are_used(net: onnx.ModelProto, images: Array):
    some = quantize(net, {"x": images}, samples=4)

    assert bytes_of(some) == bytes_of(quantize(net, {"x": images[:4]}))
    assert bytes_of(some) != bytes_of(quantize(net, {"x": images}))


@pytest.mark.parametrize("bits", ["w8a8", "w3a5"])
def test_a_saved_recipe_gives_the_same_bytes_without_data(
    bits: str, net: onnx.ModelProto, images: Array, tmp_path: Path
):
    path = tmp_path / "net.recipe.json"
    decided = quantize(net, {"x": images}, bits=bits)
    path.write_text(decided.recipe.to_json(), encoding="utf-8")

    repeated = quantize(net, recipe=path)

    assert bytes_of(repeated) == bytes_of(decided)


def test_a_recipe_of_another_model_is_refused(
    net: onnx.ModelProto, images: Array, rng: np.random.Generator, tmp_path: Path
):
    path = tmp_path / "net.recipe.json"
    path.write_text(quantize(net, {"x": images}).recipe.to_json(), encoding="utf-8")

    with pytest.raises(SpecError, match="the recipe was made for another model"):
        quantize(proto_from_text(NET, rng, WEIGHTS), recipe=path)


def test_an_unknown_option_is_refused_with_the_nearest(net: onnx.ModelProto, images: Array):
    with pytest.raises(SpecError, match=r"unknown option of quantize 'bit'.*did you mean bits\?"):
        quantize(net, {"x": images}, bit="w4a4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": "w9a8"}, "2 to 8 bits, not 9"),
        ({"bits": "int8"}, "expected a text like w8a8"),
        ({"method": "min-max"}, r"unknown method 'min-max'.*did you mean minmax\?"),
        ({"method": "mse{q=2}"}, "unknown option of mse 'q'"),
        ({"method": " "}, "expected a method"),
        ({"storage": "zip"}, "it must be packed or int8"),
        ({"target_ort": "new"}, "expected an onnxruntime version"),
        ({"layer_bits": ("w4a4",)}, "expected PATTERN=w4a8"),
        ({"layer_bits": ("conf*=w4",)}, "or value; onnxptq lint shows the names"),
        ({"float_patterns": ("conf*",)}, "matches no node name and no operator type"),
    ],
)
def test_a_malformed_option_is_refused(
    options: dict[str, Any], message: str, net: onnx.ModelProto, images: Array
):
    with pytest.raises(SpecError, match=message):
        quantize(net, {"x": images}, **options)


def test_a_quantized_model_is_refused(net: onnx.ModelProto, images: Array, tmp_path: Path):
    path = tmp_path / "net.int8.onnx"
    quantize(net, {"x": images}).save(path)

    with pytest.raises(ModelError, match=r"net\.int8\.onnx: already quantized \(node '.*' and \d+"):
        quantize(path, {"x": images})


def test_data_are_asked_for_where_they_are_needed(net: onnx.ModelProto):
    with pytest.raises(CalibrationError, match="no calibration data: give --data"):
        quantize(net)


def test_what_the_target_cannot_do_is_noted(net: onnx.ModelProto, images: Array):
    notes = quantize(net, {"x": images}, target_ort="1.20").notes

    assert notes == ("onnxruntime 1.20 is older than 1.23.2, the oldest one tested",)


def test_a_model_with_nothing_to_quantize_needs_no_data(rng: np.random.Generator):
    model = proto_from_text(ELEMENTWISE, rng, {})
    x = rng.normal(size=(3, 4)).astype(np.float32)

    result = quantize(model)

    expected = ort.session(model.SerializeToString()).run({"x": x})["y"]
    np.testing.assert_array_equal(ort.session(result.model).run({"x": x})["y"], expected)
    assert result.report.layers == ()
    assert [(row.op, row.why) for row in result.report.float_nodes] == [
        ("Exp", "onnxruntime has no integer kernel for Exp"),
        ("Sqrt", "onnxruntime has no integer kernel for Sqrt"),
    ]


def test_nodes_around_a_value_that_was_nan_stay_in_float(rng: np.random.Generator):
    model = proto_from_text(UNUSABLE, rng, {"w0": (3, 4, 1, 1), "w1": (3, 4, 1, 1)})
    x = rng.normal(size=(4, 4, 6, 6)).astype(np.float32)

    result = quantize(model, {"x": x})

    assert {row.op: row.why for row in result.report.float_nodes} == {
        "Sqrt": "onnxruntime has no integer kernel for Sqrt",
        "Mul": "value 'm' was NaN during calibration",
        "Conv": "value 'm' was NaN during calibration",
    }
    expected = ort.session(model.SerializeToString()).run({"x": x})
    found = ort.session(result.model).run({"x": x})
    assert sqnr_db(expected["z"], found["z"]) > 30
    np.testing.assert_array_equal(np.isnan(found["y"]), np.isnan(expected["y"]))


def test_nan_in_the_data_is_refused(net: onnx.ModelProto, images: Array):
    images[3, 0, 0, 0] = np.nan

    with pytest.raises(CalibrationError, match="NaN"):
        quantize(net, {"x": images})


def test_statistics_are_used_again(net: onnx.ModelProto, images: Array, tmp_path: Path):
    stats = tmp_path / "net.stats.npz"
    first, second = Counting(), Counting()
    options = {"quality": "quick", "stats": stats}  # "fast" runs the model anew in any case

    measured = quantize(net, {"x": images}, **options, progress=first)
    written = stats.read_bytes()
    repeated = quantize(net, {"x": images}, **options, progress=second)

    assert (first.fed, second.fed) == (len(images), 0)
    assert bytes_of(repeated) == bytes_of(measured)
    assert stats.read_bytes() == written


def test_statistics_of_other_data_are_refused(net: onnx.ModelProto, images: Array, tmp_path: Path):
    stats = tmp_path / "net.stats.npz"
    quantize(net, {"x": images}, stats=stats)

    with pytest.raises(CalibrationError, match="statistics of another data"):
        quantize(net, {"x": 2 * images}, stats=stats)


def test_statistics_that_cannot_be_written_are_refused_before_work(
    net: onnx.ModelProto, images: Array, tmp_path: Path
):
    progress = Counting()

    with pytest.raises(ModelError, match="does not exist"):
        quantize(net, {"x": images}, stats=tmp_path / "none" / "s.npz", progress=progress)

    assert progress.fed == 0


def test_each_layer_has_a_row(net: onnx.ModelProto, images: Array):
    result = quantize(net, {"x": images}, bits="w4a4")

    rows = result.report.layers
    assert [(row.op, row.w_bits, row.a_bits) for row in rows] == [
        ("Conv", 8, 8), ("Conv", 4, 4), ("Add", None, 8), ("GlobalAveragePool", None, 8),
        ("Conv", 8, 8),
    ]  # fmt: skip
    assert len({row.node for row in rows}) == len(rows)
    assert all(row.sqnr_db is not None and 5 < row.sqnr_db < 80 for row in rows)
    assert all(row.cosine is not None and 0.8 < row.cosine <= 1 for row in rows)
    assert {row.weight_bytes for row in rows if row.w_bits == 4} == {8 * 8 * 9 // 2}


def test_without_report_samples_layers_are_not_compared(net: onnx.ModelProto, images: Array):
    result = quantize(net, {"x": images}, report_samples=0)

    assert [row.sqnr_db for row in result.report.layers] == [None] * 5


def test_the_report_counts_file_bytes(net: onnx.ModelProto, images: Array, tmp_path: Path):
    source, path = tmp_path / "net.onnx", tmp_path / "net.int8.onnx"
    onnx.save(net, str(source))

    result = quantize(source, {"x": images}, bits="w4a8", keep_first_last=False)
    result.save(path)

    assert result.report.bytes_quantized == path.stat().st_size
    # onnx_ir writes the types of initializers too, about 20 bytes each.
    assert result.report.bytes_float == pytest.approx(source.stat().st_size, rel=0.05)
    assert result.report.average_weight_bits == 4.0
    assert result.report.seconds > 0


def test_dimensions_that_were_free_stay_free(
    net: onnx.ModelProto, images: Array, rng: np.random.Generator
):
    result = quantize(net, {"x": images})

    before, after = ort.session(net.SerializeToString()), ort.session(result.model)
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert before.inputs[0].shape == ("N", 3, "H", "W")
    for shape in ((1, 3, 8, 8), (5, 3, 16, 11)):
        x = rng.normal(size=shape).astype(np.float32)
        assert sqnr_db(before.run({"x": x})["y"], after.run({"x": x})["y"]) > 20

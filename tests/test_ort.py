"""The door to onnxruntime: what models are fed with, and models too large for one message."""

import gc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.graph import io, text
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.runtime.lint import lint
from tests.small_models import feeds_for, from_text, placed

TWO_LAYERS = """two (float[N, 64] x) => (float[N, 64] y) {
  a = MatMul (x, v)
  r = Relu (a)
  y = MatMul (r, w)
}"""


@pytest.fixture
def layers(rng: np.random.Generator) -> ir.Model:
    return from_text(TWO_LAYERS, rng, {"v": (64, 64), "w": (64, 64)})


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "INLINE_LIMIT_BYTES", 0)


def no_file(*_: object) -> None:
    raise AssertionError("a file was written")


def test_inputs_are_those_of_the_session() -> None:
    model = text.from_text("""<ir_version: 10, opset_import: ["" : 21]>
      many (float[N, 3, 4] a, bool b, int64[?] c, float16[2] d) => (float[N, 3, 4] y)
      { y = Identity (a) }""")

    assert ort.inputs(model) == ort.session(model).inputs


def test_an_input_of_unknown_rank_has_no_shape() -> None:
    model = text.from_text("""<ir_version: 10, opset_import: ["" : 21]>
      free (float[] a, seq(float) b) => (float[] y) { y = Identity (a) }""")
    model.graph.inputs[0].shape = None

    numbers, several = ort.inputs(model)

    assert (numbers.dtype, numbers.shape) == (np.float32, None)
    assert several.dtype is None


@pytest.mark.usefixtures("everything_is_large")
def test_a_free_dimension_written_as_minus_one_is_free(layers: ir.Model) -> None:
    layers.graph.inputs[0].shape = ir.Shape([-1, 64])

    (port,) = ort.inputs(layers)

    assert port.shape == (None, 64)


def test_a_large_model_shares_its_weights_with_the_session(
    layers: ir.Model, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = feeds_for(layers, rng)
    expected = ort.session(io.to_bytes(layers)).run(feeds)
    monkeypatch.setattr(io, "save", no_file)

    session = ort.session(layers)
    del layers
    gc.collect()

    np.testing.assert_array_equal(session.run(feeds)["y"], expected["y"])


@pytest.mark.usefixtures("everything_is_large")
def test_a_large_model_with_packed_weights_goes_through_a_file(
    layers: ir.Model, rng: np.random.Generator
) -> None:
    feeds = feeds_for(layers, rng)
    recipe = placed(layers, feeds, bits="w4a8", keep_first_last=False)
    quantized = insert_qdq(layers, recipe, Storage("packed", int4=True))
    expected = ort.session(io.to_bytes(quantized)).run(feeds)

    found = ort.session(quantized).run(feeds)

    np.testing.assert_array_equal(found["y"], expected["y"])


@pytest.mark.usefixtures("everything_is_large")
def test_the_graph_that_runs_is_told_of_a_large_model_too(
    layers: ir.Model, rng: np.random.Generator, tmp_path: Path
) -> None:
    recipe = placed(layers, feeds_for(layers, rng))
    quantized = insert_qdq(layers, recipe, Storage("int8"))
    io.save(quantized, tmp_path / "q.onnx")

    assert lint(quantized) == lint(tmp_path / "q.onnx")
    assert lint(quantized).float_nodes == ()

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.calibrate.data import open_data
from onnxptq.calibrate.progress import Silent
from onnxptq.errors import CalibrationError, ModelError
from onnxptq.graph import io
from onnxptq.graph.text import from_text
from onnxptq.report.evaluate import Pair, evaluate, evaluate_file
from onnxptq.report.inputs import PREPROCESS_KEY, DataOptions, open_for
from onnxptq.report.rows import EQUAL_DB


def network(body: str = "y = Identity (x)", inputs: str = "float[N, 4] x") -> ir.Model:
    outputs = "float[N, 4] y" if "z" not in body else "float[N, 4] y, float[N, 4] z"
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    return from_text(f"{head}\nnet ({inputs}) => ({outputs}) {{ {body} }}")


class Counting(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps = 0
        self.finished = False

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def finish(self) -> None:
        self.finished = True


def pair(model: ir.Model, reference: ir.Model | None = None) -> Pair:
    return Pair(ort.session(model), None if reference is None else ort.session(reference))


def test_labels_go_with_their_samples_over_batches(rng: np.random.Generator) -> None:
    x = rng.normal(size=(7, 4)).astype(np.float32)
    labels = x.argmax(1)
    labels[5] = (labels[5] + 1) % 4
    networks = pair(network())
    data = open_for(network(), networks.model.inputs, {"x": x, "y": labels}, DataOptions())

    result = evaluate(networks, data, 3, Silent())

    assert (result.n, result.top1, result.top5) == (7, 6 / 7, 1.0)


def test_a_model_agrees_with_itself(rng: np.random.Generator) -> None:
    networks = pair(network(), network())
    data = open_for(network(), networks.model.inputs, {"x": rng.normal(size=(5, 4))}, DataOptions())

    result = evaluate(networks, data, 2, Silent())

    assert (result.agreement, result.sqnr_db, result.kl) == (1.0, EQUAL_DB, 0.0)
    assert (result.top1, result.top5) == (None, None)


def test_progress_counts_samples_and_ends(rng: np.random.Generator) -> None:
    networks, progress = pair(network()), Counting()
    data = open_for(network(), networks.model.inputs, {"x": rng.normal(size=(5, 4))}, DataOptions())

    evaluate(networks, data, 2, progress)

    assert (progress.steps, progress.finished) == (5, True)


def test_samples_limit_the_data(tmp_path: Path, rng: np.random.Generator) -> None:
    io.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(9, 4)).astype(np.float32))

    result = evaluate_file(
        tmp_path / "m.onnx", str(tmp_path / "d.npz"), None, DataOptions(samples=4), Silent()
    )

    assert result.n == 4


def test_no_sample_is_refused() -> None:
    networks = pair(network())

    with pytest.raises(CalibrationError, match="sample"):
        evaluate(networks, open_data([], []), 2, Silent())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (network(inputs="float[N, 4] x, float[N, 4] u"), r"inputs .*'u'.*, the model .*'x': "),
        (network(inputs="float[N, 5] x"), r"'x': \['\?', 5\].*, the model .*'x': \['\?', 4\]"),
        (network("y = Identity (x) z = Identity (x)"), "has 2 outputs, the model 1"),
    ],
)
def test_a_reference_of_another_network_is_refused(reference: ir.Model, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pair(network(), reference)


def test_outputs_of_other_shapes_are_refused(rng: np.random.Generator) -> None:
    networks = pair(network(), network("y = ReduceMax <keepdims = 1> (x)"))

    with pytest.raises(ModelError, match="output 'y' has shape"):
        networks.run({"x": rng.normal(size=(2, 4)).astype(np.float32)})


def test_the_preprocessing_of_the_model_is_used(rng: np.random.Generator) -> None:
    pixels = network(inputs="float[N, 3, 4, 4] x")
    pixels.metadata_props[PREPROCESS_KEY] = "mean=0,std=255,layout=NCHW"
    images = rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    inputs = [ort.Port("x", np.dtype(np.float32), ("N", 3, 4, 4))]

    data = open_for(pixels, inputs, {"x": images}, DataOptions())

    (batch,) = data.batches(2)
    expected = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert np.allclose(batch["x"], expected, atol=1e-6)


def test_an_input_of_text_is_refused() -> None:
    with pytest.raises(ModelError, match="'words'"):
        open_for(network(), [ort.Port("words", None, ("N",))], {}, DataOptions())

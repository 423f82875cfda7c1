from pathlib import Path

import numpy as np
import pytest

from onnxptq import demo_data, pipeline
from onnxptq.calibrate.progress import Silent
from onnxptq.errors import ModelError
from onnxptq.report.inputs import DataOptions
from onnxptq.report.pages import file_page, measure_file, quantized_page
from onnxptq.report.rows import EQUAL_DB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized digits network `q.onnx` and its data `d.npz`; made once, never changed."""
    folder = tmp_path_factory.mktemp("pages")
    images = demo_data.load()[0][:16]
    np.savez(folder / "d.npz", input=images)
    result = pipeline.quantize(demo_data.model_path(), {"input": images}, bits="w4a8")
    result.save(folder / "q.onnx")
    (folder / "quantize.html").write_text(quantized_page(folder / "q.onnx", result.report))
    return folder


def test_layers_of_a_file_are_measured_against_the_float_model(folder: Path) -> None:
    measured = measure_file(
        folder / "q.onnx",
        str(folder / "d.npz"),
        demo_data.model_path(),
        DataOptions(samples=8),
        Silent(),
    )

    assert [row.op for row in measured.layers if row.w_bits][:3] == ["Conv", "Conv", "Conv"]
    assert all(row.sqnr_db is not None and row.sqnr_db > 5.0 for row in measured.layers)
    assert measured.bytes_quantized == (folder / "q.onnx").stat().st_size


def test_without_a_reference_only_activations_are_measured(folder: Path) -> None:
    options = DataOptions(samples=8)
    source = str(folder / "d.npz")

    own = measure_file(folder / "q.onnx", source, None, options, Silent())
    full = measure_file(folder / "q.onnx", source, demo_data.model_path(), options, Silent())

    last_own, last_full = own.layers[-1].sqnr_db, full.layers[-1].sqnr_db
    assert last_own is not None
    assert last_full is not None
    assert last_full < last_own < EQUAL_DB


def test_the_page_names_what_was_compared(folder: Path) -> None:
    options, source = DataOptions(samples=2), str(folder / "d.npz")
    measured = measure_file(folder / "q.onnx", source, None, options, Silent())

    page = file_page(folder / "q.onnx", None, measured)

    assert "against its own weights in float" in page
    assert "stem.0" in page


def test_the_page_of_quantize_has_its_figures(folder: Path) -> None:
    page = (folder / "quantize.html").read_text()

    assert "Average weight bits" in page
    assert "4-bit weights" in page


def test_a_float_file_has_no_report(folder: Path) -> None:
    with pytest.raises(ModelError, match="nothing is quantized"):
        measure_file(demo_data.model_path(), str(folder / "d.npz"), None, DataOptions(), Silent())


def test_the_layers_of_a_file_are_timed_in_the_executor(folder: Path) -> None:
    options, source = DataOptions(samples=2), str(folder / "d.npz")

    measured = measure_file(folder / "q.onnx", source, None, options, Silent())

    assert measured.speed is not None
    assert measured.speed.layers[0].shape == "1x1x8x8 -> 1x1x8x8"
    page = file_page(folder / "q.onnx", None, measured)
    assert "In the executor, 1 thread" in page
    assert page.count('<td class="name tight">') == len(measured.speed.layers)
    assert "1x8x8x1 * 32x1x3x3 -&gt; 1x8x8x32" in page

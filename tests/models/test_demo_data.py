import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxptq import demo_data
from onnxptq.errors import CalibrationError

OPERATORS = {"Conv", "BatchNormalization", "Relu", "Clip", "Add", "MaxPool", "GlobalAveragePool"}


@pytest.fixture(autouse=True)
def sklearn() -> None:
    pytest.importorskip("sklearn")


def test_images_are_ready_to_feed() -> None:
    x_calib, x_test, y_test = demo_data.load()

    assert (x_calib.shape, x_test.shape, y_test.shape) == ((1352, 1, 8, 8), (445, 1, 8, 8), (445,))
    assert (x_calib.dtype, y_test.dtype) == (np.float32, np.int64)
    assert (x_calib.min(), x_calib.max()) == (0.0, 1.0)


def test_held_out_digits_are_a_quarter_of_each_digit() -> None:
    _, _, y_test = demo_data.load()
    _, y_train = demo_data.load_train()

    held, kept = np.bincount(y_test), np.bincount(y_train)

    assert (held == (held + kept) // 4).all()


def test_no_held_out_image_is_trained_on() -> None:
    x_calib, x_test, _ = demo_data.load()

    assert not {image.tobytes() for image in x_test} & {image.tobytes() for image in x_calib}


def test_the_model_reads_at_least_985_in_1000_held_out_digits() -> None:
    _, x_test, y_test = demo_data.load()
    session = onnxruntime.InferenceSession(demo_data.model_path())

    logits = np.asarray(session.run([demo_data.OUTPUT_NAME], {demo_data.INPUT_NAME: x_test})[0])

    top1 = round(float((logits.argmax(1) == y_test).mean()) * 100, 2)
    zoo = tomllib.loads(demo_data.model_path().with_name("zoo.toml").read_text())
    assert top1 == zoo["digits"]["accuracy"]["top1"]
    assert top1 >= 98.5


def test_the_model_has_one_of_everything() -> None:
    model = onnx.load(demo_data.model_path())

    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    attributes = [{a.name: a for a in node.attribute} for node in convs]
    assert {node.op_type for node in model.graph.node} >= OPERATORS | {"Gemm"}
    assert {(tuple(a["kernel_shape"].ints), a["group"].i > 1) for a in attributes} == {
        ((3, 3), False),
        ((1, 1), False),
        ((3, 3), True),
    }
    assert model.opset_import[0].version == 21
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert all(tensor.HasField("raw_data") for tensor in model.graph.initializer)


def test_a_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(CalibrationError, match=r"scikit-learn.*pip install 'onnxptq\[demo\]'"):
        demo_data.load()


def test_the_demo_needs_neither_torch_nor_scikit_learn_to_find_its_model() -> None:
    code = (
        "import sys; from onnxptq import demo_data; demo_data.model_path(); "
        "print(sorted({'torch', 'sklearn', 'onnx'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
    assert Path(demo_data.__file__).name == "__init__.py"

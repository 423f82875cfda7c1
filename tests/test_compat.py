"""quantize_static, called as onnxruntime's own examples call it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
)
from onnxruntime.quantization import quantize_static as onnxruntime_quantize_static

from onnxptq import compat, demo_data, ort
from onnxptq.compat import quantize_static
from onnxptq.errors import CalibrationError, ModelError, OnnxptqError, SpecError
from onnxptq.runtime.lint import lint

Run = Callable[..., dict[str, Any]]


class Reader(CalibrationDataReader):
    """As onnxruntime's examples write it."""

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        self.feeds = iter([{"input": image[None]} for image in images])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def integer_kernels(path: Path) -> list[str]:
    """Operators of the graph that onnxruntime runs which compute on codes."""
    operators = [node.op_type for node in ort.optimized(path).graph.node]
    return [name for name in operators if name.startswith(("QLinear", "QGemm"))]


@pytest.fixture
def reader(rng: np.random.Generator) -> Reader:
    return Reader(rng.uniform(0, 1, (4, 1, 8, 8)).astype(np.float32))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Calls quantize_static and returns what reached the pipeline, without quantizing."""

    def run(**arguments: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        class Result:
            def save(self, path: Path) -> None:
                seen["path"] = path

        def quantize(model: object, data: object, **options: Any) -> Result:
            seen.update(options, model=model, data=data)
            return Result()

        monkeypatch.setattr(compat.pipeline, "quantize", quantize)
        arguments = {"calibration_data_reader": object()} | arguments
        quantize_static(demo_data.model_path(), tmp_path / "q.onnx", **arguments)
        return seen

    return run


def test_the_parameters_are_those_of_onnxruntime() -> None:
    ours = list(inspect.signature(quantize_static).parameters)
    theirs = list(inspect.signature(onnxruntime_quantize_static).parameters)

    # Older versions of onnxruntime lack the newest parameter at the end.
    assert ours[: len(theirs)] == theirs


def test_a_typical_call_writes_an_integer_model(reader: Reader, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"

    quantize_static(
        str(demo_data.model_path()),
        str(output),
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )

    assert lint(output).fused
    assert ort.session(output).outputs[0].name == demo_data.OUTPUT_NAME


def test_a_model_in_memory_is_accepted(reader: Reader, tmp_path: Path) -> None:
    model = onnx.load(str(demo_data.model_path()))

    quantize_static(model, tmp_path / "q.onnx", reader)

    assert (tmp_path / "q.onnx").exists()


def test_only_the_named_nodes_are_quantized(reader: Reader, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"

    quantize_static(demo_data.model_path(), output, reader, nodes_to_quantize=["stem.0"])

    assert integer_kernels(output) == ["QLinearConv"]


def test_only_the_named_operators_are_quantized(reader: Reader, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"

    quantize_static(demo_data.model_path(), output, reader, op_types_to_quantize=["Gemm"])

    assert integer_kernels(output) == ["QGemm"]


def test_names_with_brackets_are_not_patterns(call: Run) -> None:
    assert call(nodes_to_exclude=["a[0]*"])["float_patterns"] == ("a[[]0][*]",)


def test_a_folded_node_needs_no_exclusion(call: Run) -> None:
    model = onnx.load(str(demo_data.model_path()))
    folded = next(node.name for node in model.graph.node if node.op_type == "BatchNormalization")

    assert call(nodes_to_exclude=[folded])["float_patterns"] == ()


@pytest.mark.parametrize(
    ("arguments", "bits"),
    [
        ({}, "w8a8"),
        ({"reduce_range": True}, "w7a8"),
        ({"weight_type": QuantType.QInt4}, "w4a8"),
        ({"weight_type": "QInt4", "activation_type": "QUInt4"}, "w4a4"),
        ({"weight_type": "QInt4", "reduce_range": True}, "w4a8"),
    ],
)
def test_types_become_bits(arguments: dict[str, Any], bits: str, call: Run) -> None:
    assert call(**arguments)["bits"] == bits


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        ({}, "minmax"),
        ({"calibrate_method": CalibrationMethod.Entropy}, "entropy"),
        ({"calibrate_method": CalibrationMethod.Percentile}, "percentile"),
        (
            {"calibrate_method": "Percentile", "extra_options": {"CalibPercentile": 99.9}},
            "percentile{percent=99.9}",
        ),
    ],
)
def test_calibration_methods_become_methods(
    arguments: dict[str, Any], method: str, call: Run
) -> None:
    assert call(**arguments)["method"] == method


def test_granularity_is_passed_on(call: Run) -> None:
    assert [call(per_channel=value)["per_channel"] for value in (True, False)] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"quant_format": QuantFormat.QOperator}, SpecError, "QOperator is not supported"),
        ({"quant_format": "QDQQ"}, SpecError, "unknown quant_format 'QDQQ'.*did you mean QDQ"),
        ({"activation_type": QuantType.QInt8}, SpecError, "QInt8 is not supported.*Relu"),
        ({"activation_type": QuantType.QInt16}, SpecError, "no 16-bit integer kernels"),
        ({"weight_type": QuantType.QUInt8}, SpecError, "QUInt8 is not supported.*1.6 times"),
        ({"weight_type": "int8"}, SpecError, "unknown weight_type 'int8'"),
        ({"calibrate_method": CalibrationMethod.Distribution}, SpecError, "8-bit floats"),
        ({"calibration_providers": ["CUDAExecutionProvider"]}, SpecError, "CPUExecutionProvider"),
        ({"calibration_cache_path": "c.json"}, SpecError, "calibration_cache_path.*stats=FILE"),
        ({"calibration_data_reader": None}, CalibrationError, "calibration_data_reader is None"),
        (
            {"extra_options": {"ActivationSymetric": True}},
            SpecError,
            "unknown extra option 'ActivationSymetric'.*did you mean ActivationSymmetric",
        ),
        ({"nodes_to_quantize": ["stem"]}, SpecError, "unknown node in nodes_to_quantize 'stem'"),
        (
            {"extra_options": {"SmoothQuant": True}},
            SpecError,
            "SmoothQuant=True is not supported",
        ),
        (
            {"calibrate_method": "Percentile", "extra_options": {"CalibPercentile": "most"}},
            SpecError,
            "CalibPercentile='most' is not a number",
        ),
    ],
)
def test_what_would_be_done_otherwise_is_refused(
    arguments: dict[str, Any], error: type[OnnxptqError], message: str, call: Run
) -> None:
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"WeightSymmetric": True, "ActivationSymmetric": False},
        {"CalibMaxIntermediateOutputs": 10},
        {"TensorQuantOverrides": {}, "MinimumRealRange": None},
    ],
)
def test_options_that_change_nothing_are_accepted(options: dict[str, Any], call: Run) -> None:
    assert call(extra_options=options)["method"] == "minmax"


def test_an_output_in_no_folder_is_refused_before_work(reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        quantize_static(demo_data.model_path(), tmp_path / "nowhere" / "q.onnx", reader)

    assert reader.get_next() is not None

"""Files that onnxruntime's own quantizer writes: the executor runs them bit for bit."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxptq import demo_data
from onnxptq.runtime.shares import IslandShare
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.small_models import proto_from_text

NET = """
net (float[n, 3, 16, 16] x) => (float[n, 10] y)
<int64[1] flat = {1}, float six = {6.0}, float zero = {0.0}> {
    stem = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w_stem, b_stem)
    stem_relu = Relu(stem)
    inner = Conv <pads = [1, 1, 1, 1]> (stem_relu, w_inner, b_inner)
    inner_relu = Relu(inner)
    outer = Conv <pads = [1, 1, 1, 1]> (inner_relu, w_outer)
    sum = Add(outer, stem_relu)
    sum_relu = Relu(sum)
    depth = Conv <group = 16, pads = [1, 1, 1, 1]> (sum_relu, w_depth, b_depth)
    depth_six = Clip(depth, zero, six)
    small = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (depth_six)
    mean = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0]> (sum_relu)
    both = Concat <axis = 1> (small, mean)
    squeezed = GlobalAveragePool(both)
    gate = Conv(squeezed, w_gate, b_gate)
    gate_open = Sigmoid(gate)
    gated = Mul(both, gate_open)
    pooled = GlobalAveragePool(gated)
    row = Flatten(pooled)
    y = Gemm <transB = 1> (row, w_head, b_head)
}
"""
WEIGHTS = {
    "w_stem": (16, 3, 3, 3),
    "b_stem": (16,),
    "w_inner": (16, 16, 3, 3),
    "b_inner": (16,),
    "w_outer": (16, 16, 3, 3),
    "w_depth": (16, 1, 3, 3),
    "b_depth": (16,),
    "w_gate": (32, 32, 1, 1),
    "b_gate": (32,),
    "w_head": (10, 32),
    "b_head": (10,),
}


class Reader(CalibrationDataReader):
    """Feeds, one after the other."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any]:
        found: Any = next(self._feeds, None)
        return found


@dataclass(frozen=True)
class Written:
    """How onnxruntime's quantizer is called."""

    network: str
    style: str
    per_channel: bool
    activations: str
    weights: str

    def __str__(self) -> str:
        grain = "channel" if self.per_channel else "tensor"
        return f"{self.network}-{self.style}-{grain}-{self.activations}-{self.weights}"

    @property
    def circumstances(self) -> tuple[str, str, str]:
        """What decides on which nodes onnxruntime runs in float."""
        return self.network, self.style, self.activations


TYPES = (("QUInt8", "QInt8"), ("QUInt8", "QUInt8"), ("QInt8", "QInt8"))
BRANCHES = {"Add", "Conv"}
NORMED = {"Relu", "GlobalAveragePool", "Flatten"}
IN_FLOAT = {
    # A tensor of int8 codes that two nodes read is not fused with either.
    ("net", "QDQ", "QInt8"): {*BRANCHES, "AveragePool", "Concat", "GlobalAveragePool", "Mul"},
    ("digits-folded", "QDQ", "QInt8"): {*BRANCHES, "MaxPool"},
    ("digits", "QDQ", "QInt8"): {*BRANCHES, "MaxPool", "BatchNormalization"},
    # Batch norms that nobody folded; the last one is never quantized, nor what follows on it.
    ("digits", "QDQ", "QUInt8"): {"BatchNormalization"},
    ("digits", "QOperator", "QUInt8"): {*NORMED, "BatchNormalization"},
    ("digits", "QOperator", "QInt8"): {*NORMED, "BatchNormalization"},
}
"""Which operators onnxruntime itself runs in float, by network, format and type of activations;
none elsewhere. Relu and Clip between codes, which it runs in float too, are tables here."""

WRITTEN = [
    Written(network, style, per_channel, *types)
    for network, style, per_channel, types in itertools.product(
        ("net", "digits", "digits-folded"), ("QDQ", "QOperator"), (True, False), TYPES
    )
]


@dataclass(frozen=True)
class Network:
    """A float model, and what it is calibrated with."""

    path: Path
    feeds: list[dict[str, Any]]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Network]:
    folder = tmp_path_factory.mktemp("float")
    rng = np.random.default_rng(0)
    onnx.save(proto_from_text(NET, rng, WEIGHTS), folder / "net.onnx")
    noise = [{"x": rng.normal(size=(4, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    images = [{"input": rng.random((16, 1, 8, 8), np.float32)} for _ in range(4)]
    quant_pre_process(demo_data.model_path(), folder / "folded.onnx")
    return {
        "net": Network(folder / "net.onnx", noise),
        "digits": Network(demo_data.model_path(), images),
        "digits-folded": Network(folder / "folded.onnx", images),
    }


@needs_vnni
@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_the_executor_equals_onnxruntime(
    written: Written, networks: Mapping[str, Network], tmp_path: Path
):
    network, path = networks[written.network], tmp_path / "quantized.onnx"
    logging.disable(logging.WARNING)  # its advice to pre-process
    quantize_static(
        network.path,
        path,
        Reader(network.feeds),
        quant_format=QuantFormat[written.style],
        per_channel=written.per_channel,
        activation_type=QuantType[written.activations],
        weight_type=QuantType[written.weights],
    )
    logging.disable(logging.NOTSET)

    found = verify(path)

    assert found.first_difference is None
    assert found.holds
    assert in_float(found.islands) == IN_FLOAT.get(written.circumstances, set())


def in_float(islands: Iterable[IslandShare]) -> set[str]:
    """Operators of islands, those aside that only move or turn codes into real numbers and back."""
    return {op for island in islands for op in island.op_types} - {
        "QuantizeLinear",
        "DequantizeLinear",
        "ReorderInput",
        "ReorderOutput",
    }

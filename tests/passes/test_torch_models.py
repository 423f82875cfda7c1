"""Models as torch's exporter writes them: BatchNorm, ReLU6, Hardswish, padding, flattening."""

import importlib
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxptq import passes
from onnxptq.graph import io


def torch_module() -> Any:
    """Imported by the tests that need it: 2 s that collecting tests is spared."""
    return importlib.import_module("torch")


# Sums of a few hundred float32 terms of order 1, in another order.
ATOL = 1e-5


def network() -> Any:
    torch = torch_module()
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
            )
            self.depthwise = nn.Sequential(
                nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.BatchNorm2d(8), nn.Hardswish()
            )
            self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4))
            self.head = nn.Sequential(
                nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 7)
            )

        def forward(self, x: Any) -> Any:
            x = nn.functional.pad(self.stem(x), (0, 1, 0, 1))
            x = self.up(self.depthwise(x)).clamp(-1, 2).mean([2, 3])
            return self.head(x.view(x.size(0), -1))

    torch.manual_seed(0)
    model = Network().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def export(path: Path, opset: int, dynamo: bool) -> None:
    torch = torch_module()
    x = torch.zeros(2, 3, 16, 16)
    if dynamo:
        shapes = ({0: torch.export.Dim("N")},)
        torch.onnx.export(
            network(), (x,), path, dynamo=True, opset_version=opset, dynamic_shapes=shapes
        )
        return
    torch.onnx.export(
        network(),
        (x,),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        dynamic_axes={"x": {0: "N"}},
        do_constant_folding=False,
    )


def run(model: bytes, images: Any) -> Any:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("opset", "dynamo"),
    [
        (12, False),
        (17, False),
        pytest.param(18, True, marks=pytest.mark.slow),
    ],
)
def test_an_exported_network_comes_out_clean(tmp_path: Path, opset: int, dynamo: bool) -> None:
    if dynamo and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("torch's new exporter needs onnxscript")
    path = tmp_path / "network.onnx"
    export(path, opset, dynamo)

    prepared = passes.prepare(io.load(path))

    found = Counter(node.op_type for node in prepared.model.graph)
    activation = {"HardSigmoid", "Mul"}
    allowed = {"Conv", "Clip", "ConvTranspose", "GlobalAveragePool", "Flatten", "Gemm"}
    assert set(found) == allowed | activation
    assert prepared.notes == ()
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    expected, got = run(path.read_bytes(), images), run(io.to_bytes(prepared.model), images)
    np.testing.assert_allclose(got, expected, 0, ATOL)

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from onnxptq.errors import ModelError, SpecError
from onnxptq.export.torch_onnx import export, export_module

pytestmark = pytest.mark.torch

ROUNDING = 1e-5  # float32 sums of a few dozen terms around 1, in two orders


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.pad(x, (0, 1, 0, 1))[:, :, :-1, :-1] + self.bn(self.conv(x))
        return self.fc(self.drop(x).mean((2, 3)))


class Function(nn.Module):
    """A module of one function, for what a forward can do wrong."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


def load(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_nodes_and_initializers_carry_the_names_of_modules_and_parameters(tmp_path: Path) -> None:
    module = Residual()

    exported = export_module(module, tmp_path / "m.onnx", (1, 3, 8, 8))

    model = load(exported.path)
    assert [(node.name, node.op_type) for node in model.graph.node] == [
        ("stem.0", "Conv"),
        ("stem.1", "BatchNormalization"),
        ("stem.2", "Clip"),
        ("Pad", "Pad"),
        ("Slice", "Slice"),
        ("Slice_1", "Slice"),
        ("conv", "Conv"),
        ("bn", "BatchNormalization"),
        ("Add", "Add"),
        ("ReduceMean", "ReduceMean"),
        ("fc", "Gemm"),
    ]
    assert exported.nodes == 11
    state = {k: v.numpy() for k, v in module.state_dict().items() if "num_batches" not in k}
    stored = arrays(model)
    assert state.keys() == {name for name in stored if "input" not in name}
    for name, value in state.items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)


def test_file_is_opset_21_with_dynamic_batch_and_raw_weights(tmp_path: Path) -> None:
    export_module(Residual(), tmp_path / "m.onnx", (1, 3, 8, 8))

    model = load(tmp_path / "m.onnx")
    ports = [*model.graph.input, *model.graph.output]
    dims = [[d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim] for p in ports]
    assert [p.name for p in ports] == ["input", "output"]
    assert dims == [["N", 3, 8, 8], ["N", 2]]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert model.ir_version == 10
    assert all(t.HasField("raw_data") for t in model.graph.initializer)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_equal_torch_at_every_batch_size(tmp_path: Path, batch: int) -> None:
    module = Residual()
    exported = export_module(module, tmp_path / "m.onnx", (1, 3, 8, 8))
    x = torch.rand(batch, 3, 8, 8)

    found = onnxruntime.InferenceSession(exported.path).run(None, {"input": x.numpy()})[0]

    difference = np.abs(np.asarray(found) - module(x).detach().numpy()).max()
    assert difference <= ROUNDING
    assert exported.max_abs_diff <= ROUNDING


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    module = Residual()

    for name in "ab":
        export_module(module, tmp_path / name, (1, 3, 8, 8))

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_older_opsets_can_be_asked_for(tmp_path: Path, opset: int) -> None:
    export_module(Residual(), tmp_path / "m.onnx", (1, 3, 8, 8), opset)

    assert [o.version for o in load(tmp_path / "m.onnx").opset_import] == [opset]


def test_tied_parameters_are_stored_once_and_equal_ones_apart(tmp_path: Path) -> None:
    tied, equal = nn.Linear(4, 4), nn.Linear(4, 4)
    equal.load_state_dict(tied.state_dict())

    export_module(nn.Sequential(tied, nn.ReLU(), tied, equal), tmp_path / "m.onnx", (1, 4))

    model = load(tmp_path / "m.onnx")
    assert arrays(model).keys() == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert [list(n.input[1:]) for n in model.graph.node if n.op_type == "Gemm"] == [
        ["0.weight", "0.bias"],
        ["0.weight", "0.bias"],
        ["3.weight", "3.bias"],
    ]


def test_arithmetic_on_known_sizes_is_done(tmp_path: Path) -> None:
    """As in networks that compute TensorFlow's padding while they run."""

    kernel = torch.rand(2, 2, 3, 3)

    def padded(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            missing = x.shape[-1] % 2 + 1
            x = F.conv2d(F.pad(x, (0, missing, 0, missing)), kernel, stride=2)
        return x

    export_module(Function(padded), tmp_path / "m.onnx", (1, 2, 9, 9))

    model = load(tmp_path / "m.onnx")
    assert [node.op_type for node in model.graph.node] == ["Pad", "Conv", "Pad", "Conv"]


def test_several_outputs_are_numbered(tmp_path: Path) -> None:
    module = Function(lambda x: (x + 1, [x.sum(0)][0]))

    export_module(module, tmp_path / "m.onnx", (1, 4))

    outputs = load(tmp_path / "m.onnx").graph.output
    assert [o.name for o in outputs] == ["output_0", "output_1"]
    assert [o.type.tensor_type.shape.dim[0].dim_param for o in outputs] == ["N", ""]


def test_a_batch_size_written_into_forward_is_found_and_nothing_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = Function(lambda x: x.reshape(int(x.shape[0]), 2, 2))

    with pytest.raises(ModelError, match=r"fails at batch size 1 .*fix the batch"):
        export_module(module, tmp_path / "m.onnx", (1, 4))

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_branch_on_values_is_found(tmp_path: Path) -> None:
    module = Function(lambda x: x * (2.0 if x.shape[0] == 2 else 3.0))

    with pytest.raises(ModelError, match="forward depends on something that tracing cannot see"):
        export_module(module, tmp_path / "m.onnx", (1, 4))


def test_nan_from_torch_is_no_agreement(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="torch itself gives NaN or infinity"):
        export_module(Function(lambda x: x / 0 * 0), tmp_path / "m.onnx", (1, 4))


def test_an_operator_without_onnx_form_is_a_model_error_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = Function(torch.special.bessel_j0)

    with pytest.raises(ModelError, match=r"torch .* cannot export Function: .*bessel_j0"):
        export_module(module, tmp_path / "m.onnx", (1, 4))

    assert capfd.readouterr() == ("", "")


def test_a_shape_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"Residual does not take an input of 2x1x8x8 \(RuntimeErr"):
        export_module(Residual(), tmp_path / "m.onnx", (1, 1, 8, 8))


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="returns dict, expected a tensor or a tuple or list"):
        export_module(Function(lambda x: {"y": x}), tmp_path / "m.onnx", (1, 4))


@pytest.mark.parametrize("opset", [10, 22])
def test_an_opset_out_of_range_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(SpecError, match=f"opset {opset}: export writes 11 to 21"):
        export_module(Residual(), tmp_path / "m.onnx", (1, 3, 8, 8), opset)


@pytest.mark.parametrize("shape", [(), (1, 0, 8)])
def test_an_empty_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="expected sizes from 1 up, like 1x3x224x224"):
        export_module(Residual(), tmp_path / "m.onnx", shape)


def test_a_folder_that_does_not_exist_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot write .*nowhere.m\.onnx: folder .* does"):
        export_module(Residual(), tmp_path / "nowhere" / "m.onnx", (1, 3, 8, 8))


def test_an_old_file_survives_a_failed_export(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    with pytest.raises(SpecError):
        export_module(Residual(), path, (1, 1, 8, 8))

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_export_builds_loads_and_writes(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    source.write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n")
    weights = nn.Linear(3, 2).state_dict()
    torch.save(weights, tmp_path / "w.pth")

    export(f"{source}:build", tmp_path / "m.onnx", tmp_path / "w.pth", (1, 3))

    stored = arrays(load(tmp_path / "m.onnx"))
    np.testing.assert_array_equal(stored["weight"], weights["weight"].numpy())

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from onnxptq.errors import ModelError
from onnxptq.export.weights import load_weights

pytestmark = pytest.mark.torch


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.ndim else tensor
        for name, tensor in network().state_dict().items()
    }


def assert_loaded(path: Path) -> None:
    module = network()
    load_weights(module, path)
    for name, tensor in state().items():
        assert torch.equal(module.state_dict()[name], tensor), name


STATE = state()


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"epoch": 3, "model": {"state_dict": STATE}},
        {"model_state": {f"module.{k}": v for k, v in STATE.items()}},
        {f"module._orig_mod.{k}": v for k, v in STATE.items()},
        {k: v for k, v in STATE.items() if "num_batches" not in k},
    ],
)
def test_checkpoints_load_in_the_wrappings_that_scripts_use(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)

    assert_loaded(path)


def test_safetensors_load(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "weights.safetensors"
    save_file(state(), path)

    assert_loaded(path)


class Trap:
    """Unpickled by an ordinary loader this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def save_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize("save", [torch.save, save_pickle])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, save: Any) -> None:
    path, bait = tmp_path / "weights.pth", tmp_path / "ran"
    save({"0.weight": Trap(bait)}, path)

    with pytest.raises(ModelError, match=r"weights\.pth' holds more than weights .*refused"):
        load_weights(network(), path)

    assert not bait.exists()


def test_a_pickled_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network(), path)

    with pytest.raises(ModelError, match=r"holds more than weights \(torch\.nn\.modules"):
        load_weights(network(), path)


def test_a_torchscript_archive_is_refused_as_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.script(nn.ReLU()).save(path)

    with pytest.raises(ModelError, match="is a TorchScript program, expected weights"):
        load_weights(network(), path)


@pytest.mark.parametrize(("name", "kind"), [("w.pth", "torch checkpoint"), ("w.safetensors", "")])
@pytest.mark.parametrize("size", [0, 5, 200])
def test_damaged_files_are_named(tmp_path: Path, name: str, kind: str, size: int) -> None:
    torch.save(state(), tmp_path / "whole")
    path = tmp_path / name
    path.write_bytes((tmp_path / "whole").read_bytes()[:size])

    with pytest.raises(ModelError, match=rf"{name}' is (damaged or )?not a (readable )?.*{kind}"):
        load_weights(network(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights '.*w\.pth': no such file"):
        load_weights(network(), tmp_path / "w.pth")


def test_weights_of_another_model_name_some_of_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)

    with pytest.raises(
        ModelError,
        match=r"6 missing \(0\.bias, 0\.weight, 1\.bias, 1\.running_mean and 2 more\), "
        r"2 unexpected \(bias, weight\)",
    ):
        load_weights(network(), path)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(state() | {"0.weight": torch.zeros(2, 1, 5, 5)}, path)

    with pytest.raises(ModelError, match=r"'0\.weight' has shape \[2, 1, 5, 5\], .*\[2, 1, 3, 3\]"):
        load_weights(network(), path)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3}, path)

    with pytest.raises(ModelError, match="no tensors found, expected a state_dict"):
        load_weights(network(), path)

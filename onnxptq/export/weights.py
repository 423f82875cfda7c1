"""Checkpoints: reads `.pth`/`.pt` and `.safetensors` without running code, and fills a module."""

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from onnxptq.errors import ModelError

# Where training scripts put the state_dict inside of what they save.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
SHOWN = 4  # names that an error lists


def load_weights(module: nn.Module, path: Path) -> None:
    """Overwrites all parameters and buffers of `module` with those in the file.

    Raises:
        ModelError: The file cannot be read, holds code, or does not fit in names or shapes.
    """
    state = read_state(path)
    expected = module.state_dict()
    # Checkpoints older than torch 0.4.1 have no batch counters, and only training reads them.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = expected.keys() - state.keys() - counters
    unexpected = state.keys() - expected.keys()
    if missing or unexpected:
        raise ModelError(
            f"'{path}' does not fit the module: {_some('missing', missing)}, "
            f"{_some('unexpected', unexpected)}. Is it the checkpoint of another model?"
        )
    for name, tensor in sorted(state.items()):
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"'{path}': {name!r} has shape {list(tensor.shape)}, "
                f"the module expects {list(expected[name].shape)}"
            )
    module.load_state_dict(state, strict=False)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by parameter name, wrappers and prefixes taken off.

    Args:
        path: `.safetensors`, or what `torch.save` wrote of tensors, numbers and plain containers.

    Raises:
        ModelError: No such file, of another kind, damaged, contains code, or no tensors in it.
    """
    if not path.is_file():
        raise ModelError(f"weights '{path}': no such file")
    if path.suffix in (".onnx", ".npz", ".h5", ".pb"):
        raise ModelError(f"weights '{path}': expected a .pth, .pt or .safetensors file")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    content = _unwrapped(content)
    state = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise ModelError(f"'{path}': no tensors found, expected a state_dict (name to tensor)")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _unwrapped(content: object) -> Mapping[object, object]:
    for key in WRAPPERS:
        inner = content.get(key) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping):
            return _unwrapped(inner)
    return content if isinstance(content, Mapping) else {}


def _safetensors(path: Path) -> object:
    try:
        from safetensors import SafetensorError  # noqa: PLC0415 - a .pth needs none of it
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"'{path}' needs the package safetensors: pip install 'onnxptq[torch]'"
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{path}' is not a readable safetensors file: {error}") from error


def _pickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about archives and protocols that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found.group(1) if found else "something that is neither tensor nor plain container"
        raise ModelError(
            f"'{path}' holds more than weights ({what}); loading that could run any code, so it is "
            "refused. Where you trust the file, load it yourself and save its state_dict() again, "
            "with torch.save or as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"'{path}' is a TorchScript program, expected weights: save its state_dict()"
            ) from error
        first_line = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"'{path}' is damaged or not a torch checkpoint ({first_line}): fetch it again"
        ) from error


def _some(what: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    if not ordered:
        return f"nothing {what}"
    rest = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return f"{len(ordered)} {what} ({', '.join(ordered[:SHOWN])}{rest})"

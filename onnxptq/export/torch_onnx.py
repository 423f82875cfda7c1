"""nn.Module -> canonical ONNX: opset 21, dynamic batch, BatchNorm kept, checked against torch.

Of torch's two exporters this uses the TorchScript one (`dynamo=False`). Measured with torch 2.13
and onnxscript 0.7 on the networks under `models/`; BatchNorm is wanted, for its statistics:

=========== ========================= ============================================================
            TorchScript               torch.export (dynamo=True)
=========== ========================= ============================================================
BatchNorm   kept                      folded; or kept (optimize=False), and then EfficientNet-Lite0
                                      has 50 Shape, 98 Expand, 115 CastLike and 130 Constant too
mean(H, W)  GlobalAveragePool+Flatten ReduceMean+Reshape
node names  module paths              node_Conv_914
time        0.3 to 1 s                5 to 9 s
needs       -                         onnxscript
opset       up to 20                  21
=========== ========================= ============================================================

Torch 2.9 and later call it legacy, and keep it. What it lacks is small: between opsets 20 and 21
only GroupNormalization changed its meaning, which it never writes, so 21 is reached by the number.
"""

import importlib
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from onnxptq.errors import ModelError, SpecError
from onnxptq.export.builder import load_builder
from onnxptq.export.canonical import canonicalize
from onnxptq.export.compare import INPUT_NAME, max_abs_diff, random_input, shape_text, torch_outputs
from onnxptq.export.weights import load_weights
from onnxptq.graph import io

# Clip takes its bounds as inputs from 11 on; 21 is what the rest of onnxptq works on.
OPSETS = (11, 21)
TORCHSCRIPT_OPSET = 20  # the highest that the TorchScript exporter writes
IR_VERSIONS = {21: 10}
BATCH_NAME = "N"
OUTPUT_NAME = "output"
TRACE_BATCH = 2  # at 1 torch cannot tell a batch from an axis that is broadcast


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made.

    Attributes:
        nodes: Number of nodes in the graph.
        max_abs_diff: Largest |onnxruntime - torch| over all outputs, random input, batch 1 and 3.
        path: The file.
    """

    nodes: int
    max_abs_diff: float
    path: Path


def export(
    source: str,
    output: Path,
    weights: Path | None,
    input_shape: tuple[int, ...],
    opset: int = OPSETS[1],
) -> Exported:
    """Builds a module, fills in its weights and writes it as ONNX.

    Args:
        source: "path/to/file.py:function" or "timm:NAME" (whose published weights are fetched if
            `weights` is None).
        output: The file to write; an old one stays until the new one is complete.
        weights: A `.pth`/`.pt` or `.safetensors` checkpoint; None takes the module as it was built.
        input_shape: (N, ...), for example (1, 3, 224, 224); the batch size N becomes dynamic.
        opset: 11 to 21.

    Raises:
        SpecError: `source` cannot be built, the module does not take the shape, or the opset is out
            of range.
        ModelError: Weights do not fit, torch cannot export the module, the result differs from
            torch, or the file cannot be written.
    """
    _check_arguments(input_shape, opset)
    io.writable(output)
    module = load_builder(source, pretrained=weights is None)()
    if weights is not None:
        load_weights(module, weights)
    return export_module(module, output, input_shape, opset)


def export_module(
    module: nn.Module, output: Path, input_shape: tuple[int, ...], opset: int = OPSETS[1]
) -> Exported:
    """Writes a module (put into eval mode) as ONNX and compares it with torch.

    The input is named `input`, a single output `output`, several `output_0`, `output_1`, ...

    Args:
        module: Takes one float32 tensor, returns a tensor or a tuple or list of tensors.
        output: The file to write.
        input_shape: (N, ...), all at least 1.
        opset: 11 to 21.

    Raises:
        SpecError: The module does not take the shape, or opset out of range.
        ModelError: As in `export`.
    """
    _check_arguments(input_shape, opset)
    io.writable(output)
    module.eval()
    x = random_input(input_shape, TRACE_BATCH)
    expected = torch_outputs(module, x)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "model.onnx"
        _trace(module, x, expected, raw, min(opset, TORCHSCRIPT_OPSET))
        model = canonicalize(ir.load(raw), _layers(module), _tied(module))
        if opset > TORCHSCRIPT_OPSET:
            model.opset_imports[""] = opset
            model.ir_version = IR_VERSIONS[opset]
        difference = max_abs_diff(module, model, input_shape)
        io.save(model, output)
    return Exported(sum(1 for _ in model.graph), difference, output)


def _check_arguments(input_shape: tuple[int, ...], opset: int) -> None:
    lowest, highest = OPSETS
    if not lowest <= opset <= highest:
        raise SpecError(f"opset {opset}: export writes {lowest} to {highest}")
    if not input_shape or min(input_shape) < 1:
        raise SpecError(
            f"input shape {shape_text(input_shape)!r}: expected sizes from 1 up, like 1x3x224x224"
        )


def _trace(
    module: nn.Module, x: torch.Tensor, outputs: list[torch.Tensor], path: Path, opset: int
) -> None:
    several = len(outputs) > 1
    names = [f"{OUTPUT_NAME}_{i}" if several else OUTPUT_NAME for i in range(len(outputs))]
    batched = [
        name
        for name, output in zip(names, outputs, strict=True)
        if output.ndim and output.shape[0] == len(x)
    ]
    try:
        with warnings.catch_warnings(), torch.no_grad(), _silence():
            # Deprecation (see above), and the tracer's guesses: the comparison tests those.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (x,),
                path,
                dynamo=False,
                opset_version=opset,
                # Together with eval mode: BatchNorm and convolution stay two nodes.
                training=torch.onnx.TrainingMode.PRESERVE,
                input_names=[INPUT_NAME],
                output_names=names,
                dynamic_axes={name: {0: BATCH_NAME} for name in [INPUT_NAME, *batched]},
            )
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        raise ModelError(
            f"torch {torch.__version__} cannot export {type(module).__name__}: {first_line}"
        ) from error


@contextmanager
def _silence() -> Generator[None]:
    """Stops torch's C++ from printing graphs to standard output, where `--json -` writes.

    It does so when an export fails, and torch turns its own switch for that back on (2.13).
    """
    native, name = importlib.import_module("torch._C"), "_jit_onnx_log"  # no public way to it
    log = getattr(native, name, None)
    setattr(native, name, _discard)
    try:
        yield
    finally:
        setattr(native, name, log)


def _discard(*_: object) -> None:
    pass


def _layers(module: nn.Module) -> frozenset[str]:
    """Paths of the modules that are one layer: without children, or with weights of their own."""
    return frozenset(
        name
        for name, child in module.named_modules()
        if not list(child.children()) or list(child.parameters(recurse=False))
    )


def _tied(module: nn.Module) -> dict[str, str]:
    """Each name in the state_dict -> the first name that has the same tensor."""
    first: dict[tuple[int, torch.Size], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        tied[name] = first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return tied

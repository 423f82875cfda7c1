"""Runs a torch module and its exported model on the same random input and compares."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from onnxptq import ort
from onnxptq.errors import ModelError, SpecError

INPUT_NAME = "input"
SEED = 0
CHECK_BATCHES = (1, 3)  # neither is the traced one: a batch size baked into the graph shows
# Two float32 engines sum in different orders: a few 1e-6 of the largest output in the networks
# here. A wrong weight or padding gives more than 1e-2.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-6  # for outputs that are 0 but for rounding

Array = npt.NDArray[np.float32]


def shape_text(shape: tuple[int, ...]) -> str:
    """As on the command line: "1x3x224x224"."""
    return "x".join(map(str, shape))


def random_input(input_shape: tuple[int, ...], batch: int) -> torch.Tensor:
    """Standard normal float32 of `input_shape`, its batch size replaced; the same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(batch, *input_shape[1:], generator=generator)


def torch_outputs(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of one forward pass without gradients, in order.

    Raises:
        SpecError: forward fails on this shape, or returns something else than tensors.
    """
    try:
        with torch.no_grad():
            result = module(x)
    except Exception as error:
        raise SpecError(
            f"{type(module).__name__} does not take an input of {shape_text(tuple(x.shape))} "
            f"({type(error).__name__}: {error}): check the input shape; any batch size must work"
        ) from error
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    if not outputs or not all(isinstance(output, torch.Tensor) for output in outputs):
        raise SpecError(
            f"{type(module).__name__} returns {type(result).__name__}, expected a tensor or a "
            "tuple or list of tensors: export a small module around it that picks the outputs"
        )
    return outputs


def max_abs_diff(module: nn.Module, model: ir.Model, input_shape: tuple[int, ...]) -> float:
    """Largest |onnxruntime - torch| over all outputs, for random input at each of CHECK_BATCHES.

    Args:
        module: In eval mode.
        model: Exported from it, with one input named INPUT_NAME.
        input_shape: (N, ...); N is not used.

    Raises:
        ModelError: It is beyond rounding, not finite, or onnxruntime cannot run the model.
    """
    session = ort.session(model, threads=1)
    worst = 0.0
    for batch in CHECK_BATCHES:
        x = random_input(input_shape, batch)
        expected = [output.numpy() for output in torch_outputs(module, x)]
        found = _run(session, x.numpy(), batch)
        for want, have in zip(expected, found, strict=True):
            worst = max(worst, _difference(np.asarray(want), np.asarray(have), batch))
    return worst


def _difference(want: Array, have: Array, batch: int) -> float:
    if want.shape != have.shape:
        raise ModelError(
            f"the exported model gives shape {list(have.shape)} at batch size {batch}, torch "
            f"{list(want.shape)}: forward fixes the batch size; use x.shape[0] or flatten(1) in it"
        )
    if not np.isfinite(want).all():
        raise ModelError(
            f"torch itself gives NaN or infinity for random input at batch size {batch}: "
            "nothing to compare the export with. Are the weights loaded?"
        )
    difference = float(np.max(np.abs(want.astype(np.float64) - have), initial=0.0))
    largest = float(np.max(np.abs(want), initial=0.0))
    allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * largest
    if not difference <= allowed:
        raise ModelError(
            f"the exported model differs from torch by {difference:.3g} at batch size {batch} "
            f"(rounding explains {allowed:.1g}): forward depends on something that tracing cannot "
            "see, such as values, random numbers or the batch size"
        )
    return difference


def _run(session: ort.Session, x: Array, batch: int) -> list[Array]:
    try:
        return list(session.run({INPUT_NAME: x}).values())
    except ModelError as error:
        raise ModelError(
            f"the exported model fails at batch size {batch} ({error}): "
            "does forward fix the batch size?"
        ) from error

"""`verify` for files: opens the data with the model's stored preprocessing."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxptq import ort
from onnxptq.calibrate.progress import Progress
from onnxptq.errors import ModelError
from onnxptq.graph import io
from onnxptq.report.inputs import DataOptions, open_for
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import Verification, verify

DEFAULT_SAMPLES = 4


def verify_file(
    model: Path,
    source: str | None,
    options: DataOptions,
    program: Path | None,
    progress: Progress,
) -> Verification:
    """Compare a quantized file's program with onnxruntime.

    Args:
        model: The file.
        source: DATA; None for made-up inputs.
        options: How data are read.
        program: Where to write the integer program, or None.
        progress: Told of each sample.

    Raises:
        ModelError: The file is no model, or the program cannot be written.
        ProgramError: Its integer arithmetic could overflow.
        CalibrationError: The data cannot be read or do not fit.
    """
    if model.suffix == ".npz":
        raise ModelError(f"{model} is no model; give the quantized .onnx that it was made from")
    network = io.load(model)
    lowered = lower(model)
    if not any(value.is_codes for value in lowered.values):
        raise ModelError(
            f"{model}: onnxruntime runs no node of it on codes; quantize it first with "
            "onnxptq quantize"
        )
    if program is not None:
        lowered.save(program)
    samples = options.samples or DEFAULT_SAMPLES
    batches = None if source is None else _batches(network, source, options)
    return verify(model, batches, samples=samples, program=lowered, progress=progress)


def _batches(network: ir.Model, source: str, options: DataOptions) -> Iterable[Mapping[str, Any]]:
    data = open_for(network, ort.inputs(network), source, options)
    return data.batches(options.batch_size)

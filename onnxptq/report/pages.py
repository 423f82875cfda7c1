"""The HTML pages of `quantize --report` and of `report`, and what the latter measures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxptq import __version__, ort, passes
from onnxptq.calibrate.ports import Batch
from onnxptq.calibrate.progress import Progress
from onnxptq.calibrate.source import Data
from onnxptq.errors import ModelError, ProgramError
from onnxptq.graph import io
from onnxptq.report.html import Page, render
from onnxptq.report.inputs import DataOptions, open_for
from onnxptq.report.layers import layer_rows
from onnxptq.report.rows import LayerRow, QuantizeReport, decibels, size_text
from onnxptq.rewrite.strip import strip
from onnxptq.runtime.lint import FloatNode, lint
from onnxptq.runtime.lower import lower
from onnxptq.runtime.profile import Profile, profile

SPEED_RUNS = 20
"""Runs of the executor, of which medians are shown."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What `report` measured of a quantized file.

    Attributes:
        layers: One row a quantized node.
        float_nodes: Nodes that onnxruntime runs in float, and why.
        integer_nodes: How many nodes it runs in integers.
        bytes_quantized: Size of the file.
        speed: Its layers in the executor; None where that cannot run it.
    """

    layers: tuple[LayerRow, ...]
    float_nodes: tuple[FloatNode, ...]
    integer_nodes: int
    bytes_quantized: int
    speed: Profile | None = None


def measure_file(
    model: Path,
    source: str,
    reference: Path | None,
    options: DataOptions,
    progress: Progress,
) -> FileReport:
    """Measure a quantized file layer by layer.

    Args:
        model: The file.
        source: DATA.
        reference: The float model; None compares with the file's own weights in float, which shows
            the error of the activations but not that of rounding the weights.
        options: How to read the data.
        progress: Told of each batch.

    Raises:
        ModelError: A file is no model, or not one that `quantize` wrote.
        CalibrationError: The data cannot be read or do not fit.
    """
    quantized = io.load(model)
    own_float, recipe = strip(quantized)
    if not recipe.tensors:
        raise ModelError(f"{model}: nothing is quantized; give the file that quantize wrote")
    against = own_float if reference is None else passes.prepare(io.load(reference)).model
    data = open_for(quantized, ort.inputs(quantized), source, options)
    progress.start("measuring layers", data.count)
    try:
        batches = _told(data, options.batch_size, progress)
        rows = layer_rows(against, quantized, recipe, batches)
    finally:
        progress.finish()
    linted = lint(model)
    return FileReport(
        layers=rows,
        float_nodes=linted.float_nodes,
        integer_nodes=len(linted.integer_nodes),
        bytes_quantized=model.stat().st_size,
        speed=_speed(model, data),
    )


def _speed(model: Path, data: Data) -> Profile | None:
    """The layers in the executor, on one sample."""
    try:
        program = lower(model)
    except ProgramError:
        return None
    feeds = next(iter(data.batches(1)), None)
    if feeds is None or not any(value.is_codes for value in program.values):
        return None
    return profile(program, feeds, SPEED_RUNS)


def _told(data: Data, batch_size: int, progress: Progress) -> Iterator[Batch]:
    for batch in data.batches(batch_size):
        yield batch
        progress.advance(data.feed_samples(batch))


def quantized_page(output: Path, report: QuantizeReport) -> str:
    """The page of `onnxptq quantize --report`."""
    return render(
        Page(
            title=output.name,
            lead="Each layer measured in onnxruntime against the float model, on calibration data.",
            facts=report.summary(),
            layers=report.layers,
            float_nodes=report.float_nodes,
            steps=report.steps,
            footer=versions(),
        )
    )


def file_page(model: Path, reference: Path | None, measured: FileReport) -> str:
    """The page of `onnxptq report`."""
    compared = "its own weights in float" if reference is None else reference.name
    last = measured.layers[-1].sqnr_db if measured.layers else None
    facts = {
        "File": size_text(measured.bytes_quantized),
        "Integer nodes": str(measured.integer_nodes),
        "Nodes in float": str(len(measured.float_nodes)),
        "SQNR of the last layer": decibels(last),
        "In the executor, 1 thread": milliseconds(measured.speed),
    }
    return render(
        Page(
            title=model.name,
            lead=f"Measured in onnxruntime against {compared}.",
            facts={label: value for label, value in facts.items() if value},
            layers=measured.layers,
            float_nodes=measured.float_nodes,
            speed=measured.speed,
            footer=versions(),
        )
    )


def milliseconds(speed: Profile | None) -> str:
    """Time of a run; empty for None."""
    return "" if speed is None else f"{speed.total_ms:.2f} ms"


def versions() -> str:
    """The versions a number depends on."""
    return f"onnxptq {__version__}, onnxruntime {ort.version()}"

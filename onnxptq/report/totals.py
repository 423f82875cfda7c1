"""The figures of one quantization: sizes, bits, memory, and what onnxruntime left in float."""

import resource
import sys
from pathlib import Path

import onnx_ir as ir

from onnxptq.graph import io
from onnxptq.graph.skeleton import size_bytes
from onnxptq.ops.nodes import constant
from onnxptq.recipe import Recipe, Step
from onnxptq.report.rows import LayerRow, QuantizeReport, StepRow
from onnxptq.runtime.lint import lint


def totals(
    source: ir.Model,
    prepared: ir.Model,
    quantized: ir.Model,
    recipe: Recipe,
    rows: tuple[LayerRow, ...],
) -> QuantizeReport:
    """Measure a quantized model; `seconds` is left at 0 for the caller.

    Args:
        source: The float model as it came.
        prepared: The float model that the recipe was made for.
        quantized: The result, which is loaded in onnxruntime to see what it runs.
        recipe: The decisions.
        rows: One row a layer.

    Raises:
        ModelError: onnxruntime refuses the quantized model.
    """
    return QuantizeReport(
        seconds=0.0,
        peak_rss_mb=peak_rss_mb(),
        bytes_float=file_bytes(source),
        bytes_quantized=file_bytes(quantized),
        average_weight_bits=average_weight_bits(prepared, recipe),
        layers=rows,
        float_nodes=lint(quantized).float_nodes,
        steps=tuple(map(step_row, recipe.steps)),
    )


def step_row(step: Step) -> StepRow:
    """What the report shows of a method."""
    own = {k: v for k, v in step.numbers.items() if k not in ("held_out_db", "gain_db")}
    after, gain = step.numbers.get("held_out_db"), step.numbers.get("gain_db")
    return StepRow(step.method, step.seconds, after, gain, own)


def file_bytes(model: ir.Model) -> int:
    """How long the model's file is, graph and names included; of its weights alone above 2 GiB."""
    weights = size_bytes(model)
    return len(io.to_bytes(model)) if weights <= io.INLINE_LIMIT_BYTES else weights


def average_weight_bits(model: ir.Model, recipe: Recipe) -> float:
    """Nominal bits of the quantized weights, averaged over their elements; 32 if there are none."""
    bits, elements = 0.0, 0
    for tensor in recipe.weights():
        array = constant(model.graph.initializers[tensor.value])
        size = 0 if array is None else array.size
        widths = recipe.widths.get(tensor.value)
        bits += size * (tensor.params.spec.bits if widths is None else float(widths.mean()))
        elements += size
    return bits / elements if elements else 32.0


def peak_rss_mb() -> float:
    """The highest resident memory of this process so far, in 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux ru_maxrss begins at the peak of the process that started this one.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

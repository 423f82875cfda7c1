"""Rows: what commands report, before it becomes a table, a page or JSON. Cheap to import."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

EQUAL_DB = 200.0
"""SQNR reported for equal tensors, whose true value is infinite and has no spelling in JSON."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One quantized node.

    Attributes:
        node: Its name.
        op: Its ONNX operator.
        w_bits: Width of its weight's codes; None without a quantized weight.
        a_bits: Width of the codes it reads; None if its first input is in float.
        sqnr_db: Signal to quantization noise of its output, errors of earlier layers included; None
            if it was not measured.
        cosine: Cosine similarity of the same two tensors.
        set_by: Text of the methods that chose its ranges.
        weight_bytes: Its weight as codes of `w_bits`; 0 without.
        weight_bytes_float: Its weight in the float model.
    """

    node: str
    op: str
    w_bits: int | None
    a_bits: int | None
    sqnr_db: float | None
    cosine: float | None
    set_by: str
    weight_bytes: int = 0
    weight_bytes_float: int = 0


@dataclass(frozen=True, slots=True)
class StepRow:
    """One method that was applied.

    Attributes:
        method: Its text.
        seconds: How long it took.
        held_out_db: Signal to noise of the outputs behind it, on samples held out from learning
            (but see `methods.gptq.FITTED`); None where none were held out.
        gain_db: How much of that it brought.
        numbers: What else it reported.
    """

    method: str
    seconds: float
    held_out_db: float | None
    gain_db: float | None
    numbers: Mapping[str, float]

    def cells(self) -> list[str]:
        """What tables show of it, under `STEP_HEADS`."""
        gain = "" if self.gain_db is None else f"{self.gain_db:+.2f}"
        after = "" if self.held_out_db is None else f"{self.held_out_db:.2f}"
        shown = {name: n for name, n in self.numbers.items() if n and "_db" not in name}
        details = ", ".join(f"{name.replace('_', ' ')} {n:g}" for name, n in shown.items())
        seconds = f"{self.seconds:.1f}" if self.seconds else ""  # a saved recipe has none
        return [self.method, seconds, after, gain, details]


STEP_HEADS = ("method", "seconds", "held-out SQNR, dB", "gain, dB", "details")


class FloatRow(Protocol):
    """One node that stays in float, and why; `runtime.lint.FloatNode` is one."""

    @property
    def node(self) -> str:
        """Its name."""
        ...

    @property
    def op(self) -> str:
        """Its ONNX operator."""
        ...

    @property
    def why(self) -> str:
        """The reason."""
        ...


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What `quantize` did; its fields are the keys of the command's JSON.

    Attributes:
        seconds: Wall-clock time of the whole run.
        peak_rss_mb: Highest resident memory of the process, in 10^6 bytes.
        bytes_float: Size of the float file.
        bytes_quantized: Size of the quantized file.
        average_weight_bits: Nominal bits of the quantized weights, averaged over their elements.
        layers: One row a quantized node, in graph order.
        float_nodes: The nodes left in float, and why.
        steps: The methods, in the order in which they were applied.
    """

    seconds: float
    peak_rss_mb: float
    bytes_float: int
    bytes_quantized: int
    average_weight_bits: float
    layers: tuple[LayerRow, ...]
    float_nodes: tuple[FloatRow, ...]
    steps: tuple[StepRow, ...] = ()

    def summary(self) -> dict[str, str]:
        """The figures with labels and units, for terminal and page."""
        ratio = self.bytes_quantized / max(self.bytes_float, 1)
        return {
            "Quantized file": size_text(self.bytes_quantized),
            "Float file": size_text(self.bytes_float),
            "Ratio": f"{ratio:.3f}",
            "Average weight bits": f"{self.average_weight_bits:.2f}",
            "Quantized nodes": str(len(self.layers)),
            "Nodes in float": str(len(self.float_nodes)),
            "Time": f"{self.seconds:.1f} s",
            "Peak memory": f"{self.peak_rss_mb:.0f} MB",
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on labelled data, and how near to a reference model.

    Attributes:
        n: Samples seen.
        top1: Share of samples whose label has the highest score, 0 to 1; None without labels.
        top5: Share of samples whose label is among the five highest; None without labels.
        agreement: Share of samples where both models have the same highest score.
        sqnr_db: 10 log10(sum ref^2 / sum (ref - out)^2) over all outputs and samples.
        kl: Mean divergence KL(reference || model) of the class probabilities, in nats.
    """

    n: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None


def percent(share: float | None) -> str:
    """A share of 0 to 1 with two decimals; empty for None."""
    return "" if share is None else f"{100 * share:.2f} %"


def decibels(value: float | None) -> str:
    """Signal to noise with one decimal; empty for None."""
    if value is None:
        return ""
    return "equal" if value >= EQUAL_DB else f"{value:.1f} dB"


def size_text(n_bytes: int) -> str:
    """Bytes in the unit people read: 1 MB is 10^6 bytes, as file managers count."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes} bytes"

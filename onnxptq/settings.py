"""Settings: every choice that `quantize` takes, checked before any work begins."""

import dataclasses
import operator
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxptq import spec
from onnxptq.calibrate.progress import Progress
from onnxptq.calibrate.run import CollectOptions
from onnxptq.errors import SpecError
from onnxptq.methods import METHODS, methods_of, parse_methods, with_budgets, with_iterations
from onnxptq.methods.ofm_similarity import OfmSimilarity
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is quantized; the command line has a flag for each field.

    Attributes:
        bits: Widths of weights and of the activations that layers read, for example "w4a8".
        layer_bits: "PATTERN=w4a8" for nodes, operator types, values or weights; the last one wins.
        quality: "fast" for the methods that keep accuracy in seconds to minutes, "quick" for ranges
            from statistics and rounding to nearest, "best" for weights learned by gradients.
        method: Comma-separated methods, applied in order; None for those of `quality`.
        iterations: Of each method that learns by gradients; None for the number of the method.
        recipe: A saved recipe; all decisions are taken from it, and no data is needed.
        float_patterns: Nodes or operator types to leave in float.
        keep_first_last: 8 bits for the network's input, its first and last weights, and the last
            layer's input.
        second_input_8: 8 bits for the first layer's output too.
        per_channel: One weight scale per output channel; False for one per tensor.
        storage: "packed", as small as the bits say, or "int8".
        target_ort: The onnxruntime version that will run the file; None for every supported one.
        preprocess: How images become inputs; None for what the model's metadata say.
        average_bits: Most nominal bits a weight, on average; any budget lets `ofm-similarity`
            choose the widths of the weights.
        max_bytes: Most bytes of the whole quantized file.
        max_latency_ms: Most milliseconds in the executor on one thread.
        pareto: File for what other budgets would give: JSON, and beside it a plot, .svg.
        samples: How many calibration samples; None for all.
        batch_size: Samples fed at a time; None for as many as keep memory small.
        stats: File that keeps the statistics, and beside it what long methods have done, so that an
            interrupted run goes on where it was.
        report_samples: Samples on which the layers are compared; 0 for no comparison.
        jobs: Threads that fold statistics and search ranges.
        seed: For methods that draw random numbers.
    """

    bits: str = "w8a8"
    layer_bits: tuple[str, ...] = ()
    quality: str = "fast"
    method: str | None = None
    iterations: int | None = None
    recipe: Path | None = None
    float_patterns: tuple[str, ...] = ()
    keep_first_last: bool = True
    second_input_8: bool = False
    per_channel: bool = True
    storage: str = "packed"
    target_ort: str | None = None
    average_bits: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None
    pareto: Path | None = None
    preprocess: str | None = None
    samples: int | None = None
    batch_size: int | None = None
    stats: Path | None = None
    report_samples: int = 4
    jobs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "jobs", "iterations"):
            _require_at_least(1, name, getattr(self, name))
        _require_at_least(0, "report_samples", self.report_samples)
        self.placing().overrides()
        self.placing().widths()
        self.layout()
        chosen = parse_methods(self.methods())
        if self.pareto is not None and not any(isinstance(m, OfmSimilarity) for m in chosen):
            raise SpecError("--pareto needs --average-bits, --max-bytes or --max-latency-ms")

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Settings":
        """Settings from keyword arguments; a text stands for a path, or for a list of one entry.

        Raises:
            SpecError: An option does not exist, or a value is malformed.
        """
        known = typing.get_type_hints(cls)
        for name in options:
            if name not in known:
                raise spec.unknown("option of quantize", name, known)
        return cls(**{name: _fit(name, value, known[name]) for name, value in options.items()})

    def placing(self) -> Placing:
        """The choices that placement follows."""
        return Placing(
            bits=self.bits,
            layer_bits=self.layer_bits,
            float_patterns=self.float_patterns,
            keep_first_last=self.keep_first_last,
            second_input_8=self.second_input_8,
            per_channel=self.per_channel,
        )

    def collecting(self, progress: Progress) -> CollectOptions:
        """How statistics are collected."""
        return CollectOptions(
            batch_size=self.batch_size,
            checkpoint=self.stats,
            jobs=self.jobs,
            progress=progress,
        )

    def layout(self) -> Storage:
        """How weights are stored."""
        return Storage.for_target(self.storage, self.target_ort)

    def ignored(self) -> tuple[str, ...]:
        """Settings that were changed but have no effect, because a recipe has decided them."""
        if self.recipe is None:
            return ()
        changed = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return tuple(field.name for field in changed if field.name in _DECIDED)

    def methods(self) -> str:
        """Text of the methods to apply.

        Raises:
            SpecError: The quality, a method or one of its options does not exist.
        """
        chosen = methods_of(self.quality, self.placing().fewest_bits())
        text = with_iterations(self.method or chosen, self.iterations)
        if not spec.parse(text, METHODS, "method"):
            raise SpecError("method: the text is empty; name at least one")
        return with_budgets(
            text,
            average_bits=self.average_bits,
            max_bytes=self.max_bytes,
            max_latency_ms=self.max_latency_ms,
        )


_DECIDED = (
    "bits",
    "layer_bits",
    "quality",
    "method",
    "iterations",
    "float_patterns",
    "keep_first_last",
    "second_input_8",
    "per_channel",
    "average_bits",
    "max_bytes",
    "max_latency_ms",
    "pareto",
)
"""Settings that a recipe replaces."""

_KINDS = {
    str: "a text",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    tuple: "a list of texts",
}


def _fit(name: str, value: object, hint: Any) -> Any:
    """The value as the type of its field; refused where that would be guessing."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is not tuple else ()
    if value is None and type(None) in choices:
        return None
    kind = choices[0] if choices else typing.get_origin(hint) or hint
    if isinstance(value, bool) is not (kind is bool):
        raise SpecError(f"{name} is {value!r}; expected {_KINDS[kind]}")
    try:
        return _as(kind, value)
    except TypeError:
        raise SpecError(f"{name} is {value!r}; expected {_KINDS[kind]}") from None


def _as(kind: Any, value: Any) -> Any:
    """The value as text, path, number or tuple of texts.

    Raises:
        TypeError: It is none.
    """
    if kind is int:
        return operator.index(value)
    if kind is float and not isinstance(value, str):
        return float(value)
    if kind is Path:
        return Path(value)
    if kind is tuple:
        entries = (value,) if isinstance(value, str) else tuple(value)
        return tuple(_as(str, entry) for entry in entries)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind}")
    return value


def _require_at_least(least: int, name: str, value: int | None) -> None:
    if value is not None and value < least:
        raise SpecError(f"{name} is {value}; at least {least} is needed")

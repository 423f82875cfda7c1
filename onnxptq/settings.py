"""Settings: every choice that `quantize` takes, checked before any work begins."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from onnxptq import spec
from onnxptq.calibrate.progress import Progress
from onnxptq.calibrate.run import CollectOptions
from onnxptq.errors import SpecError
from onnxptq.methods import DEFAULT_METHODS, METHODS
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is quantized; the command line has a flag for each field.

    Attributes:
        bits: Widths of weights and of the activations that layers read, for example "w4a8".
        layer_bits: "PATTERN=w4a8" for nodes, operator types, values or weights; the last one wins.
        method: Comma-separated methods, applied in order; None for the default ones.
        recipe: A saved recipe; all decisions are taken from it, and no data is needed.
        float_patterns: Nodes or operator types to leave in float.
        keep_first_last: 8 bits for the network's input, its first and last weights, and the last
            layer's input.
        second_input_8: 8 bits for the first layer's output too.
        per_channel: One weight scale per output channel; False for one per tensor.
        storage: "packed", as small as the bits say, or "int8".
        target_ort: The onnxruntime version that will run the file; None for every supported one.
        preprocess: How images become inputs; None for what the model's metadata say.
        samples: How many calibration samples; None for all.
        batch_size: Samples fed at a time; None for as many as keep memory small.
        stats: File that keeps the statistics, so that an interrupted run goes on where it was.
        report_samples: Samples on which the layers are compared; 0 for no comparison.
        jobs: Threads that fold statistics and search ranges.
        seed: For methods that draw random numbers.
    """

    bits: str = "w8a8"
    layer_bits: tuple[str, ...] = ()
    method: str | None = None
    recipe: Path | None = None
    float_patterns: tuple[str, ...] = ()
    keep_first_last: bool = True
    second_input_8: bool = False
    per_channel: bool = True
    storage: str = "packed"
    target_ort: str | None = None
    preprocess: str | None = None
    samples: int | None = None
    batch_size: int | None = None
    stats: Path | None = None
    report_samples: int = 4
    jobs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        self.placing().overrides()
        self.placing().widths()
        self.layout()
        self.methods()

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Settings":
        """Settings from keyword arguments.

        Raises:
            SpecError: An option does not exist, or a value is malformed.
        """
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise spec.unknown("option of quantize", name, known)
        return cls(**options)

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

    def methods(self) -> str:
        """Text of the methods to apply.

        Raises:
            SpecError: A method or one of its options does not exist.
        """
        text = self.method or DEFAULT_METHODS
        if not spec.parse(text, METHODS, "method"):
            raise SpecError("method: the text is empty; name at least one")
        return text

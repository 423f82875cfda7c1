"""Method: a pure function from recipe to recipe, a frozen dataclass; Context: all it may see."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import onnx_ir as ir

from onnxptq.calibrate import taps
from onnxptq.calibrate.data import Data
from onnxptq.calibrate.ports import Array
from onnxptq.calibrate.progress import Progress, Silent
from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import CalibrationError
from onnxptq.passes import Norm
from onnxptq.recipe import Recipe


@dataclass(frozen=True)
class Context:
    """What a method gets. There is no way from here to the command line or the disk.

    Attributes:
        model: The prepared float model; not to be changed.
        stats: Statistics by value name.
        batches: The calibration data.
        held_out: Samples that are not among `batches`, for judging the result; None where there
            are too few.
        norms: Statistics of each folded BatchNorm by the name of the node it was folded into.
        seed: For every random choice.
        jobs: Threads or processes a method may use.
        progress: Where to report to.
    """

    model: ir.Model
    stats: Mapping[str, TensorStats]
    batches: Data | None = None
    held_out: Data | None = None
    norms: Mapping[str, Norm] = field(default_factory=dict[str, Norm])
    seed: int = 0
    jobs: int = 1
    progress: Progress = field(default_factory=Silent)

    def samples(self, method: str) -> Data:
        """The calibration data, for methods that run the model.

        Raises:
            CalibrationError: There are none.
        """
        if self.batches is None:
            raise CalibrationError(
                f"{method} runs the model and needs calibration data: give --data"
            )
        return self.batches

    def float_values(self, data: Data, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Values of the float model by name, batch by batch."""
        return taps.float_values(self.model, data, names)

    def quantized_values(
        self, recipe: Recipe, data: Data, names: Sequence[str]
    ) -> Iterator[dict[str, Array]]:
        """What the codes of these values stand for in the model that the recipe describes."""
        return taps.quantized_values(self.model, recipe, data, names)


class Method(Protocol):
    """One way to decide something about the recipe; its fields are its options."""

    name: ClassVar[str]

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with this method's decisions."""
        ...

"""minmax: each activation covers all that calibration saw."""

from dataclasses import dataclass
from typing import ClassVar

from onnxptq.calibrate.stats import TensorStats
from onnxptq.methods.method import Context
from onnxptq.methods.ranges import set_activations
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class MinMax:
    """Cover the smallest and the largest value seen: no clipping, outliers cost resolution."""

    name: ClassVar[str] = "minmax"

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with every free activation covering its minimum and maximum."""
        return set_activations(recipe, ctx, cover, to_text(self))


def cover(stats: TensorStats, spec: QuantSpec) -> QParams:
    """Parameters that cover [min, max] and 0."""
    return QParams.from_range(min(stats.min, 0.0), max(stats.max, 0.0), spec)

"""percentile: each activation covers all but the outermost share of what calibration saw."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import SpecError
from onnxptq.methods.method import Context
from onnxptq.methods.ranges import set_activations
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class Percentile:
    """Cover the middle `percent` of the values; half of the rest is clipped on each side.

    Attributes:
        percent: Share that is covered, in percent, above 50 and up to 100.
    """

    name: ClassVar[str] = "percentile"

    percent: float = 99.999  # onnxruntime's PercentileCalibrater has the same default

    def __post_init__(self) -> None:
        if not 50.0 < self.percent <= 100.0:
            raise SpecError(
                f"percentile{{percent={self.percent}}}: percent must be above 50 and at most 100"
            )

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with every free activation covering its percentile."""
        return set_activations(recipe, ctx, self.choose, to_text(self))

    def choose(self, stats: TensorStats, spec: QuantSpec) -> QParams:
        """Parameters that cover the percentile and 0."""
        tail = (100.0 - self.percent) / 200.0
        lo, hi = quantile(stats, tail), quantile(stats, 1.0 - tail)
        if lo >= 0.0 >= hi:
            # Nearly all values are 0, so the percentile is empty; what is left deserves its range.
            lo, hi = stats.min, stats.max
        return QParams.from_range(min(lo, 0.0), max(hi, 0.0), spec)


def quantile(stats: TensorStats, share: float) -> float:
    """The value below which `share` of the numbers lie, straight inside a bin, exact at the ends.

    Zeros are taken at 0 exactly, not spread over their bin.
    """
    if share <= 0.0:
        return stats.min
    if share >= 1.0:
        return stats.max
    half = stats.half
    below = int(stats.counts[:half].sum())
    target = share * stats.count
    if below < target <= below + stats.zeros:
        return 0.0
    counts = stats.counts.copy()
    counts[half] -= stats.zeros
    target -= stats.zeros if target > below else 0
    cumulative = np.cumsum(counts)
    bin_ = int(np.searchsorted(cumulative, target))
    inside = (target - (cumulative[bin_] - counts[bin_])) / max(int(counts[bin_]), 1)
    value = stats.lo + (bin_ + inside) * stats.width
    return float(min(max(value, stats.min), stats.max))

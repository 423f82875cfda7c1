"""entropy: the clipped range whose grid keeps most of the histogram's information."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxptq.calibrate.stats import TensorStats
from onnxptq.kernels import numeric
from onnxptq.methods.method import Context
from onnxptq.methods.mse import without_zeros
from onnxptq.methods.ranges import set_activations
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text

MERGE = 4
"""Bins merged into one: 1024 to 2048 a side are left, as in TensorRT's calibration."""
CANDIDATES = 128


@dataclass(frozen=True)
class Entropy:
    """Clip each activation at |x| = t, with the t of least Kullback-Leibler divergence.

    Exact zeros are left out: every grid keeps them, and after a Relu they would outweigh all else.

    Source:
        Migacz 2017, "8-bit inference with TensorRT" (GTC 2017, talk S7310).
    """

    name: ClassVar[str] = "entropy"

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with every free activation clipped where the divergence is least."""
        return set_activations(recipe, ctx, choose, to_text(self))


def choose(stats: TensorStats, spec: QuantSpec) -> QParams:
    """Parameters of the clipped range with the least divergence."""
    counts, half = without_zeros(stats)
    front, back = -half % MERGE, -(counts.size - half) % MERGE
    merged = np.pad(counts, (front, back)).reshape(-1, MERGE).sum(axis=1)
    middle = (half + front) // MERGE
    longest = max(middle, merged.size - middle)
    shortest = min(longest, max(1, spec.levels // 2))
    reaches = np.unique(np.linspace(shortest, longest, CANDIDATES).astype(np.int64))
    reach = numeric.search_divergence(merged, middle, reaches, spec.levels)
    bound = float(reach) * MERGE * stats.width
    lo, hi = max(stats.min, -bound), min(stats.max, bound)
    return QParams.from_range(min(lo, 0.0), max(hi, 0.0), spec)

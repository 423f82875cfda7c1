"""mse: range and zero point with the least |error|^p, searched on the histogram."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import SpecError
from onnxptq.kernels import numeric
from onnxptq.methods.method import Context
from onnxptq.methods.ranges import set_activations
from onnxptq.quant import SMALLEST_SCALE, QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

COARSE = np.asarray(1.5 * 0.955 ** np.arange(100), np.float64)
"""Shares of the scale that just covers everything: from 1.5 down to 0.015."""
FINE = np.linspace(0.955, 1 / 0.955, 25, dtype=np.float64)


@dataclass(frozen=True)
class Mse:
    """Give each activation the scale and zero point with the least mean |error|^p.

    Clipping and rounding errors are weighed against each other on the histogram, over about 125
    scales and all zero points; a tensor without negative values keeps zero point 0.

    Attributes:
        p: Power; 2 is the mean square, above it large errors count more.

    Source:
        Nahshan et al. 2019, LAPQ (arXiv:1911.07190), for p = 2.4; used by BRECQ, QDrop and others.
    """

    name: ClassVar[str] = "mse"

    p: float = 2.4

    def __post_init__(self) -> None:
        require_power(self.p, self.name)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with every free activation on its best grid."""
        return set_activations(recipe, ctx, self.choose, to_text(self))

    def choose(self, stats: TensorStats, spec: QuantSpec) -> QParams:
        """The grid with the least error over the histogram."""
        return self.choose_at(stats, spec, _zero_points(stats, spec, ends_of(spec)))

    def choose_at(self, stats: TensorStats, spec: QuantSpec, zeros: tuple[int, int]) -> QParams:
        """The same with a zero point from the first to the last of `zeros`."""
        counts, half = without_zeros(stats)
        code_lo, codes = spec.default_code_lo, ends_of(spec)
        full = _full_scale(stats, spec, codes) / stats.width
        tails = _tails(counts, self.p)
        power = (self.p, numeric.power_table(self.p))
        scale = full
        for shares in (COARSE, FINE):
            scale, zero, _ = numeric.search_grid(
                counts, half, tails, scale * shares, (*codes, *zeros), power
            )
        best = np.maximum(np.float32(scale * stats.width), SMALLEST_SCALE)
        lowest = np.asarray(code_lo, np.int32)
        return QParams(spec, np.asarray(best, np.float32), np.asarray(zero, np.int32), lowest)


def ends_of(spec: QuantSpec) -> tuple[int, int]:
    """First and last code of the untuned window."""
    first = spec.default_code_lo
    return first, min(first + spec.levels - 1, spec.container_max)


def grid_error(stats: TensorStats, params: QParams, p: float) -> float:
    """Sum of |error|^p over the histogram of an activation that is stored with these parameters."""
    counts, half = without_zeros(stats)
    zero = int(params.zero_point)
    limits = (int(params.code_lo), int(params.code_hi), zero, zero)
    scale = np.array([float(params.scale) / stats.width])
    tails, power = _tails(counts, p), (p, numeric.power_table(p))
    return numeric.search_grid(counts, half, tails, scale, limits, power)[2] * stats.width**p


def require_power(p: float, name: str) -> None:
    """Raise SpecError unless p is a sensible power."""
    if not 0.5 <= p <= 8.0:
        raise SpecError(f"{name}{{p={p}}}: p must be between 0.5 and 8")


def without_zeros(stats: TensorStats) -> tuple[F64, int]:
    """The filled part of the histogram without the exact zeros, and the index of the bin at 0.

    The part always touches 0, so the index lies between 0 and the number of bins.
    """
    counts = stats.counts.astype(np.float64)
    half = stats.half
    counts[half] -= stats.zeros
    filled = np.flatnonzero(counts)
    low, high = min(int(filled[0]), half), max(int(filled[-1]) + 1, half)
    return counts[low:high], half - low


def _zero_points(stats: TensorStats, spec: QuantSpec, codes: tuple[int, int]) -> tuple[int, int]:
    """First and last zero point worth trying."""
    if spec.signed:
        return 0, 0
    if stats.min >= 0.0:
        return codes[0], codes[0]
    if stats.max <= 0.0:
        return codes[1], codes[1]
    return codes


def _full_scale(stats: TensorStats, spec: QuantSpec, codes: tuple[int, int]) -> float:
    """The scale that covers everything seen."""
    lo, hi = min(stats.min, 0.0), max(stats.max, 0.0)
    if spec.signed:
        return max(lo / codes[0], hi / codes[1])
    return (hi - lo) / (codes[1] - codes[0])


def _tails(counts: F64, p: float) -> tuple[F64, F64]:
    """What clipping costs at each edge, above and below, each [bins + 1], in bins^p."""
    powers = np.asarray((np.arange(counts.size) + 0.5) ** p, np.float64)
    return _tail(counts, powers), _tail(counts[::-1], powers)[::-1].copy()


def _tail(counts: F64, powers: F64) -> F64:
    """Entry i is the sum over j >= i of counts[j] * powers[j - i], by Fourier transform."""
    size = 1 << (2 * counts.size - 1).bit_length()
    product = np.fft.rfft(counts, size) * np.conj(np.fft.rfft(powers, size))
    return np.append(np.maximum(np.fft.irfft(product, size)[: counts.size], 0.0), 0.0)

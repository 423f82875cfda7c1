"""Where to clip a Laplace or Gauss distribution: published constants, and optima of real grids.

All in units of the spread: the mean absolute deviation b of Laplace, the standard deviation of
Gauss. Pure numbers; nothing here knows tensors.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

F64 = npt.NDArray[np.float64]
Prior = Literal["laplace", "gauss"]
Constants = Literal["exact", "published"]
PRIORS: tuple[Prior, ...] = ("laplace", "gauss")

FARTHEST = 16.0
"""No optimum at 8 bits or below clips further out than this many spreads."""


@cache
def published(prior: Prior, bits: int) -> float:
    """The clip value with the least error where rounding is taken for uniform noise in all cells.

    That of a tensor behind a fused Relu is the one of a bit more.

    Args:
        prior: The distribution, with mean 0 and spread 1.
        bits: Width, 0 and up; 2^bits cells lie between -clip and clip.

    Source:
        Banner et al. 2018 (arXiv:1810.05723), section 3; the authors' tables round these to 0.01.
    """

    def error(clip: float) -> float:
        return 2.0 * float(_beyond(prior, clip)) + clip**2 / (3.0 * 4.0**bits)

    return _least(error, 0.05, FARTHEST)


@cache
def mid_rise(prior: Prior, bits: int) -> float:
    """The outer edge of the best 2^bits equal cells around 0, values in the middle of each.

    The outermost values lie half a cell inside of it.
    """
    levels = np.arange(1 << bits, dtype=np.float64)
    return best_step(prior, levels - levels.mean()) * (1 << bits) / 2


@cache
def narrow(prior: Prior, bits: int) -> float:
    """The outermost value of the best grid of 2^bits - 1 values, 0 in the middle."""
    top = (1 << (bits - 1)) - 1
    return best_step(prior, np.arange(-top, top + 1, dtype=np.float64)) * top


@cache
def fused_relu(prior: Prior, bits: int) -> float:
    """The highest of the best 2^bits values from 0 on, for what a Relu leaves of the prior."""
    return best_step(prior, np.arange(1 << bits, dtype=np.float64)) * ((1 << bits) - 1)


@cache
def full(prior: Prior, bits: int) -> float:
    """The best step of the codes -2^(bits-1) .. 2^(bits-1)-1, as weights have."""
    half = 1 << (bits - 1)
    return best_step(prior, np.arange(-half, half, dtype=np.float64))


def best_step(prior: Prior, levels: F64) -> float:
    """The step by which rising multiples, the lowest first, best stand for the prior.

    Where the lowest multiple is 0, the part of the prior below 0 does not count: a Relu made it 0.
    """
    highest = float(np.abs(levels).max())
    return _least(lambda step: grid_error(prior, levels * step), 0.2 / highest, FARTHEST / highest)


def grid_error(prior: Prior, values: F64) -> float:
    """Mean squared error of the prior rounded to the nearest of rising values.

    Where the lowest value is 0, what lies below it counts as 0.
    """
    edges = (values[1:] + values[:-1]) / 2
    first = 0.0 if values[0] == 0.0 else -math.inf
    bounds = np.concatenate([[first], edges, [math.inf]])
    mass, mean, square = (np.diff(moment) for moment in _moments(prior, bounds))
    return float((square - 2.0 * values * mean + values**2 * mass).sum())


def _moments(prior: Prior, x: F64) -> tuple[F64, F64, F64]:
    """Integrals of the density, times 1, x and x^2, from -infinity to each x."""
    finite = np.where(np.isinf(x), 0.0, x)
    if prior == "gauss":
        density = np.where(np.isinf(x), 0.0, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))
        mass = special.ndtr(x)
        return mass, -density, mass - finite * density
    tail = np.exp(-np.abs(x)) / 2
    size = np.abs(finite)
    mass = np.where(x < 0, tail, 1.0 - tail)
    mean = -(1.0 + size) * tail
    square = (size**2 + 2.0 * size + 2.0) * tail
    return mass, mean, np.where(x < 0, square, 2.0 - square)


def _beyond(prior: Prior, clip: float) -> float:
    """Mean squared distance to `clip` of what lies above it, counted 0 for the rest."""
    if prior == "laplace":
        return math.exp(-clip)
    above = 1.0 - float(special.ndtr(clip))
    density = math.exp(-(clip**2) / 2) / math.sqrt(2 * math.pi)
    return (1.0 + clip**2) * above - clip * density


def _least(error: Callable[[float], float], low: float, high: float) -> float:
    """Where an error with one valley is least; a scan keeps the search out of flat ends."""
    scanned = np.geomspace(low, high, 200)
    place = int(np.argmin([error(float(x)) for x in scanned]))
    ends = (float(scanned[max(place - 1, 0)]), float(scanned[min(place + 1, scanned.size - 1)]))
    found = optimize.minimize_scalar(error, bounds=ends, method="bounded", options={"xatol": 1e-7})
    return float(found.x)

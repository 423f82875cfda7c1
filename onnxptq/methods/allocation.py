"""How a budget of bits or of bins is best spread over channels of unequal ranges."""

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

ROUNDS = 10
LEAST_STEP = 0.01


def by_bits(ranges: F64, bits: int, ends: tuple[int, int]) -> I32:
    """Whole widths of channels whose mean is exactly `bits`, with the least sum of squared errors.

    The error of channel i is proportional to ranges[i]^2 / 4^width, so the real optimum is
    bits + log2(range / geometric mean), where that leaves the ends by what is left for the others
    (reverse water-filling). Rounding gives the spare bits to the largest remainders, which is where
    a bit still saves most.

    Args:
        ranges: Spread of each channel, >= 0, [C].
        bits: Mean width.
        ends: Least and largest width of a channel, bits between them.

    Source:
        Cover and Thomas, Elements of Information Theory, section 10.3.3; methods.md 3.
    """
    if not (ranges > 0.0).any():
        return np.full(ranges.shape, bits, np.int32)
    real = _filled(_logarithms(ranges), bits, ends)
    # A hair above: a real width of 3 may have come out as 2.999999.
    whole = np.floor(real + 1e-9)
    spare = ranges.size * bits - int(whole.sum())
    order = np.argsort(whole - real, kind="stable")
    order = order[whole[order] < ends[1]]
    whole[order[:spare]] += 1
    return whole.astype(np.int32)


def by_bins(ranges: F64, bits: int, ends: tuple[int, int]) -> I32:
    """Whole widths of channels for a budget of 2^bits bins a channel, their mean brought to `bits`.

    The rounded optimum 2^width ~ range^(2/3) spends fewer bits than its budget stands for, so the
    budget is raised by half of what is missing until that hardly changes.

    Args:
        ranges: Spread of each channel, >= 0, [C].
        bits: Mean width that is aimed at; the result comes near it.
        ends: Least and largest width of a channel.

    Source:
        Banner et al. 2018 (arXiv:1810.05723), section 4; steps as in the authors' code (methods.md
        3).
    """
    if not (ranges > 0.0).any():
        return np.full(ranges.shape, bits, np.int32)
    shares = ranges ** (2 / 3)
    relative = _logarithms(shares / shares.mean())
    target = float(bits)
    widths = np.empty(0)
    for _ in range(ROUNDS):
        widths = np.clip(np.rint(target + relative), *ends)
        step = (bits - float(widths.mean())) / 2
        if abs(2 * step) <= LEAST_STEP:
            break
        target += step
    return widths.astype(np.int32)


def _logarithms(positive: F64) -> F64:
    """Base 2; of 0, far below all others, but finite."""
    least = positive[positive > 0.0].min() * 2.0**-64
    return np.asarray(np.log2(np.maximum(positive, least)), np.float64)


def _filled(levels: F64, bits: int, ends: tuple[int, int]) -> F64:
    """The levels raised by one height and clipped to the ends, so that their mean is `bits`."""
    low, high = ends[0] - float(levels.max()), ends[1] - float(levels.min())
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(levels + middle, *ends).mean() < bits:
            low = middle
        else:
            high = middle
    return np.asarray(np.clip(levels + (low + high) / 2, *ends), np.float64)

"""Numba for calibrate and methods: one-pass histograms with moments, and range searches.

Nothing here runs a network. Floats are allowed; fastmath is not, so sums are written out in lanes.

Histogram layout. `counts` has 2 * half bins of width 2^exponent. A value x >= 0 falls into bin
half + trunc(x / width), a negative one into half - 1 - trunc(-x / width): bins are aligned at 0 on
both sides, so doubling the width merges neighbours exactly, and the result depends only on the
values seen, never on their order or batching.

State of one tensor or channel, float64 [STATE]: see the constants below.

Versions tried for `update_histogram` (4 M float32, normal / after Relu, one core of a Xeon 2.5 GHz,
2026-11; reading the array alone takes 0.37 ns an element on that machine):
    scalar loop, everything in one                            6.2 ns / 6.7 ns
    chunks of 4096, integer min/max, float64 lanes, scatter    1.6 ns / 2.0 ns
    the same, zeros spread over spare bins                     1.7 ns / 1.7 ns

Versions tried for `weight_errors` (a weight and a candidate, CPU time, same machine):
    float64 sums, which keep LLVM from vectorising             3.8 ns
    float32 sums, one weight at a time                         1.9 ns
    float32 sums, two weights at a time                        see kernels/README.md
    (|e|^2 instead of |e|^p)                                   0.2 ns
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import jit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

EXPONENT, COUNT, ZEROS, NANS, INFS, LOW, HIGH, MEAN, M2 = range(9)
STATE = 9
LOWEST_EXPONENT = -100
"""Width of a bin starts at 2^-100; everything below is one bin, and scales never get that small."""

SMALL = 1024
"""Up to this size a plain loop beats clearing and merging the tables of the fast one (15 us)."""
CHUNK = 4096
LANES = 128
SPARE = 16
"""Extra bins that zeros are spread over: counts in one bin would wait for each other's store."""


def new_state() -> F64:
    """State of a tensor that has seen nothing, [STATE]."""
    state = np.zeros(STATE)
    state[EXPONENT] = LOWEST_EXPONENT
    state[LOW], state[HIGH] = np.inf, -np.inf
    return state


def update_histogram_naive(x: F32, counts: I64, state: F64) -> None:
    """Specification of `update_histogram`: the same result up to rounding of mean and M2.

    Args:
        x: Values, any shape.
        counts: Histogram, changed in place, [2 * half].
        state: Changed in place, [STATE].
    """
    half = counts.size // 2
    flat = x.astype(np.float64).ravel()
    state[NANS] += np.isnan(flat).sum()
    state[INFS] += np.isinf(flat).sum()
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return
    while np.abs(flat).max() >= half * 2.0 ** state[EXPONENT]:
        grow_naive(counts, 1)
        state[EXPONENT] += 1
    steps = np.trunc(np.abs(flat) / 2.0 ** state[EXPONENT]).astype(np.int64)
    np.add.at(counts, np.where(flat < 0, half - 1 - steps, half + steps), 1)
    state[ZEROS] += (flat == 0).sum()
    state[LOW] = min(state[LOW], flat.min())
    state[HIGH] = max(state[HIGH], flat.max())
    before, n = state[COUNT], flat.size
    delta = flat.mean() - state[MEAN]
    state[M2] += ((flat - flat.mean()) ** 2).sum() + delta**2 * before * n / (before + n)
    state[MEAN] += delta * n / (before + n)
    state[COUNT] += n


def grow_naive(counts: I64, doublings: int) -> None:
    """Specification of `grow`: one doubling after the other."""
    for _ in range(doublings):
        counts[:] = _doubled_naive(counts)


def _doubled_naive(counts: I64) -> I64:
    half = counts.size // 2
    doubled = np.zeros_like(counts)
    for i in range(half):
        doubled[half + i // 2] += counts[half + i]
        doubled[half - 1 - i // 2] += counts[half - 1 - i]
    return doubled


@jit
def grow(counts: I64, doublings: int) -> None:
    """Widen the bins of `counts` [2 * half] in place by 2^doublings, merging outward from 0."""
    half = counts.size // 2
    shift = min(doublings, 62)
    for i in range(1, half):
        target = i >> shift
        if target != i:
            up, down = counts[half + i], counts[half - 1 - i]
            counts[half + i] = 0
            counts[half - 1 - i] = 0
            counts[half + target] += up
            counts[half - 1 - target] += down


@jit
def exponent_for(top: float, half: int) -> int:
    """Smallest exponent >= LOWEST_EXPONENT with top < half * 2^exponent."""
    exponent = LOWEST_EXPONENT
    if top > 0.0:
        # frexp by hand: log2 may round up just below a power of two, hence the two repairs.
        exponent = max(exponent, int(np.ceil(np.log2(top / half))))
        while top >= half * 2.0**exponent:
            exponent += 1
        while exponent > LOWEST_EXPONENT and top < half * 2.0 ** (exponent - 1):
            exponent -= 1
    return exponent


@jit
def _from_key(key: int) -> float:
    """The float32 whose order-preserving integer is `key`."""
    bits = np.int32(key ^ ((key >> 31) & 0x7FFFFFFF))
    return float(np.int32(bits).view(np.float32))


@jit
def _scan(bits: I32) -> tuple[int, int, int, int]:
    """Largest |x| (as bits), smallest and largest x (as ordered integers), number of zeros."""
    top = np.int32(0)
    low = np.int32(2147483647)
    high = np.int32(-2147483648)
    zeros = np.int32(0)
    for i in range(bits.size):
        b = bits[i]
        size = np.int32(b & np.int32(0x7FFFFFFF))
        key = np.int32(b ^ np.int32(np.int32(b >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        top = size if size > top else top
        low = key if key < low else low
        high = key if key > high else high
        zeros = np.int32(zeros + np.int32(size == np.int32(0)))
    return int(top), int(low), int(high), int(zeros)


@jit
def _moments(x: F32, pivot: float, sums: F64, squares: F64) -> tuple[float, float]:
    """Sum of x - pivot and of its square, in float64 and LANES lanes."""
    sums[:] = 0.0
    squares[:] = 0.0
    rows = x.size // LANES
    for r in range(rows):
        row = x[r * LANES : (r + 1) * LANES]
        for j in range(LANES):
            d = np.float64(row[j]) - pivot
            sums[j] += d
            squares[j] += d * d
    first, second = 0.0, 0.0
    for j in range(LANES):
        first += sums[j]
        second += squares[j]
    for i in range(rows * LANES, x.size):
        d = np.float64(x[i]) - pivot
        first += d
        second += d * d
    return first, second


@jit
def _index(x: F32, inverse: float, half: int, index: npt.NDArray[np.uint32]) -> None:
    """Bin of each value; zeros go to the spare bins behind the histogram in turn."""
    scale, middle, spare = np.float32(inverse), np.int32(half), np.int32(2 * half)
    for i in range(x.size):
        value = x[i]
        negative = np.int32(value < np.float32(0))
        bin_ = np.int32(np.int32(value * scale) + np.int32(middle - negative))
        other = np.int32(spare + np.int32(np.int32(i) & np.int32(SPARE - 1)))
        index[i] = other if value == np.float32(0) else bin_


@jit
def _scatter(index: npt.NDArray[np.uint32], even: I32, odd: I32) -> None:
    """Count bins in two tables in turn, so that equal neighbours do not wait for each other."""
    pairs = index.size // 2
    for r in range(pairs):
        two = index[2 * r : 2 * r + 2]
        even[two[0]] += np.int32(1)
        odd[two[1]] += np.int32(1)
    if index.size % 2:
        even[index[index.size - 1]] += np.int32(1)


@jit
def _flush(even: I32, odd: I32, counts: I64) -> None:
    for i in range(counts.size):
        counts[i] += np.int64(even[i]) + np.int64(odd[i])
    even[:] = 0
    odd[:] = 0


@jit
def _finite(x: F32, scratch: F32, state: F64) -> int:
    """Copy the finite values of `x` to `scratch`, count the others, give how many were copied."""
    kept = 0
    for i in range(x.size):
        if np.isnan(x[i]):
            state[NANS] += 1
        elif np.isinf(x[i]):
            state[INFS] += 1
        else:
            scratch[kept] = x[i]
            kept += 1
    return kept


@jit
def _merge(state: F64, n: int, first: float, second: float, pivot: float) -> None:
    """Fold a chunk's sums about `pivot` into count, mean and M2 (Chan et al. 1979, eq. 2.1)."""
    before = state[COUNT]
    mean = pivot + first / n
    delta = mean - state[MEAN]
    state[M2] += max(0.0, second - first * first / n) + delta * delta * before * n / (before + n)
    state[MEAN] += delta * n / (before + n)
    state[COUNT] = before + n


@jit
def update_histogram(x: F32, counts: I64, state: F64) -> None:
    """Fold the values of `x` into histogram and moments, reading each once.

    Args:
        x: Values, flat and contiguous, [n]. NaN and inf are counted and left out of all else.
        counts: Histogram, changed in place, [2 * half].
        state: Changed in place, [STATE].
    """
    half = counts.size // 2
    if x.size <= SMALL:
        _update_row(x, counts, state, half)
        return
    even = np.zeros(2 * half + SPARE, np.int32)
    odd = np.zeros(2 * half + SPARE, np.int32)
    index = np.empty(CHUNK, np.uint32)
    scratch = np.empty(CHUNK, np.float32)
    sums, squares = np.empty(LANES), np.empty(LANES)
    for start in range(0, x.size, CHUNK):
        part = x[start : start + CHUNK]
        top, low, high, zeros = _scan(part.view(np.int32))
        if top >= 0x7F800000:
            part = scratch[: _finite(part, scratch, state)]
            if part.size == 0:
                continue
            top, low, high, zeros = _scan(part.view(np.int32))
        exponent = exponent_for(_from_key(top), half)
        if exponent > state[EXPONENT]:
            _flush(even, odd, counts)
            grow(counts, exponent - int(state[EXPONENT]))
            state[EXPONENT] = exponent
        counts[half] += zeros
        state[ZEROS] += zeros
        # + 0.0 turns -0.0 into 0.0
        state[LOW] = min(state[LOW], _from_key(low) + 0.0)
        state[HIGH] = max(state[HIGH], _from_key(high) + 0.0)
        pivot = state[MEAN] if state[COUNT] > 0 else np.float64(part[0])
        first, second = _moments(part, pivot, sums, squares)
        _merge(state, part.size, first, second, pivot)
        _index(part, 2.0 ** -state[EXPONENT], half, index)
        _scatter(index[: part.size], even, odd)
    _flush(even, odd, counts)


def update_channels_naive(x: F32, counts: I64, state: F64) -> None:
    """Specification of `update_channels`: `update_histogram_naive` of each channel by itself."""
    for channel in range(x.shape[1]):
        update_histogram_naive(x[:, channel], counts[channel], state[channel])


@jit
def update_channels(x: F32, counts: I64, state: F64) -> None:
    """Fold `x` into one histogram and one set of moments a channel.

    Args:
        x: Values, contiguous, [N, C, inner].
        counts: Histograms, changed in place, [C, 2 * half].
        state: Changed in place, [C, STATE].
    """
    half = counts.shape[1] // 2
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            _update_row(x[n, c], counts[c], state[c], half)


@jit
def _update_row(row: F32, counts: I64, state: F64, half: int) -> None:
    top = 0.0
    for i in range(row.size):
        size = abs(row[i])
        if np.isfinite(size):
            top = max(top, size)
    if row.size == 0:
        return
    exponent = exponent_for(top, half)
    if exponent > state[EXPONENT]:
        grow(counts, exponent - int(state[EXPONENT]))
        state[EXPONENT] = exponent
    inverse = 2.0 ** -state[EXPONENT]
    pivot = state[MEAN] if state[COUNT] > 0 else np.float64(row[0])
    if not np.isfinite(pivot):
        pivot = 0.0
    first, second, kept = 0.0, 0.0, 0
    for i in range(row.size):
        value = np.float64(row[i])
        if np.isnan(value):
            state[NANS] += 1
        elif np.isinf(value):
            state[INFS] += 1
        else:
            kept += 1
            first += value - pivot
            second += (value - pivot) ** 2
            state[LOW] = min(state[LOW], value + 0.0)
            state[HIGH] = max(state[HIGH], value + 0.0)
            state[ZEROS] += value == 0.0
            counts[int(value * inverse) + half - int(value < 0)] += 1
    if kept:
        _merge(state, kept, first, second, pivot)


POWER_TABLE = 1024


def power_table(p: float) -> F64:
    """(i / POWER_TABLE / 2)^p for i = 0..POWER_TABLE, plus one entry to interpolate into."""
    return (np.arange(POWER_TABLE + 2) / (2 * POWER_TABLE)) ** p


def search_grid_naive(
    counts: F64,
    half: int,
    tails: tuple[F64, F64],  # noqa: ARG001 - what a range clips is summed anew here
    scales: F64,
    limits: tuple[int, int, int, int],
    power: tuple[float, F64],
) -> tuple[float, int, float]:
    """Specification of `search_grid`: try all pairs, all values in the middle of their bins."""
    middles = np.arange(counts.size) - half + 0.5
    best = (0.0, 0, np.inf)
    for scale in scales:
        for zero in range(limits[2], limits[3] + 1):
            codes = np.clip(np.rint(middles / scale), limits[0] - zero, limits[1] - zero)
            error = float((counts * np.abs(middles - scale * codes) ** power[0]).sum())
            if error < best[2]:
                best = (float(scale), zero, error)
    return best


@jit
def search_grid(
    counts: F64,
    half: int,
    tails: tuple[F64, F64],
    scales: F64,
    limits: tuple[int, int, int, int],
    power: tuple[float, F64],
) -> tuple[float, int, float]:
    """Scale and zero point with the least sum of |error|^p over a histogram; units are bins.

    Inside of the range the error does not depend on the zero point, because the grid is all
    multiples of the scale: one prefix sum a scale, then each zero point costs four look-ups. Bins
    finer than half a step count their middle; coarser ones the mean over a step.

    Args:
        counts: Histogram without the exact zeros, [bins].
        half: Index of the bin that starts at 0; may lie outside.
        tails: Cost of all above (below) if clipped at edge i, each [bins + 1].
        scales: Candidates, [S].
        limits: Lowest and highest code, lowest and highest zero point to try.
        power: p and `power_table(p)`.

    Returns:
        Scale in bins, zero point, error.
    """
    bins = counts.size
    above, below = tails
    code_lo, code_hi, zero_lo, zero_hi = limits
    p, table = power
    inner = np.zeros(bins + 1)
    best_scale, best_zero, best = 0.0, 0, np.inf
    for scale in scales:
        inverse, unit = 1.0 / scale, scale**p
        flat = 1.0 / ((p + 1.0) * 2.0**p)
        for i in range(bins):
            share = flat
            if scale > 2.0:
                steps = (i - half + 0.5) * inverse
                place = abs(steps - np.rint(steps)) * (2 * POWER_TABLE)
                k = int(place)
                share = table[k] + (table[k + 1] - table[k]) * (place - k)
            inner[i + 1] = inner[i] + counts[i] * unit * share
        for zero in range(zero_lo, zero_hi + 1):
            low = min(max((code_lo - zero) * scale + half, 0.0), float(bins))
            high = min(max((code_hi - zero) * scale + half, 0.0), float(bins))
            error = _at(inner, high) - _at(inner, low) + _at(above, high) + _at(below, low)
            if error < best:
                best_scale, best_zero, best = scale, zero, error
    return best_scale, best_zero, best


@jit
def _at(values: F64, place: float) -> float:
    """Linear interpolation in values given at 0, 1, 2, ..."""
    k = min(int(place), values.size - 2)
    return values[k] + (values[k + 1] - values[k]) * (place - k)


def divergence_naive(counts: F64, low: int, high: int, step: float, half: int) -> float:
    """Specification of `divergence`, with dicts."""
    inside = counts[low:high]
    p = inside.copy()
    p[0] += counts[:low].sum()
    p[-1] += counts[high:].sum()
    cells = np.rint((np.arange(low, high) - half + 0.5) / step).astype(int)
    q = np.zeros_like(p)
    for cell in set(cells.tolist()):
        members = (cells == cell) & (p > 0)
        if members.any():
            q[members] = inside[cells == cell].sum() / members.sum()
    if inside.sum() == 0:
        return np.inf
    filled = p > 0
    share_p = p[filled] / p.sum()
    share_q = (1 - SMOOTH) * q[filled] / q.sum() + SMOOTH / filled.sum()
    return float((share_p * np.log(share_p / share_q)).sum())


SMOOTH = 1e-4
"""Share spread over all filled bins, so that bins of clipped values alone have no log of 0."""


@jit
def divergence(counts: F64, low: int, high: int, step: float, half: int) -> float:
    """Kullback-Leibler divergence of a clipped histogram from what is left of it on a grid.

    The reference has the clipped values in its first and last bin; the candidate has them not, and
    each cell of the grid is spread evenly over those of its bins that are filled.

    Args:
        counts: Histogram without the exact zeros, [bins].
        low: First bin inside of the range.
        high: Last bin inside, plus 1.
        step: Step of the grid in bins; one of its points is at the bin edge `half`.
        half: Index of the bin that starts at 0.

    Source:
        Migacz 2017, "8-bit inference with TensorRT"; smoothing by a mixture is ours.
    """
    under, inside, over = 0.0, 0.0, 0.0
    for i in range(counts.size):
        if i < low:
            under += counts[i]
        elif i < high:
            inside += counts[i]
        else:
            over += counts[i]
    if inside <= 0.0:
        return np.inf
    total = under + inside + over
    filled = 0
    for i in range(low, high):
        extra = (under if i == low else 0.0) + (over if i == high - 1 else 0.0)
        filled += counts[i] + extra > 0.0
    result, start = 0.0, low
    while start < high:
        stop, mass, members = _cell(counts, start, high, step, half)
        first_extra = start == low and counts[low] == 0.0 and under > 0.0
        last_extra = stop == high and counts[high - 1] == 0.0 and over > 0.0
        if stop - 1 == low and first_extra and last_extra:
            last_extra = False
        members += int(first_extra) + int(last_extra)
        for i in range(start, stop):
            extra = (under if i == low else 0.0) + (over if i == high - 1 else 0.0)
            mass_p = counts[i] + extra
            if mass_p > 0.0:
                share_p = mass_p / total
                share_q = (1.0 - SMOOTH) * mass / members / inside + SMOOTH / filled
                result += share_p * np.log(share_p / share_q)
        start = stop
    return result


@jit
def _cell(counts: F64, start: int, high: int, step: float, half: int) -> tuple[int, float, int]:
    """End, mass and number of filled bins of the grid cell that begins at bin `start`."""
    cell = np.rint((start - half + 0.5) / step)
    stop, mass, members = start, 0.0, 0
    while stop < high and np.rint((stop - half + 0.5) / step) == cell:
        mass += counts[stop]
        members += int(counts[stop] > 0.0)
        stop += 1
    return stop, mass, members


@jit
def search_divergence(counts: F64, half: int, reaches: I64, levels: int) -> int:
    """The reach (bins on each side of 0) whose clipped grid diverges least; the larger of equals.

    Args:
        counts: Histogram without the exact zeros, [bins].
        half: Index of the bin that starts at 0, between 0 and bins.
        reaches: Candidates, [R], ascending.
        levels: Number of codes.
    """
    best, best_reach = np.inf, reaches[reaches.size - 1]
    for reach in reaches:
        low, high = max(half - reach, 0), min(half + reach, counts.size)
        if high <= low:
            continue
        result = divergence(counts, low, high, (high - low) / (levels - 1), half)
        if result <= best:
            best, best_reach = result, reach
    return best_reach


def weight_errors_naive(
    row: F32, inverses: F32, codes: tuple[F32, F32], p: float, errors: F32
) -> None:
    """Specification of `weight_errors`."""
    steps = row[:, None] * inverses
    sizes = np.abs(steps - np.clip(np.rint(steps), *codes)).astype(np.float64)
    errors[:] = (sizes**p).sum(axis=0)


@jit
def weight_errors(row: F32, inverses: F32, codes: tuple[F32, F32], p: float, errors: F32) -> None:
    """Sum of |error / scale|^p over a row of weights for each candidate grid.

    The loop over candidates is inside, so it vectorises without reordering any sum (with float64
    sums it would not); two weights at a time hide the latency of the power. That is 2^(p log2 e) by
    polynomials, off by less than 2e-4 relative, much less than neighbouring candidates differ.

    Args:
        row: Weights, [K].
        inverses: 1 / scale, [S].
        codes: Lowest and highest code, each [S].
        p: Power.
        errors: The result, changed in place, [S].
    """
    lows, highs = codes
    power = np.float32(p)
    errors[:] = np.float32(0)
    for pair in range(row.size // 2):
        first, second = row[2 * pair], row[2 * pair + 1]
        for k in range(inverses.size):
            inverse, low, high = inverses[k], lows[k], highs[k]
            errors[k] += np.float32(
                _weight_error(first, inverse, low, high, power)
                + _weight_error(second, inverse, low, high, power)
            )
    if row.size % 2:
        for k in range(inverses.size):
            errors[k] += _weight_error(row[row.size - 1], inverses[k], lows[k], highs[k], power)


@jit
def _weight_error(
    weight: np.float32, inverse: np.float32, low: np.float32, high: np.float32, p: np.float32
) -> np.float32:
    """|error / scale|^p of one weight on one grid."""
    steps = np.float32(weight * inverse)
    # Adding and taking off 1.5 * 2^23 rounds half to even, as QuantizeLinear does.
    code = np.float32(np.float32(steps + ROUNDER) - ROUNDER)
    code = low if code < low else code
    code = high if code > high else code
    return _power(np.float32(np.float32(abs(np.float32(steps - code))) + TINY), p)


ROUNDER = np.float32(12582912.0)
TINY = np.float32(1e-10)


@jit
def _power(x: np.float32, p: np.float32) -> np.float32:
    """x^p for x in [1e-10, 2^20]: exponent and mantissa apart, polynomials good to 2e-4."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32(np.int32(np.int32(bits >> np.int32(23)) - np.int32(127)))
    mantissa = np.int32(np.int32(bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000))
    m = np.float32(np.float32(np.int32(mantissa).view(np.float32)) - np.float32(1))
    m2 = np.float32(m * m)
    near = np.float32(np.float32(0.441917) + np.float32(m * np.float32(-0.267179)))
    far = np.float32(np.float32(0.148427) + np.float32(m * np.float32(-0.045149)))
    bend = np.float32(near + np.float32(m2 * far))
    log = np.float32(m + np.float32(np.float32(m - m2) * bend))  # log2(1 + m), off by 2e-5
    y = np.float32(np.float32(exponent + log) * p)
    y = np.float32(-100.0) if y < np.float32(-100.0) else y
    # The magic number's low bits hold round(y) + 127: shifted, they are the exponent of 2^round(y).
    shifted = np.float32(y + np.float32(12582912.0 + 127.0))
    whole = np.float32(shifted - np.float32(12582912.0 + 127.0))
    f = np.float32(y - whole)
    linear = np.float32(np.float32(1) + np.float32(f * np.float32(0.693112)))
    curved = np.float32(np.float32(0.242225) + np.float32(f * np.float32(0.055977)))
    fraction = np.float32(linear + np.float32(np.float32(f * f) * curved))
    scale = np.int32(np.int32(np.float32(shifted).view(np.int32)) << np.int32(23))
    return np.float32(fraction * np.float32(np.int32(scale).view(np.float32)))


BLOCK = 16
"""Shrinks tried at once."""
STRIDE = 3
"""Every third shrink is tried, then those around the best one."""
HOPELESS = 2.0
"""Stop shrinking where a whole block was this much worse than the best: clipping only grows."""


def search_weights_naive(
    rows: F32, shrinks: F32, grids: I32, p: float, scales: F32, chosen: I32
) -> None:
    """Specification of `search_weights`, which may miss it by a shrink of nearly equal error."""
    for c, row in enumerate(rows):
        full = np.float32(np.abs(row).max(initial=0) / np.float32(grids[0, 1]))
        scales[c], chosen[c] = full, 0
        best = np.inf
        for share in shrinks if full > 0 else []:
            scale = np.float32(full * share)
            for g, (low, high) in enumerate(grids):
                steps = row.astype(np.float64) / scale
                sizes = np.abs(steps - np.clip(np.rint(steps), low, high))
                error = (sizes**p).sum() * float(share) ** p
                if error < best:
                    best, scales[c], chosen[c] = error, scale, g


@jit
def search_weights(rows: F32, shrinks: F32, grids: I32, p: float, scales: F32, chosen: I32) -> None:
    """For each row the scale and the grid with the least sum of |error|^p.

    Args:
        rows: Weights, one output channel a row, [C, K].
        shrinks: Factors on the scale that fits the largest weight into the highest code, falling;
            the last one is tried whatever its place, [S].
        grids: Lowest and highest code of each grid, the preferred one first, [G, 2].
        p: Power.
        scales: Result, [C]; 0 or tiny where a row is all zero or nearly.
        chosen: Result, index of the grid, [C].
    """
    top_code = np.float32(grids[0, 1])
    for c in range(rows.shape[0]):
        top = np.float32(0)
        for i in range(rows.shape[1]):
            size = np.float32(abs(rows[c, i]))
            top = size if size > top else top
        full = np.float32(top / top_code)
        scales[c], chosen[c] = full, 0
        if full > np.float32(1e-30):
            share, chosen[c] = _search_row(rows[c], full, shrinks, grids, p)
            scales[c] = np.float32(full * share)


@jit
def _search_row(
    row: F32, full: np.float32, shrinks: F32, grids: I32, p: float
) -> tuple[np.float32, int]:
    """The shrink and the grid of one row."""
    best, best_share, best_grid, best_place = np.inf, np.float32(1), 0, 0
    last = shrinks.size - 1
    for start in range(0, last, BLOCK * STRIDE):
        block = shrinks[start : min(start + BLOCK * STRIDE, last) : STRIDE].copy()
        error, place, grid = _best_of(row, full, block, grids, p)
        if error < best:
            best, best_share, best_grid = error, block[place], grid
            best_place = start + place * STRIDE
        if error > HOPELESS * best:
            break
    near = np.empty(2 * STRIDE, np.float32)
    near[0] = shrinks[last]
    for i in range(1, 2 * STRIDE):
        near[i] = shrinks[min(max(best_place + i - STRIDE, 0), last - 1)]
    error, place, grid = _best_of(row, full, near, grids, p)
    if error < best:
        best_share, best_grid = near[place], grid
    return best_share, best_grid


@jit
def _best_of(
    row: F32, full: np.float32, shares: F32, grids: I32, p: float
) -> tuple[float, int, int]:
    """Least error of a few shrinks on all grids, with the place of the shrink and of the grid."""
    count = shares.size * grids.shape[0]
    inverses, errors = np.empty(count, np.float32), np.empty(count, np.float32)
    lows, highs = np.empty(count, np.float32), np.empty(count, np.float32)
    for g in range(grids.shape[0]):
        for s in range(shares.size):
            k = g * shares.size + s
            inverses[k] = np.float32(1) / np.float32(full * shares[s])
            lows[k], highs[k] = grids[g, 0], grids[g, 1]
    weight_errors(row, inverses, (lows, highs), p, errors)
    best, best_share, best_grid = np.inf, 0, 0
    for k in range(count):
        error = np.float64(errors[k]) * np.float64(shares[k % shares.size]) ** p
        if error < best:
            best, best_share, best_grid = error, k % shares.size, k // shares.size
    return best, best_share, best_grid

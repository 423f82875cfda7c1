"""Stats: what calibration saw of each value, folded in batch by batch in constant memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.calibrate.ports import Array
from onnxptq.errors import CalibrationError
from onnxptq.kernels import numeric

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

HALF_BINS = 8192
"""Bins on each side of 0: at 8 bits at least 16 a step, 2 where 7/8 of the range are clipped."""
CHANNEL_HALF_BINS = 128


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStats:
    """What was seen of each channel (axis 1) of a value, all [C] but `counts`.

    Attributes:
        min: Smallest value.
        max: Largest value.
        mean: Mean.
        variance: Mean squared distance from the mean.
        mad: Mean absolute distance from the mean, from the histogram.
        counts: Histograms, [C, bins]; bin i of channel c starts at lo[c] + i * width[c].
        lo: Start of the first bin.
        width: Width of a bin.
    """

    min: F64
    max: F64
    mean: F64
    variance: F64
    mad: F64
    counts: I64
    lo: F64
    width: F64


@dataclass(frozen=True, slots=True, eq=False)
class TensorStats:
    """What was seen of one value; only `mean` and `variance` depend on the batching, by 1e-12.

    Attributes:
        samples: Samples that were fed.
        count: Finite numbers seen; everything below is about those.
        zeros: How many were exactly 0.
        min: Smallest value.
        max: Largest value.
        mean: Mean.
        variance: Mean squared distance from the mean.
        mad: Mean absolute distance from the mean, from the histogram.
        counts: Histogram, [bins]; bin i starts at lo + i * width, and one bin starts at 0.
        lo: Start of the first bin.
        width: Width of a bin, a power of two.
        nan_count: NaNs seen.
        inf_count: Infinities seen.
        channels: The same per channel, if that was asked for and the value has an axis 1.
    """

    samples: int
    count: int
    zeros: int
    min: float
    max: float
    mean: float
    variance: float
    mad: float
    counts: I64
    lo: float
    width: float
    nan_count: int = 0
    inf_count: int = 0
    channels: ChannelStats | None = None

    @property
    def half(self) -> int:
        """Index of the bin that starts at 0."""
        return self.counts.size // 2

    def centres(self) -> F64:
        """Middle of each bin, [bins]."""
        return np.asarray(self.lo + (np.arange(self.counts.size) + 0.5) * self.width, np.float64)

    @classmethod
    def of(cls, x: Array, channels: bool = False) -> "TensorStats":
        """Statistics of one array, as one sample."""
        stats = Stats(channels=("x",) if channels else ())
        stats.update("x", x)
        stats.samples = 1
        return stats["x"]


class _Accumulator:
    """Histogram and moments of one value while calibration runs."""

    __slots__ = ("channel_counts", "channel_state", "counts", "state")

    def __init__(self) -> None:
        self.counts: I64 = np.zeros(2 * HALF_BINS, np.int64)
        self.state: F64 = numeric.new_state()
        self.channel_counts: I64 | None = None
        self.channel_state: F64 | None = None

    def update(self, x: npt.NDArray[np.float32], per_channel: bool, name: str) -> None:
        numeric.update_histogram(x.reshape(-1), self.counts, self.state)
        if not per_channel or x.ndim < 2 or not x.size:
            return
        channels = x.shape[1]
        if self.channel_counts is None or self.channel_state is None:
            self.channel_counts = np.zeros((channels, 2 * CHANNEL_HALF_BINS), np.int64)
            self.channel_state = np.tile(numeric.new_state(), (channels, 1))
        if self.channel_counts.shape[0] != channels:
            raise CalibrationError(
                f"value {name!r} has {channels} channels now and had "
                f"{self.channel_counts.shape[0]} before; its channels cannot be measured"
            )
        rows = x.reshape(x.shape[0], channels, -1)
        numeric.update_channels(rows, self.channel_counts, self.channel_state)


class Stats(Mapping[str, TensorStats]):
    """Statistics by value name.

    Attributes:
        samples: Samples that were fed so far.
        channels: Values of which channels are measured too.
        model_digest: The model they were measured on; "" if nobody said.
        data_digest: The data they were measured with; "" if that cannot be known.
    """

    def __init__(
        self, channels: Sequence[str] = (), model_digest: str = "", data_digest: str = ""
    ) -> None:
        self.samples = 0
        self.channels = frozenset(channels)
        self.model_digest, self.data_digest = model_digest, data_digest
        self.accumulators: dict[str, _Accumulator] = {}

    def update(self, name: str, array: Array) -> None:
        """Fold one more array of the value `name` in; the array is not kept."""
        x = np.ascontiguousarray(array, np.float32)
        accumulator = self.accumulators.get(name)
        if accumulator is None:
            accumulator = self.accumulators.setdefault(name, _Accumulator())
        accumulator.update(x, name in self.channels, name)

    def require_finite(self, name: str) -> None:
        """Raise CalibrationError if NaN or inf was seen in `name`."""
        state = self.accumulators[name].state
        nans, infs = int(state[numeric.NANS]), int(state[numeric.INFS])
        if nans or infs:
            raise CalibrationError(
                f"value {name!r} was NaN {nans} times and inf {infs} times "
                f"in {self.samples} samples: no range to fit. "
                f"Check the data, or keep its node in float with --float"
            )

    def __getitem__(self, name: str) -> TensorStats:
        accumulator = self.accumulators[name]
        state, counts = accumulator.state, accumulator.counts
        zeros = int(state[numeric.ZEROS])
        count = int(state[numeric.COUNT])
        mad = _mad(counts[None], state[None])[0]
        return TensorStats(
            samples=self.samples,
            count=count,
            zeros=zeros,
            min=float(state[numeric.LOW]) if count else 0.0,
            max=float(state[numeric.HIGH]) if count else 0.0,
            mean=float(state[numeric.MEAN]),
            variance=float(state[numeric.M2]) / max(count, 1),
            mad=float(mad),
            counts=counts,
            lo=-HALF_BINS * _width(state[numeric.EXPONENT]),
            width=_width(state[numeric.EXPONENT]),
            nan_count=int(state[numeric.NANS]),
            inf_count=int(state[numeric.INFS]),
            channels=_channel_stats(accumulator),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.accumulators)

    def __len__(self) -> int:
        return len(self.accumulators)


def _width(exponent: float) -> float:
    return float(2.0**exponent)


def _mad(counts: I64, state: F64) -> F64:
    """Mean absolute distance from the mean, [C], from histograms [C, bins].

    Zeros are exact, the rest sits in the middle of its bin: off by at most half a bin.
    """
    half = counts.shape[1] // 2
    width = 2.0 ** state[:, numeric.EXPONENT]
    middles = (np.arange(2 * half) - half + 0.5) * width[:, None]
    mean, zeros = state[:, numeric.MEAN], state[:, numeric.ZEROS]
    others = counts.astype(np.float64)
    others[:, half] -= zeros
    total = (others * np.abs(middles - mean[:, None])).sum(axis=1) + zeros * np.abs(mean)
    return total / np.maximum(state[:, numeric.COUNT], 1)


def _channel_stats(accumulator: _Accumulator) -> ChannelStats | None:
    counts, state = accumulator.channel_counts, accumulator.channel_state
    if counts is None or state is None:
        return None
    width = 2.0 ** state[:, numeric.EXPONENT]
    return ChannelStats(
        min=state[:, numeric.LOW],
        max=state[:, numeric.HIGH],
        mean=state[:, numeric.MEAN],
        variance=state[:, numeric.M2] / np.maximum(state[:, numeric.COUNT], 1),
        mad=_mad(counts, state),
        counts=counts,
        lo=-CHANNEL_HALF_BINS * width,
        width=width,
    )

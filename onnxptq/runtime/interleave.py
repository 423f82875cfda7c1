"""Times of several contestants, taken in turns, so that a slower machine is slower for all of them.

A turn is fair to whoever has it. It begins when no thread of this process computes any more:
onnxruntime's threads spin for some time after a run, in case there is more work, and would take a
core from the next contestant. Then come runs that are not counted, which wake threads up and bring
weights back into the caches, so that a time is that of one run among many.

Tried (int8 in onnxruntime 1.32.0, 2 threads, ResNet-18 and ResNet-20, in turns with the executor,
Sapphire Rapids, 2026-11):
    default options                              4.5 ms   0.27 ms   kept: its best time
    session.force_spinning_stop=1                4.7 ms   0.28 ms
    session.intra_op.allow_spinning=0            5.3 ms   0.37 ms
    default, without runs that are not counted   5.5 ms   0.38 ms
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

F64 = npt.NDArray[np.float64]

WARM_RUNS, WARM_SECONDS = 2, 0.03
"""What comes before each counted run, at least."""
QUIET_SECONDS, QUIET_SHARE = 0.001, 0.2
"""The process is quiet if it used less than this share of one core for so long."""
MOST_SECONDS_TO_QUIET = 0.25
CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
"""Of the resampling: equal times give equal intervals."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one contestant's median time compares with another's.

    Attributes:
        ratio: Median of the first by median of the second; below 1 the first is faster.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float


def orders(count: int) -> list[list[int]]:
    """Orders in which each contestant has each place, and follows each other one, equally often.

    Source:
        Williams 1949, Experimental designs balanced for the estimation of residual effects of
        treatments: one Latin square for an even number, two for an odd one.
    """
    ends = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    square = [[(place + shift) % count for place in ends] for shift in range(count)]
    return square if count % 2 == 0 else [*square, *([*reversed(row)] for row in square)]


def interleaved(
    contestants: Sequence[Callable[[], object]],
    runs: int,
    told: Callable[[], None] = lambda: None,
) -> F64:
    """Seconds of each contestant's runs, [contestants, runs].

    Args:
        contestants: Each call is one run.
        runs: Counted runs of each.
        told: Called after each turn.
    """
    seconds = np.zeros((len(contestants), runs))
    turns = orders(len(contestants))
    for contestant in contestants:
        contestant()  # compiles, plans, allocates
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        for run in range(runs):
            for number in turns[run % len(turns)]:
                seconds[number, run] = _turn(contestants[number])
                told()
    finally:
        if collects:
            gc.enable()
    return seconds


def _turn(contestant: Callable[[], object]) -> float:
    settle()
    warm, end = 0, time.perf_counter() + WARM_SECONDS
    while warm < WARM_RUNS or time.perf_counter() < end:
        contestant()
        warm += 1
    begun = time.perf_counter()
    contestant()
    return time.perf_counter() - begun


def settle() -> None:
    """Wait until no thread of this process computes."""
    end = time.perf_counter() + MOST_SECONDS_TO_QUIET
    while time.perf_counter() < end:
        begun, used = time.perf_counter(), time.process_time()
        time.sleep(QUIET_SECONDS)
        if time.process_time() - used < QUIET_SHARE * (time.perf_counter() - begun):
            return


def ratio(first: F64, second: F64) -> Ratio:
    """Ratio of medians with its interval, by resampling rounds: both ran in each, [runs] each."""
    value = float(np.median(first) / np.median(second))
    if first.size < 2:
        return Ratio(value, value, value)

    def of_medians(a: F64, b: F64, axis: int = -1) -> F64:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    found = stats.bootstrap(
        (first, second),
        of_medians,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Ratio(value, float(found.low), float(found.high))

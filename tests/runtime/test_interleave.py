"""Turns are balanced, and the ratio of medians comes with an interval that holds the truth."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from onnxptq.runtime import interleave
from onnxptq.runtime.interleave import interleaved, orders, ratio, settle


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the least number of runs before a counted one."""
    monkeypatch.setattr(interleave, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(interleave, "MOST_SECONDS_TO_QUIET", 0.0)


@pytest.mark.parametrize("count", range(1, 9))
def test_everyone_has_each_place_equally_often(count: int) -> None:
    square = orders(count)

    for column in zip(*square, strict=True):
        assert set(Counter(column).values()) == {len(square) // count}


@pytest.mark.parametrize("count", range(2, 9))
def test_everyone_follows_each_other_equally_often(count: int) -> None:
    followed = Counter(pair for order in orders(count) for pair in pairwise(order))

    assert len(followed) == count * (count - 1)
    assert len(set(followed.values())) == 1


@pytest.mark.usefixtures("quick")
def test_turns_are_taken_in_these_orders() -> None:
    seen: list[str] = []
    names = "abc"

    interleaved([lambda name=name: seen.append(name) for name in names], 6)

    first, turns = seen[: len(names)], seen[len(names) :]
    assert first == list(names)
    each = interleave.WARM_RUNS + 1
    blocks = [turns[i : i + each] for i in range(0, len(turns), each)]
    assert all(len(set(block)) == 1 for block in blocks)
    expected = [names[number] for order in orders(3) for number in order]
    assert [block[0] for block in blocks] == expected


class Clock:
    """A clock of its own, for a process that computes for `busy` seconds of it."""

    def __init__(self, busy: float = 0.0) -> None:
        self.now = 0.0
        self.busy = busy

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return min(self.now, self.busy)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_only_the_last_run_of_a_turn_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(), list[int]()
    monkeypatch.setattr(interleave, "time", clock)
    monkeypatch.setattr(interleave, "WARM_SECONDS", 0.0)
    first, turn = [50.0], [*(2.0,) * interleave.WARM_RUNS, 0.25]
    runs = iter(first + turn * 3)

    seconds = interleaved([lambda: clock.sleep(next(runs))], 3, lambda: told.append(1))

    assert seconds.tolist() == [[0.25] * 3]
    assert len(told) == 3


def test_short_runs_are_repeated_before_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = Clock(), list[float]()
    monkeypatch.setattr(interleave, "time", clock)

    def run() -> None:
        runs.append(clock.now)
        clock.sleep(0.001)

    interleaved([run], 1)

    assert len(runs) == pytest.approx(2 + interleave.WARM_SECONDS / 0.001, abs=1)


@pytest.mark.parametrize(
    ("busy", "waited"), [(0.0, 0.001), (0.05, 0.051), (99.0, interleave.MOST_SECONDS_TO_QUIET)]
)
def test_a_turn_begins_when_no_thread_computes(
    busy: float, waited: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(busy)
    monkeypatch.setattr(interleave, "time", clock)

    settle()

    assert clock.now == pytest.approx(waited, abs=0.0015)


def test_equal_times_are_a_ratio_of_one() -> None:
    times = np.full(30, 0.25)

    found = ratio(times, times)

    assert (found.ratio, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_interval_holds_the_true_ratio(rng: np.random.Generator) -> None:
    held = 0
    for _ in range(40):
        first, second = (scale * rng.lognormal(0, 0.1, 40) for scale in (0.8, 1.0))
        found = ratio(first, second)
        assert found.low <= found.ratio <= found.high
        held += found.low <= 0.8 <= found.high

    assert held >= 34  # of 40; fewer would happen once in a hundred times at 95 %


def test_a_drift_of_the_machine_does_not_widen_the_interval(rng: np.random.Generator) -> None:
    drift = np.linspace(1.0, 3.0, 60)
    noise = rng.normal(1, 0.001, (2, 60))

    found = ratio(0.5 * drift * noise[0], drift * noise[1])

    assert found.ratio == pytest.approx(0.5, rel=0.01)
    assert found.high - found.low < 0.01


def test_one_run_has_no_interval() -> None:
    found = ratio(np.array([2.0]), np.array([4.0]))

    assert (found.low, found.ratio, found.high) == (0.5, 0.5, 0.5)


def test_equal_times_give_equal_intervals(rng: np.random.Generator) -> None:
    first, second = rng.lognormal(0, 0.1, (2, 20))

    assert ratio(first, second) == ratio(first, second)

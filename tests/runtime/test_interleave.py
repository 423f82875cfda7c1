"""Turns are balanced, and the ratio of medians comes with an interval that holds the truth."""

import threading
import time
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


@pytest.mark.usefixtures("quick")
def test_only_the_last_run_of_a_turn_is_timed() -> None:
    told: list[int] = []
    slow_then_fast = iter([0.05] + ([0.02] * interleave.WARM_RUNS + [0.0]) * 3)

    seconds = interleaved([lambda: time.sleep(next(slow_then_fast))], 3, lambda: told.append(1))

    assert seconds.shape == (1, 3)
    assert seconds.max() < 0.02
    assert len(told) == 3


def test_a_turn_begins_when_no_thread_computes() -> None:
    end = time.perf_counter() + 0.06

    def busy() -> None:
        while time.perf_counter() < end:
            sum(range(1000))

    thread = threading.Thread(target=busy)
    thread.start()
    settle()

    assert time.perf_counter() >= end - 0.01
    thread.join()


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

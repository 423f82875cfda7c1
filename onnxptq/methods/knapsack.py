"""Multiple-choice knapsack, solved exactly: one candidate of each item, least value in all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ROUNDS = 200
"""Halvings of the interval in which the price lies; the optimum does not depend on them."""
SLACK = 1e-12
"""Of a bound that rounding may have moved, as a share of the values' sum."""


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """What the chosen candidates may take of one resource.

    Attributes:
        costs: What each candidate of each item takes, [items, candidates].
        most: Of all chosen ones together.
    """

    costs: F64
    most: float

    def fits(self, chosen: Sequence[int]) -> bool:
        """Whether a choice, one index an item, stays within the limit."""
        return bool(self.taken(chosen) <= self.most + 1e-9 * abs(self.most))

    def taken(self, chosen: Sequence[int]) -> float:
        """Sum over the chosen candidates."""
        return float(self.costs[np.arange(len(chosen)), list(chosen)].sum())


def best_choice(values: F64, limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """The candidates whose values have the least sum within the limits; None if there are none.

    Args:
        values: Of each candidate of each item, [items, candidates]; infinite where it is not to be
            taken.
        limits: One is solved by dynamic programming, several by HiGHS; both are exact.
    """
    if not len(values):
        return ()
    if len(limits) == 1:
        return one_limit(values, limits[0])
    return many_limits(values, limits)


def one_limit(values: F64, limit: Limit) -> tuple[int, ...] | None:
    """Dynamic programming over the sums that no other sum beats in both cost and value.

    A sum whose bound (its value, and the rest at the best price of the resource) lies above a
    choice that is known is dropped, which leaves few of them whatever the costs are.

    Source:
        Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, sections 11.2 and 11.5.
    """
    allowed = np.where(np.isfinite(values), limit.costs, np.inf)
    if allowed.min(axis=1).sum() > limit.most + 1e-9 * abs(limit.most):
        return None
    price, known = _price(values, limit)
    slack = SLACK * float(np.abs(values[np.isfinite(values)]).sum())
    least = float(values[np.arange(len(values)), known].sum()) + slack
    bounds = (values + price * limit.costs).min(axis=1)
    later_bound = np.append(np.cumsum(bounds[::-1])[::-1], 0.0)
    later_cost = np.append(np.cumsum(allowed.min(axis=1)[::-1])[::-1], 0.0)
    most = limit.most + 1e-9 * abs(limit.most)
    costs, sums = np.zeros(1), np.zeros(1)
    steps: list[tuple[I64, I64]] = []
    for item, row in enumerate(values):
        candidates = np.flatnonzero(np.isfinite(row))
        cost = (costs[:, None] + allowed[item, candidates]).ravel()
        total = (sums[:, None] + row[candidates]).ravel()
        bound = total + later_bound[item + 1] - price * (limit.most - cost)
        kept = np.flatnonzero((cost + later_cost[item + 1] <= most) & (bound <= least))
        kept = kept[np.lexsort((total[kept], cost[kept]))]
        lowest = np.minimum.accumulate(total[kept])
        kept = kept[np.concatenate(([True], total[kept][1:] < lowest[:-1]))]
        steps.append((kept // len(candidates), candidates[kept % len(candidates)]))
        costs, sums = cost[kept], total[kept]
    return _traced(steps, int(sums.argmin()))


def _price(values: F64, limit: Limit) -> tuple[float, I64]:
    """The price of the resource with the highest bound, and a choice that fits."""
    rows = np.arange(len(values))

    def cheapest(price: float) -> I64:
        return np.lexsort((limit.costs, values + price * limit.costs), axis=1)[:, 0]

    chosen = cheapest(0.0)
    if limit.costs[rows, chosen].sum() <= limit.most:
        return 0.0, chosen
    fitting = np.where(np.isfinite(values), limit.costs, np.inf).argmin(axis=1)
    low, high = 0.0, float(np.ptp(values[np.isfinite(values)])) + 1.0
    for _ in range(ROUNDS):
        middle = (low + high) / 2 if low > 0.0 else high / 4
        chosen = cheapest(middle)
        if limit.costs[rows, chosen].sum() <= limit.most:
            fitting, high = chosen, middle
        else:
            low = middle
        if high - low <= 1e-15 * high:
            break
    return high, fitting


def _traced(steps: list[tuple[I64, I64]], state: int) -> tuple[int, ...]:
    chosen: list[int] = []
    for parents, candidates in reversed(steps):
        chosen.append(int(candidates[state]))
        state = int(parents[state])
    return tuple(reversed(chosen))


def many_limits(values: F64, limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """The same for any number of limits, as an integer program (HiGHS, to a gap of 0)."""
    items, candidates = values.shape
    allowed = np.isfinite(values)
    # scipy takes arrays as bounds, but annotates numbers
    most: Any = allowed.ravel().astype(np.float64)
    one_each = np.kron(np.eye(items), np.ones(candidates))
    rules = [optimize.LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        unit = max(abs(limit.most), 1.0)
        row = np.where(allowed, limit.costs, 0.0).reshape(1, -1) / unit
        rules.append(optimize.LinearConstraint(row, -np.inf, limit.most / unit))
    finite = np.where(allowed, values, 0.0)
    found = optimize.milp(
        finite.ravel() / max(float(np.abs(finite).max()), 1e-300),
        constraints=rules,
        integrality=np.ones(values.size),
        bounds=optimize.Bounds(0, most),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    chosen = tuple(int(i) for i in found.x.reshape(items, candidates).argmax(axis=1))
    return chosen if all(limit.fits(chosen) for limit in limits) else None

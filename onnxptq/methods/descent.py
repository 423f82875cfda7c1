"""Greedy descent: narrow one weight at a time, where that costs outputs least for what it saves.

Each step is judged in the network as it is by then, so errors that add up or cancel are seen.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnxptq.methods.resources import Resource

Widths = tuple[int, ...]
LEAST = 1e-12
"""Added to a step's harm: one that does no harm is taken at once, by what it saves."""


@dataclass(frozen=True, slots=True)
class Point:
    """A state on the way: indices of widths, and the distance of the outputs."""

    chosen: Widths
    distance: float


@dataclass(slots=True)
class Descent:
    """The way from the widest widths to the budgets.

    Attributes:
        distance: Of the outputs at a choice of widths.
        resources: The budgets.
        steps: Number of widths.
        tick: Called after each measurement.
        path: States that were taken, in order.
    """

    distance: Callable[[Widths], float]
    resources: Sequence[Resource]
    steps: int
    tick: Callable[[], None]
    path: list[Point] = field(default_factory=list[Point])

    def run(self, weights: int) -> Widths:
        """Descend until all budgets hold or no step brings them nearer.

        Steps come from a heap, whose entries are measured anew before they are trusted.
        """
        chosen = (self.steps - 1,) * weights
        self.path = [Point(chosen, self._measure(chosen))]
        heap: list[tuple[float, int, int]] = []
        for weight in range(weights):
            self._offer(heap, weight)
        while heap and self._lacking(self.path[-1].chosen) > 0.0:
            _, weight, stamp = heapq.heappop(heap)
            if stamp != len(self.path):
                self._offer(heap, weight)
                continue
            narrower = self._narrower(weight)
            assert narrower is not None
            self.path.append(Point(narrower, self._measure(narrower)))
            self._offer(heap, weight)
        return self.path[-1].chosen

    def _offer(self, heap: list[tuple[float, int, int]], weight: int) -> None:
        """Put a weight's next step into the heap, judged in the present state."""
        narrower, state = self._narrower(weight), self.path[-1]
        if narrower is None:
            return
        harm = max(self._measure(narrower) - state.distance, 0.0) + LEAST
        saved = self._own(state.chosen) - self._own(narrower)
        heapq.heappush(heap, (harm / saved, weight, len(self.path)))

    def _narrower(self, weight: int) -> Widths | None:
        """The next width down that brings the budgets nearer."""
        chosen = self.path[-1].chosen
        before = self._own(chosen)
        for index in range(chosen[weight] - 1, -1, -1):
            narrower = (*chosen[:weight], index, *chosen[weight + 1 :])
            if self._own(narrower) < before:
                return narrower
        return None

    def _own(self, chosen: Widths) -> float:
        """What weights themselves take of the budgets that do not hold yet.

        What they share is left out: the first one to need it would seem to pay for all.
        """
        found = [one for one in self.resources if one.total(self.path[-1].chosen) > one.most]
        return sum(one.limit({}).taken(chosen) / one.most for one in found)

    def _lacking(self, chosen: Widths) -> float:
        """By how much the budgets are exceeded, each as a share of itself."""
        excess = ((one.total(chosen) - one.most) / one.most for one in self.resources)
        return sum(share for share in excess if share > 1e-9)

    def _measure(self, chosen: Widths) -> float:
        found = self.distance(chosen)
        self.tick()
        return found

    def widen(self) -> Widths:
        """Spend what the budgets have left, where that helped most when each was tried alone."""
        state = self.path[-1]
        tried: list[tuple[float, int]] = []
        for weight in range(len(state.chosen)):
            wider = self._wider(state.chosen, weight)
            if wider is not None:
                tried.append((self._measure(wider), weight))
        for _, weight in sorted(tried):
            wider = self._wider(self.path[-1].chosen, weight)
            if wider is None:
                continue
            distance = self._measure(wider)
            if distance < self.path[-1].distance:
                self.path.append(Point(wider, distance))
        return self.path[-1].chosen

    def _wider(self, chosen: Widths, weight: int) -> Widths | None:
        """A weight's next width up that all budgets allow."""
        for index in range(chosen[weight] + 1, self.steps):
            wider = (*chosen[:weight], index, *chosen[weight + 1 :])
            if self._lacking(wider) == 0.0:
                return wider
        return None

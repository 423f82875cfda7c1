"""What other budgets would give: the widths for each, what they take, and how far outputs move."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from onnxptq.calibrate.source import Data
from onnxptq.methods.descent import Widths
from onnxptq.methods.method import Context
from onnxptq.methods.ofm_similarity import Found
from onnxptq.methods.resources import choose
from onnxptq.methods.study import file_costs, first_samples, network_of

FORMAT = "onnxptq.pareto/1"
BUDGETS = 17
"""Budgets that are solved for, evenly from the narrowest to the widest."""
MEASURED = 5
"""Of them, how many are measured, the chosen one beside them."""
MOST_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """The best widths within one budget of bits.

    Attributes:
        average_bits: Nominal bits a weight.
        bytes: Of the whole file.
        predicted: The sum that was minimized, or for the greedy form the distance on the way.
        measured: Divergence of class scores, or noise to signal of the outputs, with all weights at
            these widths, on held-out samples; None where it was not measured.
        chosen: Whether the quantized model has these widths.
        widths: Bits of each open weight.
    """

    average_bits: float
    bytes: int
    predicted: float
    measured: float | None
    chosen: bool
    widths: dict[str, int]


def pareto(found: Found, ctx: Context) -> tuple[ParetoPoint, ...]:
    """The points, from few bits to many."""
    states = _states(found)
    states.setdefault(found.chosen, _predicted(found, found.chosen))
    order = sorted(states, key=lambda chosen: (found.bits.total(chosen), chosen))
    places = {round(x) for x in np.linspace(0, len(order) - 1, min(MEASURED, len(order)))}
    file = file_costs(ctx, found.by_width, found.study.open_, np.inf)
    data = _held_out(ctx)
    network = network_of(first_samples(data, MOST_SAMPLES), ctx)
    points: list[ParetoPoint] = []
    for place, chosen in enumerate(order):
        wanted = place in places or chosen == found.chosen
        points.append(
            ParetoPoint(
                average_bits=found.bits.total(chosen),
                bytes=round(file.total(chosen)),
                predicted=states[chosen],
                measured=network.distance(found.study.patches(chosen)) if wanted else None,
                chosen=chosen == found.chosen,
                widths=_widths(found, chosen),
            )
        )
    return tuple(points)


def to_json(points: Sequence[ParetoPoint], found: Found) -> str:
    """The points as the text of a file, with the harm of each width of each weight.

    The greedy form has no such harm: it depends on what the other weights have by then.
    """
    harm = {
        one.weight: dict(zip(map(str, found.study.widths), map(float, row), strict=True))
        for one, row in zip(found.study.open_, found.values, strict=True)
        if not found.path
    }
    content = {"format": FORMAT, "points": [asdict(p) for p in points], "harm": harm}
    return json.dumps(content, indent=1) + "\n"


def _states(found: Found) -> dict[Widths, float]:
    """Choices of widths with what was predicted of them."""
    if found.path:
        places = np.linspace(0, len(found.path) - 1, min(BUDGETS, len(found.path)))
        return {point.chosen: point.distance for point in (found.path[round(x)] for x in places)}
    states: dict[Widths, float] = {}
    rows = len(found.values)
    first = found.bits.total((0,) * rows)
    last = found.bits.total((len(found.study.widths) - 1,) * rows)
    for most in np.linspace(first, last, BUDGETS):
        chosen = choose(found.values, [replace(found.bits, most=float(most))])
        if chosen is not None:
            states[chosen] = _predicted(found, chosen)
    return states


def _predicted(found: Found, chosen: Widths) -> float:
    known = {point.chosen: point.distance for point in found.path}
    total = float(found.values[np.arange(len(chosen)), list(chosen)].sum())
    return known.get(chosen, total)


def _widths(found: Found, chosen: Widths) -> dict[str, int]:
    study = found.study
    return {one.weight: study.widths[at] for one, at in zip(study.open_, chosen, strict=True)}


def _held_out(ctx: Context) -> Data:
    return ctx.samples("pareto") if ctx.held_out is None else ctx.held_out

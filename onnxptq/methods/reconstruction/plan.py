"""Plan: what a reconstruction learns, from what, and for how long. Made without torch."""

from dataclasses import dataclass
from typing import Literal

Which = Literal["none", "bordered", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates of Adam, for `PAPER_ITERATIONS`; fewer iterations take larger ones.

    Those of rounding and steps are 30 and 7 times the papers', whose rates leave most codes where
    they are in the hundreds of iterations that a CPU has the time for: README.md, "Learned at few
    bits".

    Attributes:
        rounding: Of V.
        steps: Of activations' steps, relative to the step; falls to 0 by a cosine.
        scales: Of weights' scales, relative.
        biases: Of biases, in the numbers of the layer's output.
        borders: Of borders, in steps.
    """

    rounding: float = 3e-2
    steps: float = 3e-4
    scales: float = 1e-4
    biases: float = 1e-3
    borders: float = 1e-3


@dataclass(frozen=True, slots=True)
class Borders:
    """Which borders between codes are learned as tables.

    Attributes:
        form: How a border depends on the code it stands at: not, or linearly, or quadratically.
        grain: What has borders of its own: each channel, group of `GROUP` channels, or the tensor.
    """

    form: Literal["constant", "linear", "quadratic"]
    grain: Literal["channel", "group", "tensor"]


GROUP = 8
"""Channels that share borders where they are learned in groups."""


@dataclass(frozen=True, slots=True)
class Correction:
    """How far entries of blocks are moved to the mean and spread that training saw.

    Attributes:
        steps: Of Adam, for each batch; 0 for none.
        closeness: lambda_c: the smaller, the closer to what they were.
        batch_size: Samples that are moved together.
    """

    steps: int = 50
    closeness: float = 0.02
    batch_size: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to reconstruct.

    Attributes:
        unit: What is learned at a time: each layer, each block, or the network as a whole, which is
            then judged by the difference of its outputs.
        rounding: Learn codes of weights; without, they stay what they are.
        from_codes: Begin with the codes that the recipe has, not with the real weights.
        steps: Learn steps of activations.
        scales: Of which weights the scales are learned: those of all layers, or of layers whose
            outputs become codes of few bits, whose borders between codes they move.
        biases: Of which layers biases are learned.
        borders: Tables of borders that are learned behind layers; None for none.
        roundings: Learn the scales that activations behind sums and pools are rounded by, apart
            from those that their codes stand for.
        fisher: Weight errors by how much the network's outputs depend on them.
        prediction: Weight of the difference of the network's outputs, 1 / lambda_r; 0 for none.
        search: Begin with the steps of activations by which the network's outputs differ least.
        judged: Of how many samples of an iteration that difference is taken.
        temperature: Of the softmax in that difference.
        correction: How far entries are moved to the mean and spread that training saw.
        drop: Share of an activation's elements that stay unquantized while learning.
        mix: Share of the entry's elements that are taken from the float network.
        iterations: Of each block.
        batch_size: Samples in an iteration.
        pull: Weight of the term that closes the codes.
        warm_up: Share of the iterations without that term.
        rates: Learning rates.
        rate: Factor on all of them.
    """

    unit: Literal["layer", "block", "network"] = "block"
    rounding: bool = True
    from_codes: bool = False
    steps: bool = False
    scales: Which = "none"
    biases: Which = "none"
    borders: Borders | None = None
    roundings: bool = False
    fisher: bool = False
    prediction: float = 0.0
    search: bool = False
    judged: int = 8
    temperature: float = 4.0
    correction: Correction = Correction(steps=0)
    drop: float = 0.0
    mix: float = 0.0
    iterations: int = 2000
    batch_size: int = 32
    pull: float = 0.01
    warm_up: float = 0.2
    rates: Rates = Rates()
    rate: float = 1.0


PAPER_ITERATIONS = 20_000
"""For which rates are given."""

FEWEST = 500
"""Iterations below which rates rise no more, and fall where codes chosen before are begun with:
there is no time to come back to them."""


def faster(plan: Plan) -> float:
    """By how much rates are raised, so that fewer iterations go about as far."""
    iterations = max(plan.iterations, FEWEST)
    raised = max((PAPER_ITERATIONS / iterations) ** 0.5, 1.0)
    falling = plan.iterations / iterations if plan.from_codes else 1.0
    return plan.rate * raised * falling

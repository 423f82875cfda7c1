"""learn: the one loop that chooses codes, steps and scales by gradients."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from onnxptq.methods.reconstruction.objective import Objective
from onnxptq.methods.reconstruction.plan import Plan, faster
from onnxptq.methods.reconstruction.quantized_block import QuantizedBlock

BETA_BEGIN, BETA_END = 20.0, 2.0
"""Exponent of the regulariser, as AIMET and BRECQ have it (methods.md 6)."""

TELL = 50
"""Iterations between two reports."""

Draw = Callable[[], npt.NDArray[np.int64]]
Tell = Callable[[int, float], None]


def learn(net: QuantizedBlock, objective: Objective, plan: Plan, draw: Draw, tell: Tell) -> None:
    """Learn what the plan says about a block.

    Args:
        net: The block; its parameters are changed.
        objective: What is to be small.
        plan: How long, and at which rates.
        draw: Numbers of the samples of an iteration.
        tell: Told now and then of how many iterations are done since, and of the loss.
    """
    optimiser, schedule = _optimiser(net, plan)
    for iteration in range(1, plan.iterations + 1):
        optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros(())
        for part in objective.losses(draw()):
            part.backward()
            loss = loss + part.detach()
        beta = beta_at((iteration - 1) / plan.iterations, plan.warm_up)
        open_ = [] if beta is None or not plan.rounding else net.soft_weights()
        if open_:
            undecided = torch.stack([w.indecision(beta or 0.0) for w in open_]).sum()
            (plan.pull * undecided).backward()
        optimiser.step()
        schedule.step()
        if iteration % TELL == 0 or iteration == plan.iterations:
            tell((iteration - 1) % TELL + 1, loss.item())


def beta_at(share: float, warm_up: float) -> float | None:
    """Exponent of the regulariser at a share of all iterations; None while it is off."""
    if share < warm_up:
        return None
    progress = (share - warm_up) / (1 - warm_up)
    return BETA_END + (BETA_BEGIN - BETA_END) * max(0.0, 1 - progress)


def _optimiser(
    net: QuantizedBlock, plan: Plan
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam with a rate for each kind of parameter; but for codes they fall to 0."""
    faster_by, rates = faster(plan), plan.rates
    soft = net.soft_weights()
    kinds = (
        ([w.openness for w in soft], rates.rounding, _constant),
        ([grid.log_scale for grid in net.grid_list()], rates.steps, _cosine(plan.iterations)),
        ([w.log_scale for w in soft], rates.scales, _cosine(plan.iterations)),
        (net.ratios(), rates.scales, _cosine(plan.iterations)),
        (list(net.biases), rates.biases, _cosine(plan.iterations)),
        (net.coefficients(), rates.borders, _cosine(plan.iterations)),
    )
    groups: list[dict[str, object]] = []
    falls: list[Callable[[int], float]] = []
    for parameters, rate, fall in kinds:
        free = [p for p in parameters if p.requires_grad]
        if free:
            groups.append({"params": free, "lr": rate * faster_by})
            falls.append(fall)
    optimiser = torch.optim.Adam(groups)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, falls)


def _constant(_: int) -> float:
    return 1.0


def _cosine(iterations: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step / iterations, 1.0)))

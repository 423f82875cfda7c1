"""Steps of a block's activations chosen by what they do to the network's prediction."""

import math

import numpy as np
import torch

from onnxptq.methods.reconstruction.objective import Ahead
from onnxptq.methods.reconstruction.plan import Plan
from onnxptq.methods.reconstruction.quantized_block import QuantizedBlock
from onnxptq.methods.reconstruction.samples import Samples, drawn

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
"""Of the step that a range method chose."""
SEEN = 64
"""Samples that steps are compared on."""


def choose_steps(net: QuantizedBlock, samples: Samples, ahead: Ahead, plan: Plan) -> None:
    """Set each step of a block, one after the other, to the factor of the least difference.

    The block is quantized as a whole, and what follows it is in float.

    Source:
        Liu et al. 2022, PD-Quant (arXiv:2212.07048), section 3.2.
    """
    rows = np.arange(min(SEEN, samples.count))
    device = next(net.parameters()).device
    entry = drawn(samples.coded, rows, device)

    def difference() -> float:
        with torch.no_grad():
            return float(ahead.difference(net(entry), rows, plan.temperature))

    for grid in net.grid_list():
        found: dict[float, float] = {}
        for factor in FACTORS:
            grid.log_scale.data.fill_(math.log(factor))
            found[factor] = difference()
        best = min(FACTORS, key=lambda factor: (found[factor], abs(math.log(factor))))
        grid.log_scale.data.fill_(math.log(best))

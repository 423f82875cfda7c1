"""Inputs of a block moved until its channels have the mean and spread that training saw.

Source: Liu et al. 2022, PD-Quant (arXiv:2212.07048), section 3.3: distribution correction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.blocks import Block
from onnxptq.methods.reconstruction.plan import Correction
from onnxptq.methods.reconstruction.samples import Array, drawn
from onnxptq.methods.reconstruction.subgraph import Subgraph
from onnxptq.passes import Norm
from onnxptq.recipe import Recipe
from onnxptq.rewrite.channels import moved_values

Tensor = torch.Tensor
F32 = npt.NDArray[np.float32]

RATE, PATIENCE, LOWEST_RATE = 1e-2, 10, 1e-5
"""Adam's rate and how it falls. The authors take 500 steps at 1e-3, patience 100 (methods.md
10); 50 at ten times the rate end in the same place up to 6 % of the way (ResNet-20)."""
EPSILON = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Wanted mean and standard deviation of a layer's output, and what a unit of it counts, [C].

    Attributes:
        value: Name of the layer's output.
        mean: Wanted mean.
        deviation: Wanted standard deviation.
        unit: Deviation in the network's numbers of one unit in which differences are counted.
    """

    value: str
    mean: F32
    deviation: F32
    unit: F32


def spreads_of(block: Block, ctx: Context) -> list[Spread]:
    """Those of a block's convolutions: from BatchNorms folded, else as calibration finds them.

    Each difference is counted as BatchNorm would see it, in units of its own input.
    """
    moved = _moved_values(ctx)
    found: list[Spread] = []
    measured: list[str] = []
    for node in block.layers:
        if node.op_type != "Conv":
            continue  # a row of a product has no mean and spread of its own
        name = str(node.outputs[0].name)
        norm = ctx.norms.get(str(node.name))
        if norm is not None and name not in moved:
            found.append(_of_norm(name, norm))
        else:
            measured.append(name)
    return found + _measured(measured, ctx)


def _moved_values(ctx: Context) -> list[str]:
    """Values whose channels a method has moved: what BatchNorm knew of them holds no more."""
    if ctx.moved is None or ctx.prepared is None:
        return []
    return moved_values(ctx.prepared, Recipe(ctx.moved.model_digest), ctx.moved)


def _of_norm(value: str, norm: Norm) -> Spread:
    gamma = np.where(np.abs(norm.gamma) < EPSILON, EPSILON, np.abs(norm.gamma))
    deviation = np.sqrt(norm.variance + norm.epsilon)
    return Spread(value, norm.beta, np.abs(norm.gamma), (gamma / deviation).astype(np.float32))


def _measured(values: list[str], ctx: Context) -> list[Spread]:
    """Means and deviations over all calibration samples, each channel (axis 1) for itself."""
    if not values:
        return []
    count = dict.fromkeys(values, 0)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for batch in ctx.float_values(ctx.samples("pd-quant"), values):
        for name, array in batch.items():
            rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
            parts = np.stack([rows.sum(1), np.square(rows).sum(1)])
            sums[name] = sums.get(name, 0) + parts
            count[name] += rows.shape[1]
    found: list[Spread] = []
    for name in values:
        mean, square = sums[name] / count[name]
        deviation = np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float32)
        found.append(Spread(name, mean.astype(np.float32), deviation, np.ones_like(deviation)))
    return found


def corrected(
    real: Array, block: Block, spreads: list[Spread], how: Correction, device: torch.device
) -> tuple[Array, Array]:
    """Entries of a block moved, [N, ...], and its exits for them."""
    graph = Subgraph(block.nodes, device)
    wanted = {spread.value: _tensors(spread, device) for spread in spreads}
    entries = np.empty_like(real)
    exits: list[npt.NDArray[np.float32]] = []
    for begin in range(0, len(real), how.batch_size):
        rows = np.arange(begin, min(begin + how.batch_size, len(real)))
        moved = _moved(drawn(real, rows, device), block, graph, wanted, how)
        with torch.no_grad():
            made = graph({str(block.entry.name): moved})
        entries[rows] = moved.cpu().numpy()
        exits.append(made[block.name].cpu().numpy())
    return entries, np.concatenate(exits)


def _moved(
    begun: Tensor,
    block: Block,
    graph: Subgraph,
    wanted: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    how: Correction,
) -> Tensor:
    x = begun.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=RATE)
    falling = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, patience=PATIENCE, min_lr=LOWEST_RATE
    )
    for _ in range(how.steps):
        optimiser.zero_grad(set_to_none=True)
        made = graph({str(block.entry.name): x})
        loss = (x - begun).square().sum(1).mean() / how.closeness
        for name, (mean, deviation, unit) in wanted.items():
            values = made[name].flatten(2)
            spread = (values.var(2, unbiased=False) + EPSILON).sqrt()
            parts = ((values.mean(2) - mean) / unit, (spread - deviation) / unit)
            loss = loss + sum(part.square().sum() for part in parts) / len(begun)
        loss.backward()
        optimiser.step()
        falling.step(loss.item())
    return x.detach()


def _tensors(spread: Spread, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation, unit = (
        torch.from_numpy(np.array(part)).to(device)
        for part in (spread.mean, spread.deviation, spread.unit)
    )
    return mean, deviation, unit

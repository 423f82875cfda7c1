"""Objective: what a block's codes, steps and scales are chosen by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from onnxptq.methods.reconstruction.coins import Coins
from onnxptq.methods.reconstruction.grids import Free
from onnxptq.methods.reconstruction.plan import Plan
from onnxptq.methods.reconstruction.quantized_block import QuantizedBlock
from onnxptq.methods.reconstruction.samples import Array, Samples, drawn, mixed
from onnxptq.methods.reconstruction.suffix import Suffix, prediction_difference

Tensor = torch.Tensor
Rows = npt.NDArray[np.int64]


def distance(found: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared error, weighted, summed over channels and averaged over all else: BRECQ's loss."""
    error = (found - target).square()
    error = error if weight is None else error * weight.square()
    return error.sum(1).mean() if error.dim() > 1 else error.mean()


def rows_at_once(net: QuantizedBlock, samples: Samples, plan: Plan) -> int:
    """How many samples are computed at a time: as many as an iteration has, of large ones fewer."""
    device = next(net.parameters()).device
    if device.type != "cpu":
        return plan.batch_size
    with torch.no_grad():
        widest = net.widest(drawn(samples.real, np.zeros(1, np.int64), device))
    return min(plan.batch_size, max(1, PART_BYTES // widest))


PART_BYTES = 12 << 20
"""Most of one value that is computed at a time on a CPU. Memory for larger ones comes fresh from
the system each time, which takes longer than to fill it: with 32 samples at a time the blocks of
ResNet-20 and EfficientNet-Lite0 took 1.6 times as long (`benchmarks/learning.py`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """The network behind a block, and what it says in float of each sample."""

    suffix: Suffix
    values: Mapping[str, Array]

    def difference(self, found: Tensor, rows: Rows, temperature: float) -> Tensor:
        """How far the outputs are from float when the block gives `found` for these samples."""
        known = {name: drawn(array, rows, found.device) for name, array in self.values.items()}
        outputs = self.suffix(found, {name: known[name] for name in self.suffix.beside})
        return prediction_difference(outputs, known, temperature)


class Objective:
    """The loss of a block on some of the samples, but for the term that closes codes.

    Args:
        net: The block.
        samples: What it reads and should give.
        plan: How it is learned.
        ahead: The network behind it; None where the plan does not ask for it.
        coins: Decides which elements are dropped.
    """

    def __init__(
        self,
        net: QuantizedBlock,
        samples: Samples,
        plan: Plan,
        ahead: Ahead | None,
        coins: Coins,
    ) -> None:
        self._net, self._samples, self._plan, self._ahead = net, samples, plan, ahead
        self._coins = coins
        self._device = next(net.parameters()).device
        self._free: Free | None = self._drawn_free if plan.drop else None
        self._at_once = rows_at_once(net, samples, plan)

    def losses(self, rows: Rows) -> Iterator[Tensor]:
        """The loss on the samples with these numbers, in parts that sum up to it."""
        for begin in range(0, len(rows), self._at_once):
            part = slice(begin, begin + self._at_once)
            yield self._loss(rows[part], rows[: self._plan.judged][part], len(rows))

    def _loss(self, rows: Rows, judged: Rows, count: int) -> Tensor:
        """What some rows add to a loss that is a mean over `count`, of which some are judged."""
        samples, plan = self._samples, self._plan
        share = len(rows) / count
        target = self._of(samples.target, rows)
        weight = None if samples.weight is None else self._of(samples.weight, rows)
        entry = self._of(samples.coded, rows) if not plan.mix else self._mixed(rows)
        if plan.unit == "network":
            return share * apart(self._net(entry, self._free), target, plan)
        if self._ahead is None or not len(judged):
            return share * distance(self._net(entry, self._free), target, weight)
        both = self._net(torch.cat([entry, self._of(samples.coded, judged)]), self._free)
        found, whole = both[: len(rows)], both[len(rows) :]
        difference = self._ahead.difference(whole, judged, plan.temperature)
        of_judged = len(judged) / min(plan.judged, count)
        return share * distance(found, target, weight) + of_judged * plan.prediction * difference

    def _of(self, array: Array, rows: Rows) -> Tensor:
        return drawn(array, rows, self._device)

    def _mixed(self, rows: Rows) -> Tensor:
        """Entries of which some elements are those of the float network."""
        real, coded = self._samples.real, self._samples.coded
        coins = self._coins.drawn(torch.Size((len(rows), *real.shape[1:])), self._plan.mix)
        return mixed(real, coded, rows, coins)

    def _drawn_free(self, value: Tensor) -> Tensor:
        return self._coins.drawn_like(value, self._plan.drop)


def importance(net: QuantizedBlock, samples: Samples, ahead: Ahead, size: int) -> Array:
    """|dKL/dz| + 1 of each number of a block's exit: BRECQ's diagonal Fisher weights.

    Source:
        Li et al. 2021, BRECQ (arXiv:2102.05426), equation 10, and the authors' code.
    """
    device = next(net.parameters()).device
    found = np.empty_like(samples.target)
    for begin in range(0, samples.count, size):
        rows = np.arange(begin, min(begin + size, samples.count))
        with torch.no_grad():
            exits = net(drawn(samples.coded, rows, device))
        exits.requires_grad_()
        ahead.difference(exits, rows, 1.0).backward()
        assert exits.grad is not None
        found[rows] = exits.grad.abs().add(1.0).cpu().numpy()
    return found


def apart(found: Tensor, target: Tensor, plan: Plan) -> Tensor:
    """How far an exit is from float, by the plan's measure."""
    if plan.unit == "network":
        return prediction_difference({"": found}, {"": target}, plan.temperature)
    return distance(found, target)


def stored_error(net: QuantizedBlock, samples: Samples, plan: Plan) -> float:
    """Loss of a block as it will be stored, over all samples."""
    size = rows_at_once(net, samples, plan)
    device = next(net.parameters()).device
    total = 0.0
    with torch.no_grad():
        for begin in range(0, samples.count, size):
            rows = np.arange(begin, min(begin + size, samples.count))
            found = net(drawn(samples.coded, rows, device))
            total += len(rows) * apart(found, drawn(samples.target, rows, device), plan).item()
    return total / samples.count

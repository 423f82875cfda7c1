"""SoftWeight: a layer's weight whose codes are still open between two neighbours."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from onnxptq.methods.reconstruction.layout import channels_last
from onnxptq.quant import QParams
from onnxptq.recipe import IntArray

Tensor = torch.Tensor
F64 = npt.NDArray[np.float64]

STRETCH, OFFSET = 1.2, -0.1
"""zeta - gamma and gamma of the stretched sigmoid, AdaRound section 3.2 (methods.md 6)."""

LEAN = 0.75
"""How far a soft code leans towards the code that it starts from (methods.md 16.2)."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a weight begins: what the recipe has decided about it.

    Attributes:
        real: Float weight.
        params: Its format, scale and zero point.
        codes: Codes chosen already; None for rounding to nearest, from the middle.
        ends: First and last code of each channel, of the shape of its scale.
    """

    real: npt.NDArray[np.float32]
    params: QParams
    codes: IntArray | None
    ends: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


class SoftWeight(nn.Module):
    """Codes `clip(base + h(V), lo, hi)` times a scale, with h between 0 and 1.

    Attributes:
        openness: V, of the weight's shape.
        log_scale: Logarithm of each channel's scale over the one it began with.

    Source:
        Nagel et al. 2020, AdaRound (arXiv:2004.10568); Jeon et al. 2023, Genie, for a scale that is
        learned while the base stays.
    """

    def __init__(self, start: Start, device: torch.device) -> None:
        super().__init__()
        params, rank = start.params, start.real.ndim
        scale = params.along(params.scale, rank).astype(np.float64)
        zero = params.along(params.zero_point, rank).astype(np.float64)
        lo, hi = (params.along(end, rank).astype(np.float64) - zero for end in start.ends)
        base, share = _opened(start, scale, zero)

        def fixed(array: F64) -> Tensor:
            return channels_last(torch.from_numpy(np.array(array, np.float32)).to(device))

        self._scale, self._zero = fixed(scale), fixed(zero)
        self._lo, self._hi, self._base = fixed(lo), fixed(hi), fixed(base)
        self.openness = nn.Parameter(fixed(_logit(share)))
        self.log_scale = nn.Parameter(torch.zeros_like(self._scale))

    def share(self) -> Tensor:
        """h(V): 0 for the lower, 1 for the upper neighbour, of the weight's shape."""
        return torch.clamp(STRETCH * torch.sigmoid(self.openness) + OFFSET, 0, 1)

    def scale(self) -> Tensor:
        """Scale of each channel, broadcast against the weight."""
        return self._scale * torch.exp(self.log_scale)

    def soft(self) -> Tensor:
        """The weight with codes in between."""
        return torch.clamp(self._base + self.share(), self._lo, self._hi) * self.scale()

    def hard(self) -> Tensor:
        """The weight as it will be stored."""
        return self._whole() * self.scale()

    def indecision(self, beta: float) -> Tensor:
        """The regulariser: the number of codes that are still open, softly counted."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def codes(self) -> npt.NDArray[np.int8]:
        """Codes to be stored."""
        return (self._whole() + self._zero).detach().cpu().numpy().astype(np.int8)

    def stored_scale(self) -> npt.NDArray[np.float32]:
        """The scale to be stored, one number a channel."""
        return self.scale().detach().cpu().numpy().reshape(-1)

    def _whole(self) -> Tensor:
        return torch.clamp(self._base + (self.openness >= 0).float(), self._lo, self._hi)


def _opened(start: Start, scale: F64, zero: F64) -> tuple[F64, F64]:
    """The lower of the two codes, counted from the zero point, and the share of the upper one."""
    exact = start.real / scale
    base = np.floor(exact)
    if start.codes is None:
        return base, exact - base
    chosen = start.codes.astype(np.float64) - zero
    # A code that is no neighbour of the real weight is left open towards it.
    base = np.where((chosen == base) | (chosen == base + 1), base, chosen - (exact < chosen))
    return base, np.where(chosen == base, 1 - LEAN, LEAN)


def _logit(share: F64) -> F64:
    """V with h(V) = share."""
    inner = np.clip((share - OFFSET) / STRETCH, 1e-4, 1 - 1e-4)
    return np.log(inner / (1 - inner))

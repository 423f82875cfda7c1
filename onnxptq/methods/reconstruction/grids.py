"""Grid: an activation's quantization as a differentiable function, with a learned step."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from onnxptq.quant import QParams

Tensor = torch.Tensor
Drop = Callable[[Tensor, Tensor], Tensor]
"""Of a value and its quantized form, what is read of each element."""


def rounded(x: Tensor) -> Tensor:
    """Rounded half to even; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach()


class Grid(nn.Module):
    """Quantize and dequantize with a step that is learned.

    Attributes:
        log_scale: Logarithm of the step over the one that it began with; relative, so that one rate
            fits all activations.

    Source:
        Esser et al. 2020, LSQ (arXiv:1902.08153).
    """

    def __init__(self, params: QParams, device: torch.device) -> None:
        super().__init__()
        self._begun = float(params.scale)
        self._lo = float(params.code_lo - params.zero_point)
        self._hi = float(params.code_hi - params.zero_point)
        self.log_scale = nn.Parameter(torch.zeros((), device=device))

    def scale(self) -> Tensor:
        """The step."""
        return self._begun * torch.exp(self.log_scale)

    def forward(self, x: Tensor) -> Tensor:
        """What the codes of x stand for."""
        scale = self.scale()
        return torch.clamp(rounded(x / scale), self._lo, self._hi) * scale

    def stored(self) -> np.float32:
        """The step as it will be stored."""
        return np.float32(self.scale().item())

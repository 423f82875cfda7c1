"""Grid: an activation's quantization as a differentiable function, with a learned step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxptq.kernels import fake_quantize
from onnxptq.quant import QParams

Tensor = torch.Tensor
Free = Callable[[torch.Size], Tensor]
"""For a shape, which elements stay as they are: uint8, not 0 where one does."""


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

    def forward(self, x: Tensor, free: Tensor | None = None) -> Tensor:
        """What the codes of x stand for; x itself where it is free."""
        if x.device.type == "cpu":
            free = torch.zeros(x.shape, dtype=torch.uint8) if free is None else free
            return _FakeQuantize.apply(x, free, self.scale(), (self._lo, self._hi))
        quantized = self.plain(x)
        return quantized if free is None else torch.where(free != 0, x, quantized)

    def plain(self, x: Tensor) -> Tensor:
        """What the codes of x stand for, by torch alone: five times as long on a CPU."""
        scale = self.scale()
        return torch.clamp(rounded(x / scale), self._lo, self._hi) * scale

    def stored(self) -> np.float32:
        """The step as it will be stored."""
        return np.float32(self.scale().item())


class _FakeQuantize(torch.autograd.Function):
    """`Grid.plain` with free elements, in one pass over the values each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, free: Tensor, scale: Tensor, ends: tuple[float, float]
    ) -> Tensor:
        grid = np.array([scale.item(), *ends], np.float32)
        x, free = x.contiguous(), free.contiguous()
        ctx.save_for_backward(x, free, scale)
        ctx.grid = grid
        out = torch.empty_like(x)
        fake_quantize.fake_quantize(_flat(x), _flat(free), grid, _flat(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, free, scale = ctx.saved_tensors
        grad = grads[0].contiguous()
        out = torch.empty_like(x)
        slope = fake_quantize.fake_quantize_gradient(
            _flat(x), _flat(free), ctx.grid, _flat(grad), _flat(out)
        )
        return out, None, torch.full_like(scale, slope / scale.item()), None


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().numpy().reshape(-1)

"""Grid: an activation's quantization as a differentiable function, with a learned step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from onnxptq.kernels import borders as border_kernels
from onnxptq.kernels import fake_quantize
from onnxptq.methods.reconstruction.layout import in_memory, laid_like, without_gaps
from onnxptq.methods.reconstruction.plan import GROUP, Borders
from onnxptq.quant import QParams

Tensor = torch.Tensor
Free = Callable[[Tensor], Tensor]
"""Of a tensor, which elements stay as they are: uint8, not 0 where one does."""


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
            free = torch.zeros_like(x, dtype=torch.uint8) if free is None else free
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


class SplitGrid(Grid):
    """A grid whose codes are chosen by one step and stand for another: borders linear in the code.

    Attributes:
        log_ratio: Logarithm of the first over the second, over the one it began with.
    """

    def __init__(self, params: QParams, rounding: np.float32, device: torch.device) -> None:
        super().__init__(params, device)
        self._begun_ratio = float(rounding) / float(params.scale)
        self.log_ratio = nn.Parameter(torch.zeros((), device=device))

    def ratio(self) -> Tensor:
        """The step that codes are chosen by over the one that they stand for."""
        return self._begun_ratio * torch.exp(self.log_ratio)

    def forward(self, x: Tensor, free: Tensor | None = None) -> Tensor:
        """What the codes of x stand for; x itself where it is free."""
        ratio = self.ratio()
        quantized = super().forward(x / ratio)
        return quantized if free is None else torch.where(free != 0, x, quantized)

    def rounding_scale(self) -> np.float32:
        """The step that codes are chosen by, as it will be stored."""
        return np.float32((self.scale() * self.ratio()).item())


class BorderedGrid(Grid):
    """A grid with borders of its own between each two codes of a channel.

    Level k + 1 begins k + border steps above the lowest code; one half is the usual border. Learned
    are the coefficients of a polynomial in the code.

    Attributes:
        coefficients: Added to the borders that it begins with, [rows, 1 to 3].

    Args:
        params: Of the activation, of at most `MOST_LEVELS` levels.
        borders: That it begins with, [C, levels].
        learned: What is learned about them; None for nothing.
        device: Where it is.

    Source:
        Li et al. 2022, AQuant (arXiv:2208.11945); methods.md 9.
    """

    def __init__(
        self,
        params: QParams,
        borders: npt.NDArray[np.float32],
        learned: Borders | None,
        device: torch.device,
    ) -> None:
        super().__init__(params, device)
        channels, levels = borders.shape
        self._begun_borders = torch.from_numpy(borders).to(device)
        powers = 0 if learned is None else POWERS[learned.form]
        grain = "tensor" if learned is None else learned.grain
        rows = {"channel": channels, "group": -(-channels // GROUP), "tensor": 1}[grain]
        self._row_of = torch.arange(channels, device=device) * rows // channels
        place = torch.linspace(-1.0, 1.0, levels, device=device)
        self._powers = torch.stack([place**power for power in range(powers)] or [place * 0])
        self.coefficients = nn.Parameter(
            torch.zeros(rows, max(powers, 1), device=device), requires_grad=learned is not None
        )

    def borders(self) -> Tensor:
        """The borders, in steps, [C, levels]."""
        moved = (self.coefficients @ self._powers)[self._row_of]
        return torch.clamp(self._begun_borders + moved, 0.0, 1.0)

    def forward(self, x: Tensor, free: Tensor | None = None) -> Tensor:
        """What the codes of x stand for, [N, C, ...]; x itself where it is free."""
        free = torch.zeros(x.shape, dtype=torch.uint8, device=x.device) if free is None else free
        return _BorderRound.apply(x, free, self.scale(), self.borders(), (self._lo, self._hi))


POWERS = {"constant": 1, "linear": 2, "quadratic": 3}
"""Coefficients of a polynomial."""

MOST_LEVELS = 15
"""More comparisons than these an accumulator would cost more than another form (`requant`)."""


class _BorderRound(torch.autograd.Function):
    """`kernels.borders` between tensors; those of a GPU go by way of the CPU's memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, free: Tensor, scale: Tensor, borders: Tensor, ends: tuple[float, float]
    ) -> Tensor:
        ctx.grid = np.array([scale.item(), *ends], np.float32)
        ctx.save_for_backward(x, free, scale, borders)
        values, loose = _rows(x), _rows(free)
        out = np.empty_like(values)
        table = borders.detach().cpu().numpy()
        border_kernels.border_round(values, loose, ctx.grid, table, out)
        return torch.from_numpy(out).to(x.device).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, free, scale, borders = ctx.saved_tensors
        values, loose, grad = _rows(x), _rows(free), _rows(grads[0])
        out, slopes = np.empty_like(values), np.empty(borders.shape)
        table = borders.detach().cpu().numpy()
        slope = border_kernels.border_round_gradient(
            values, loose, ctx.grid, table, grad, out, slopes
        )
        back = torch.from_numpy(out).to(x.device).reshape(x.shape)
        of_borders = torch.from_numpy(slopes.astype(np.float32)).to(x.device)
        return back, None, torch.full_like(scale, slope / scale.item()), of_borders, None


def _rows(tensor: Tensor) -> Any:
    """[N, C, ...] as [N, C, n] for a kernel."""
    flat = tensor.detach().contiguous().cpu().numpy()
    return flat.reshape(*flat.shape[:2], -1)


class _FakeQuantize(torch.autograd.Function):
    """`Grid.plain` with free elements, in one pass over the values each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, free: Tensor, scale: Tensor, ends: tuple[float, float]
    ) -> Tensor:
        grid = np.array([scale.item(), *ends], np.float32)
        x = without_gaps(x)
        out, free = torch.empty_like(x), laid_like(free, x)
        ctx.save_for_backward(x, free, scale)
        ctx.grid = grid
        fake_quantize.fake_quantize(in_memory(x), in_memory(free), grid, in_memory(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, free, scale = ctx.saved_tensors
        out, grad = torch.empty_like(x), laid_like(grads[0], x)
        slope = fake_quantize.fake_quantize_gradient(
            in_memory(x), in_memory(free), ctx.grid, in_memory(grad), in_memory(out)
        )
        return out, None, torch.full_like(scale, slope / scale.item()), None

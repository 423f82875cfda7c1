"""Coins: which elements are drawn, at random; the same for the same seed."""

import numpy as np
import torch

from onnxptq.methods.reconstruction.layout import shaped_like

Tensor = torch.Tensor


class Coins:
    """Draws arrays of ones and zeros.

    Half and half is drawn bit by bit: on a CPU random numbers took as long as a convolution.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._rng = np.random.default_rng(seed)
        self._device = device
        self._noise = torch.Generator(device).manual_seed(seed)

    def drawn_like(self, value: Tensor, share: float) -> Tensor:
        """The same for each element of a tensor, in its order in memory."""
        return shaped_like(self.drawn(torch.Size([value.numel()]), share), value)

    def drawn(self, shape: torch.Size, share: float) -> Tensor:
        """1 with this probability, else 0, element by element; uint8."""
        if share != 0.5 or self._device.type != "cpu":
            chance = torch.rand(shape, generator=self._noise, device=self._device)
            return (chance < share).to(torch.uint8)
        count = shape.numel()
        packed = np.frombuffer(self._rng.bytes(-(-count // 8)), np.uint8)
        return torch.from_numpy(np.unpackbits(packed, count=count)).view(shape)

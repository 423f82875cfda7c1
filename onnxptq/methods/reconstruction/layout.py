"""Layout: how tensors of images lie in memory while blocks learn."""

from typing import Any

import torch

Tensor = torch.Tensor


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor, [N, C, H, W], with the channels of a place side by side in memory on a CPU.

    Convolutions of torch with their gradients take a half to a quarter of the time so.
    """
    if tensor.dim() != 4 or tensor.device.type != "cpu":
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def in_memory(tensor: Tensor) -> Any:
    """The numbers of a tensor without gaps as one row, in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()


def laid_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor in the order in memory of another one of its shape."""
    if tensor.stride() == other.stride():
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


def without_gaps(tensor: Tensor) -> Tensor:
    """The tensor as it is if it fills its memory, else copied."""
    return tensor if _is_dense(tensor) else tensor.contiguous()


def shaped_like(row: Tensor, other: Tensor) -> Tensor:
    """Numbers in the order in memory of another tensor, as many as it has."""
    return row.as_strided(other.shape, other.stride()) if _is_dense(other) else row.view_as(other)


def _is_dense(tensor: Tensor) -> bool:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last or tensor.is_contiguous()

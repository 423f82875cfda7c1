"""What operators that move numbers compute, as torch functions; see `functions`."""

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch.nn import functional

from onnxptq.methods.reconstruction.functions import NoGradientError, Tensor
from onnxptq.ops.nodes import int_attribute, ints_attribute, string_attribute


def concat(node: ir.Node, *parts: Tensor) -> Tensor:
    """Concat."""
    return torch.cat(parts, int_attribute(node, "axis", 0))


def reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    """Reshape; a size of 0 is the input's."""
    sizes = [int(size) for size in shape]
    if not int_attribute(node, "allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(node: ir.Node, x: Tensor) -> Tensor:
    """Flatten to two axes."""
    axis = int_attribute(node, "axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = int(torch.tensor(x.shape[:axis]).prod())
    return x.reshape(rows, -1)


def transpose(node: ir.Node, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(ints_attribute(node, "perm", tuple(reversed(range(x.dim())))))


def squeeze(_: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze; without axes all of size one."""
    return torch.squeeze(x) if axes is None else torch.squeeze(x, _ints(axes))


def unsqueeze(_: ir.Node, x: Tensor, axes: Tensor) -> Tensor:
    """Unsqueeze."""
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = torch.unsqueeze(x, axis)
    return x


def expand(_: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    """Expand, numpy's broadcasting in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, _ints(shape)))


def tile(_: ir.Node, x: Tensor, repeats: Tensor) -> Tensor:
    """Tile."""
    return x.repeat(_ints(repeats))


def gather(node: ir.Node, x: Tensor, indices: Tensor) -> Tensor:
    """Gather along one axis."""
    axis = int_attribute(node, "axis", 0) % x.dim()
    found = torch.index_select(x, axis, indices.reshape(-1) % x.shape[axis])
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def cut(
    _: ir.Node,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Slice; steps may be negative."""
    which = range(starts.numel()) if axes is None else _ints(axes)
    strides = [1] * starts.numel() if steps is None else _ints(steps)
    for axis, start, end, step in zip(which, _ints(starts), _ints(ends), strides, strict=True):
        size = x.shape[axis]
        # Python's slices clamp as ONNX's do, except that -size - 1 and below mean "before all".
        stop = None if step < 0 and end < -size else end
        positions = range(size)[start:stop:step]
        x = torch.index_select(x, axis, torch.tensor(list(positions), device=x.device))
    return x


def split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split; the last of `num_outputs` equal parts may be smaller."""
    axis = int_attribute(node, "axis", 0)
    if sizes is not None:
        return torch.split(x, list(_ints(sizes)), axis)
    parts = int_attribute(node, "num_outputs", len(node.outputs))
    return torch.split(x, -(-x.shape[axis] // parts), axis)


def depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
    """DepthToSpace, both modes."""
    n, c, h, w = x.shape
    b = int_attribute(node, "blocksize", 1)
    if string_attribute(node, "mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, b)
    x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // (b * b), h * b, w * b)


def resize(
    node: ir.Node,
    x: Tensor,
    _roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resize of the inner axes of [N, C, ...], in the forms that torch has too."""
    mode = string_attribute(node, "mode", "nearest")
    how = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
    rounding = string_attribute(node, "nearest_mode", "round_prefer_floor")
    given = scales if scales is not None and scales.numel() else None
    factors = None if given is None else [float(f) for f in given]
    wanted = _resized(x, factors, sizes)
    whole = [size % old == 0 for size, old in zip(wanted, x.shape, strict=True)]
    if wanted[:2] != list(x.shape[:2]):
        raise NoGradientError("it resizes samples or channels")
    if mode == "nearest" and all(whole) and (how, rounding) in _NEAREST:
        return functional.interpolate(x, wanted[2:], mode="nearest")
    if mode == "linear" and x.dim() == 4 and how in ("half_pixel", "pytorch_half_pixel"):
        return functional.interpolate(x, wanted[2:], mode="bilinear", align_corners=False)
    if mode == "linear" and x.dim() == 4 and how == "align_corners":
        return functional.interpolate(x, wanted[2:], mode="bilinear", align_corners=True)
    raise NoGradientError(f"it resizes by {mode}, {how}")


_NEAREST = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
"""Forms that repeat each number where the factor is whole."""


def _resized(x: Tensor, factors: list[float] | None, sizes: Tensor | None) -> list[int]:
    if factors is not None:
        return [int(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    if sizes is None:
        raise NoGradientError("it has neither scales nor sizes")
    return list(_ints(sizes))


_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}


def pad(
    node: ir.Node,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Pad with a constant, the edge or the mirror image; negative pads cut."""
    mode = string_attribute(node, "mode", "constant")
    if mode not in _PAD_MODES:
        raise NoGradientError(f"it pads by {mode}")
    ends = _ints(pads)
    half = len(ends) // 2
    which = range(half) if axes is None else [axis % x.dim() for axis in _ints(axes)]
    both = dict(zip(which, zip(ends[:half], ends[half:], strict=True), strict=True))
    last_first = [both.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
    while mode != "constant" and last_first and last_first[-1] == (0, 0):
        last_first.pop()
    flat = [end for pair in last_first for end in pair]
    filler = {} if mode != "constant" else {"value": 0.0 if value is None else float(value)}
    return functional.pad(x, flat, mode=_PAD_MODES[mode], **filler)


def _ints(values: Tensor | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)

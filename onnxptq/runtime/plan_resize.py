"""Resize by nearest neighbour: which pixel each pixel of the result is."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.program import Attribute, Instr
from onnxptq.quant import F32
from onnxptq.runtime.draft import Array, Draft, Shape
from onnxptq.runtime.plan_movement import Picture, give, take_all

ONE, HALF, NEARLY = np.float32(1), np.float32(0.5), np.float32(1e-6)


def resize(draft: Draft, instr: Instr) -> None:
    """Each pixel of the result is one of the input; the axes are independent."""
    source = draft.read(instr.inputs[0])
    sizes, scales = _target(draft, instr, source.shape)
    if sizes == source.shape:  # onnxruntime copies, whatever the scales are
        draft.views[instr.outputs[0]] = source
        return
    indices = [
        _index(instr, size, new, scale)
        for size, new, scale in zip(source.shape, sizes, scales, strict=True)
    ]
    repeats = [_repeats(index, size) for index, size in zip(indices, source.shape, strict=True)]
    if not all(repeats):
        take_all(draft, instr.outputs[0], source, indices)
        return
    picture = Picture.of(source)
    wide = picture.view.reshape([n for size in source.shape for n in (size, 1)])
    blocks = [n for pair in zip(source.shape, repeats, strict=True) for n in pair]
    give(draft, instr.outputs[0], picture.seen(np.broadcast_to(wide, blocks)))
    draft.views[instr.outputs[0]] = draft.views[instr.outputs[0]].at(0, sizes)


def _repeats(index: Array, size: int) -> int:
    """How often each pixel occurs, if all occur alike and in order; else 0."""
    times = len(index) // max(size, 1)
    return times if np.array_equal(index, np.repeat(np.arange(size), times)) else 0


def _target(draft: Draft, instr: Instr, shape: Shape) -> tuple[Shape, list[np.float32]]:
    """Sizes of the result, and the scale of each axis.

    Source:
        onnxruntime/core/providers/cpu/tensor/upsample.h and upsamplebase.h.
    """
    found = instr.attrs.get("axes", ())
    assert isinstance(found, tuple)
    axes = [axis % len(shape) for axis in found or range(len(shape))]
    sizes, scales = list(shape), [ONE] * len(shape)
    wanted = draft.optional_numbers(instr, 3)
    if wanted:
        _expect_length(wanted, axes)
        pairs = list(zip(axes, wanted, strict=True))
        factors = [np.float32(size) / np.float32(shape[axis]) for axis, size in pairs]
        one = _kept_aspect(instr.attrs.get("keep_aspect_ratio_policy", "stretch"), factors)
        for (axis, size), factor in zip(pairs, factors, strict=True):
            scales[axis] = factor if one is None else one
            rounded = _round_half_away(np.atleast_1d(scales[axis] * np.float32(shape[axis])))
            sizes[axis] = size if one is None else int(rounded[0])
        return tuple(sizes), scales
    factors = draft.numbers(instr, 2).reshape(-1).astype(np.float32)
    _expect_length(factors, axes)
    for axis, factor in zip(axes, factors, strict=True):
        sizes[axis] = int(factor * np.float32(shape[axis]))
        scales[axis] = factor
    return tuple(sizes), scales


def _expect_length(numbers: Sequence[int] | F32, axes: Sequence[int]) -> None:
    if len(numbers) != len(axes):
        raise ProgramError(f"{len(numbers)} scales or sizes for the axes {list(axes)}")


def _kept_aspect(policy: Attribute, factors: Sequence[np.float32]) -> np.float32 | None:
    """The factor that is the same for all axes; None where each has its own."""
    if policy == "stretch":
        return None
    return min(factors) if policy == "not_larger" else max(factors)


def _index(instr: Instr, size: int, new: int, scale: np.float32) -> Array:
    """Which pixel of an axis of `size` each of `new` pixels is, [new]."""
    mode, rounding = instr.text("coordinate_transformation_mode"), instr.text("nearest_mode")
    if mode not in COORDINATES or rounding not in ROUNDINGS:
        raise ProgramError(
            f"coordinates {mode!r} with {rounding!r}; expected one of {', '.join(COORDINATES)} "
            f"with one of {', '.join(ROUNDINGS)}"
        )
    return nearest_pixels((mode, rounding), size, new, scale)


def nearest_pixels(modes: tuple[str, str], size: int, new: int, scale: np.float32) -> Array:
    """Which pixel of an axis each pixel of the resized one is, [new]; all in float32.

    Args:
        modes: A key of `COORDINATES` and one of `ROUNDINGS`.
        size: Pixels of the axis.
        new: Pixels that it gets.
        scale: By how much it grows.
    """
    if scale == ONE or not new:
        return np.arange(new)
    place = COORDINATES[modes[0]](np.arange(new, dtype=np.float32), scale, new, size)
    return np.clip(ROUNDINGS[modes[1]](place.astype(np.float32)).astype(np.int64), 0, size - 1)


def _half_pixel(x: F32, scale: np.float32, new: int, size: int) -> F32:
    del new, size
    return (x + HALF) / scale - HALF


def _pytorch_half_pixel(x: F32, scale: np.float32, new: int, size: int) -> F32:
    return _half_pixel(x, scale, new, size) if new > 1 else np.zeros_like(x)


def _half_pixel_symmetric(x: F32, scale: np.float32, new: int, size: int) -> F32:
    adjustment = np.float32(new) / (scale * np.float32(size))
    offset = np.float32(size) / np.float32(2) * (ONE - adjustment)
    # onnxruntime writes 0.5 without f here, and so computes the rest in float64.
    wide = float(offset) + (x.astype(np.float64) + 0.5) / float(scale) - 0.5
    return wide.astype(np.float32)


def _asymmetric(x: F32, scale: np.float32, new: int, size: int) -> F32:
    del new, size
    return x / scale


def _align_corners(x: F32, scale: np.float32, new: int, size: int) -> F32:
    del scale
    return x * np.float32(size - 1) / np.float32(new - 1) if new > 1 else np.zeros_like(x)


def _tf_half_pixel_for_nn(x: F32, scale: np.float32, new: int, size: int) -> F32:
    del new, size
    return (x + HALF) / scale


def _round_prefer_floor(x: F32) -> F32:
    return np.where(_is_half(x), np.floor(x), _round_half_away(x))


def _round_prefer_ceil(x: F32) -> F32:
    return np.where(_is_half(x), np.ceil(x), _round_half_away(x))


def _is_half(x: F32) -> npt.NDArray[np.bool_]:
    """Whether a coordinate lies in the middle of two pixels, up to rounding errors.

    onnxruntime 1.32 takes what is less than 1e-6 away for a half; found by trying 15,000 places.
    """
    return np.abs(x - np.floor(x) - HALF) < NEARLY


def _round_half_away(x: F32) -> F32:
    return np.trunc(x + np.copysign(HALF, x))


# Source: onnxruntime/core/providers/cpu/tensor/upsamplebase.h, GetOriginalCoordinateFromResized.
COORDINATES: dict[str, Callable[[F32, np.float32, int, int], F32]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "asymmetric": _asymmetric,
    "align_corners": _align_corners,
    "tf_half_pixel_for_nn": _tf_half_pixel_for_nn,
}
ROUNDINGS: dict[str, Callable[[F32], F32]] = {
    "round_prefer_floor": _round_prefer_floor,
    "round_prefer_ceil": _round_prefer_ceil,
    "floor": np.floor,
    "ceil": np.ceil,
}

"""Rows of convolutions of uint8 codes and int8 weights, channels last: packing and bands."""

import math
from dataclasses import dataclass

import numpy as np

from onnxptq.kernels import conv_u8s8 as kernel
from onnxptq.kernels import epilogue, target
from onnxptq.requant import Form, Requant
from onnxptq.runtime.draft import I64, Array, Cell, Draft
from onnxptq.runtime.window import Image, Window

BAND_BYTES = 128 * 1024
"""Of x that a band reads: it stays in the second cache while blocks of channels go over it."""
FEW_WEIGHTS_BYTES = 1024 * 1024
"""Weights beyond this would have to come from memory for each band, so bands are larger then."""
FEW_LINES = 16
"""With fewer lines, parts of a row share the channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution as the kernel wants it.

    Attributes:
        weight: Codes less their zero point, int16 [groups, group_out, k_h, k_w, group_in].
        bias: int32 [M].
        x_zero: As x is stored.
        image: Of x; strides in elements.
        target: Of y.
        window: How it walks.
    """

    weight: Array
    bias: Array
    x_zero: int
    image: Image
    target: Image
    window: Window

    @property
    def channels(self) -> int:
        """Of x."""
        return self.image.channels


def fits(layer: Layer) -> bool:
    """Whether the kernel can compute it, and this CPU has what makes it fast."""
    if not target.HAS_AVX2:
        return False
    least, most = int(layer.weight.min(initial=0)), int(layer.weight.max(initial=0))
    last = layer.image.strides[1] == 1 and layer.target.strides[1] == 1
    return last and len(layer.window.kernel) == 2 and least >= -128 and most <= 127


def columns(
    draft: Draft, layer: Layer, requant: Requant | None, numbers: dict[str, Array]
) -> dict[str, Cell]:
    """All columns but x and y, the limits, and what a residual sum adds.

    Args:
        draft: Where constants go.
        layer: The convolution.
        requant: Of its codes; None if accumulators are wanted.
        numbers: multiplier, rounding and shift of each channel, for codes as they are stored.
    """
    window, image = layer.window, layer.image
    groups, group_out = layer.weight.shape[:2]
    taps, runs = _runs(layer)
    steps = -(-runs.shape[-1] // kernel.STEP)
    copied = window.padded
    band = _band(layer)
    line_bytes, plane = _copy(layer, band)
    packed = kernel.pack(runs)
    bias = bias_without_zero(layer)
    fixed = requant is not None and _is_fixed(layer, requant, numbers)
    if not fixed:
        numbers = dict.fromkeys(("multiplier", "rounding", "shift"), np.zeros(bias.size, np.int64))
    params = [
        epilogue.params_of(
            *(
                array.reshape(groups, group_out)[g]
                for array in (bias, numbers["multiplier"], numbers["rounding"], numbers["shift"])
            )
        )
        for g in range(groups)
    ]
    units = groups * -(-group_out // kernel.BLOCK)
    lines = image.batch * window.out[0]
    copy_bytes = line_bytes * plane * window.strides[0] if copied else 0
    return {
        "weight": draft.constants.add(packed),
        "params": draft.constants.add(np.concatenate(params)),
        "taps": draft.constants.add(_tap_offsets(layer, taps, line_bytes, plane)),
        "n_taps": len(taps),
        "run_steps": steps,
        "groups": groups,
        "group_in": layer.weight.shape[-1],
        "group_out": group_out,
        **spatial_columns(layer),
        "x_zero": layer.x_zero,
        "band": band,
        "copied": int(copied),
        "line_bytes": line_bytes,
        "plane_lines": plane,
        "reach_h": _reach(window, 0),
        "by_channels": int(lines < FEW_LINES and units > 1),
        "fixed": int(fixed),
        "addend": -1,
        "sum_params": -1,
        **draft.scratch(kernel.scratch_bytes(band * window.out[1], copy_bytes)),
    }


def spatial_columns(layer: Layer) -> dict[str, Cell]:
    """Sizes and strides of x, y and the window, and the batch."""
    window, image = layer.window, layer.image
    pairs = {"in": image.sizes, "out": window.out, "s": window.strides, "p": window.pads}
    columns: dict[str, Cell] = {"batch": image.batch}
    for name, (h, w) in pairs.items():
        columns |= {f"{name}_h": h, f"{name}_w": w}
    for name, (n, _, (h, w)) in (("x", image.strides), ("y", layer.target.strides)):
        columns |= {f"{name}_n": n, f"{name}_h": h, f"{name}_w": w}
    return columns


def _reach(window: Window, axis: int) -> int:
    return (window.kernel[axis] - 1) * window.dilations[axis] + 1


def _runs(layer: Layer) -> tuple[list[tuple[int, int]], Array]:
    """Taps, and the weights of the run of bytes at each, [groups, group_out, taps, run].

    Taps beside each other are one run where their pixels lie one after the other.
    """
    k_h, k_w = layer.window.kernel
    weight = layer.weight
    groups, outs, channels = weight.shape[0], weight.shape[1], weight.shape[-1]
    dense = layer.window.padded or layer.image.strides[2][1] == layer.channels
    if groups == 1 and dense and layer.window.dilations[1] == 1:
        return [(h, 0) for h in range(k_h)], weight.reshape(1, outs, k_h, k_w * channels)
    taps = [(h, w) for h in range(k_h) for w in range(k_w)]
    return taps, weight.reshape(groups, outs, k_h * k_w, channels)


def bias_without_zero(layer: Layer) -> Array:
    """The bias less what the zero point of x adds to every sum; wraps around as int32 does."""
    sums = layer.weight.astype(np.int64).sum(axis=(2, 3, 4)).ravel()
    return (layer.bias.astype(np.int64) - layer.x_zero * sums).astype(np.int32)


def _is_fixed(layer: Layer, requant: Requant, numbers: dict[str, Array]) -> bool:
    """Whether all channels are fixed point whose results fit 32 bits before they are clipped."""
    if (requant.form != Form.FIXED_POINT).any():
        return False
    sizes = np.abs(layer.weight.astype(np.int64)).sum(axis=(2, 3, 4)).ravel()
    most = 255.0 * sizes + np.abs(layer.bias.astype(np.float64))
    most = np.where(most < 2**31, most, 2.0**31)  # a sum that wraps around may be any number
    results = most * numbers["multiplier"] + np.abs(numbers["rounding"].astype(np.float64))
    return bool((np.ldexp(results, -numbers["shift"].astype(np.int64)) < 2**30).all())


def _band(layer: Layer) -> int:
    """Output lines that are worked on at a time."""
    window = layer.window
    few = layer.weight.size <= FEW_WEIGHTS_BYTES
    size = BAND_BYTES if few else 8 * BAND_BYTES
    line = window.strides[0] * max(layer.image.sizes[1], 1) * layer.channels
    return max(1, min(window.out[0], (size - _reach(window, 0) * line) // max(line, 1) + 1))


def _copy(layer: Layer, band: int) -> tuple[int, int]:
    """Bytes of a copied line, and lines of a plane of the copy."""
    window = layer.window
    s_h, s_w = window.strides
    width = (window.out[1] - 1) * s_w + _reach(window, 1)
    lines = (band - 1) * s_h + _reach(window, 0)
    return -(-width // s_w) * s_w * layer.channels, -(-lines // s_h)


def _tap_offsets(layer: Layer, taps: list[tuple[int, int]], line: int, plane: int) -> I64:
    """Bytes from the first tap of a pixel to each."""
    window, (x_h, x_w) = layer.window, layer.image.strides[2]
    s_h, (d_h, d_w) = window.strides[0], window.dilations
    offsets: list[int] = []
    for h, w in taps:
        down, right = h * d_h, w * d_w
        if window.padded:
            at = ((down % s_h) * plane + down // s_h) * line
            offsets.append(at + right * layer.channels)
        else:
            offsets.append(down * x_h + right * x_w)
    return np.array(offsets, np.int64)


def work_of(layer: Layer) -> int:
    """Multiplications."""
    return layer.image.batch * math.prod(layer.window.out) * layer.weight.size

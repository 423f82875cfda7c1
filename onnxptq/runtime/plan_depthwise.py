"""Rows of depthwise convolutions of uint8 codes and int8 weights, channels last."""

import math

import numpy as np

from onnxptq.kernels import depthwise_u8s8 as kernel
from onnxptq.kernels import epilogue
from onnxptq.runtime.draft import Array, Cell, Draft
from onnxptq.runtime.plan_conv import Layer, bias_without_zero, spatial_columns

KERNEL = "depthwise_u8s8"
MACS_OF_UNIT = 5
"""More time goes into a sum than into its terms."""


def columns(draft: Draft, layer: Layer, numbers: dict[str, Array] | None) -> dict[str, Cell]:
    """All columns but x and y and the limits.

    Args:
        draft: Where constants go.
        layer: The convolution, one filter a group of one channel.
        numbers: From `plan_conv.fixed_point`.
    """
    window, line = layer.window, _line(layer)
    found = kernel.columns_of(line)
    weight, bias = layer.weight[:, 0, :, :, 0], bias_without_zero(layer)
    least = np.full(bias.size, epilogue.LEAST_SHIFT)
    none = {"multiplier": 0 * least, "rounding": 0 * least, "shift": least}
    ending = [bias, *((numbers or none)[name] for name in ("multiplier", "rounding", "shift"))]
    scratch = kernel.scratch_bytes(line, window.out[0], found.slots)
    add = draft.constants.add
    return {
        "weight": add(kernel.pack(line, np.moveaxis(weight, 0, -1), ending)),
        "border": add(np.full(kernel.BLOCK, layer.x_zero, np.uint8)),
        "columns": add(found.table),
        "n_columns": len(found.table),
        "copies": add(found.copies),
        "pieces": add(found.pieces),
        "groups": layer.channels,
        "k_h": window.kernel[0],
        "k_w": window.kernel[1],
        "d_h": window.dilations[0],
        "d_w": window.dilations[1],
        **spatial_columns(layer),
        "x_zero": layer.x_zero,
        "fixed": int(numbers is not None),
        **draft.scratch(scratch),
    }


def _line(layer: Layer) -> kernel.Line:
    window, image = layer.window, layer.image
    return kernel.Line(
        channels=layer.channels,
        x_w=image.strides[2][1],
        in_w=image.sizes[1],
        out_w=window.out[1],
        kernel=window.kernel[1],
        stride=window.strides[1],
        dilation=window.dilations[1],
        pad=window.pads[1],
        in_h=image.sizes[0],
    )


def work_of(layer: Layer) -> int:
    """How much there is to do, in units of PART_WORK."""
    return layer.image.batch * math.prod(layer.window.out) * layer.weight.size // MACS_OF_UNIT

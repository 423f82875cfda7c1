"""Rows of depthwise convolutions of uint8 codes and int8 weights, channels last."""

import numpy as np

from onnxptq.kernels import depthwise_u8s8 as kernel
from onnxptq.kernels import epilogue
from onnxptq.requant import Form, Requant
from onnxptq.runtime.draft import Array, Cell, Draft
from onnxptq.runtime.plan_conv import Layer, bias_without_zero, spatial_columns


def columns(
    draft: Draft, layer: Layer, requant: Requant | None, numbers: dict[str, Array]
) -> dict[str, Cell]:
    """All columns but x and y and the limits.

    Args:
        draft: Where constants go.
        layer: The convolution, one filter a group of one channel.
        requant: Of its codes; None if accumulators are wanted.
        numbers: multiplier, rounding and shift of each channel, for codes as they are stored.
    """
    window, line = layer.window, _line(layer)
    found = kernel.columns_of(line)
    bias = bias_without_zero(layer)
    fixed = requant is not None and _is_fixed(requant)
    if not fixed:
        least = np.full(bias.size, epilogue.LEAST_BLOCK_SHIFT)
        numbers = {"multiplier": 0 * bias, "rounding": 0 * bias, "shift": least}
    weight = np.moveaxis(layer.weight[:, 0, :, :, 0], 0, -1)
    ending = [bias, numbers["multiplier"], numbers["rounding"], numbers["shift"]]
    scratch = kernel.scratch_bytes(line, window.out[0], found.slots)
    add = draft.constants.add
    return {
        "weight": add(kernel.pack(line, weight, ending)),
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
        "fixed": int(fixed),
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


def _is_fixed(requant: Requant) -> bool:
    """Whether all channels are fixed point of a shift that the kernel takes in two steps."""
    fixed = (requant.form == Form.FIXED_POINT).all()
    return bool(fixed and (requant.shift >= epilogue.LEAST_BLOCK_SHIFT).all())

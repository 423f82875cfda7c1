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
    weight, bias = layer.weight[:, 0, :, :, 0], bias_without_zero(layer)
    numbers = numbers if requant is not None and _all_fixed(requant) else {}
    shifted = _shifted(layer, numbers) if numbers else None
    if shifted is not None:
        weight, bias, numbers = shifted
    else:
        least = np.full(bias.size, epilogue.LEAST_BLOCK_SHIFT)
        numbers = {"multiplier": 0 * least, "rounding": 0 * least, "shift": least}
    ending = [bias, numbers["multiplier"], numbers["rounding"], numbers["shift"]]
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
        "fixed": int(shifted is not None),
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


def _all_fixed(requant: Requant) -> bool:
    return bool((requant.form == Form.FIXED_POINT).all())


def _shifted(
    layer: Layer, numbers: dict[str, Array]
) -> tuple[Array, Array, dict[str, Array]] | None:
    """Weights, bias and numbers of channels whose shifts all are what the kernel needs at least.

    Where one is less, all of the channel is times a power of two; weights of few bits have room.
    None if some have not.
    """
    up = np.maximum(epilogue.LEAST_BLOCK_SHIFT - numbers["shift"], 0)
    weight = layer.weight[:, 0, :, :, 0].astype(np.int64)
    bias = layer.bias - layer.x_zero * weight.sum(axis=(1, 2))
    most = 255 * np.abs(weight).sum(axis=(1, 2)) + np.abs(bias)
    room = (np.ldexp(most, up) < 2**31) & (np.ldexp(np.abs(numbers["rounding"]), up) < 2**62)
    weight = weight << up[:, None, None]
    inside = (weight >= -128) & (weight <= 127)
    if not ((room & inside.all(axis=(1, 2))) | (up == 0)).all():
        return None
    numbers = {
        "multiplier": numbers["multiplier"],
        "rounding": numbers["rounding"] << up,
        "shift": numbers["shift"] + up,
    }
    return weight.astype(np.int16), (bias << up).astype(np.int32), numbers

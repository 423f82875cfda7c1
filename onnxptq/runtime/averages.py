"""Averages over whole maps: a sum and one requantization, which divides by the pixels too."""

import math

import numpy as np

from onnxptq import formulas, requant
from onnxptq.program import Instr, Value
from onnxptq.requant import Requant
from onnxptq.runtime.window import is_channels_last, pool_window

Ends = tuple[int, int]


def averaged_pixels(instr: Instr, shape: tuple[int, ...]) -> int | None:
    """How many pixels a pool averages over whole maps, or None where it has windows.

    Args:
        instr: An average_pool or global_average_pool.
        shape: Of its input.

    Source:
        onnxruntime/contrib_ops/cpu/quantization/qlinear_pool.cc: a window that is the whole image,
        without padding, is a global average pool.
    """
    sizes = shape[1:-1] if is_channels_last(instr) else shape[2:]
    if instr.op == "average_pool":
        window = pool_window(instr, sizes)
        if window.kernel != sizes or window.padded:
            return None
    return math.prod(sizes)


def average_requant(instr: Instr, x: Value, y: Value, pixels: int) -> tuple[Requant, Ends]:
    """The requantization of such an average, the same for all channels, and its accumulators.

    Args:
        instr: The pool.
        x: Its input.
        y: Its output.
        pixels: From `averaged_pixels`.
    """
    x_scale, y_scale = instr.arrays["scales"].astype(np.float32)
    x_zero, y_zero = (int(zero) for zero in instr.arrays["zero_points"])
    scale = formulas.global_average_scale(x_scale, y_scale, pixels).reshape(1)
    lo, hi = pixels * (x.lo - x_zero), pixels * (x.hi - x_zero)
    ends = np.iinfo(y.dtype)
    found = requant.find(
        scale, y_zero, int(ends.min), int(ends.max), np.array([lo]), np.array([hi])
    )
    return found, (lo, hi)

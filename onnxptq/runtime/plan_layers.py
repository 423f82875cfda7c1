"""Rows of instructions that look at windows or along axes: pools, softmax, reductions."""

import math

import numpy as np

from onnxptq import formulas
from onnxptq.errors import ProgramError
from onnxptq.kernels import global_average_pool as global_average_pool_kernel
from onnxptq.program import Instr
from onnxptq.runtime.averages import average_requant, averaged_pixels
from onnxptq.runtime.draft import Cell, Draft, View
from onnxptq.runtime.plan_movement import Picture, copy
from onnxptq.runtime.plan_requant import requant_columns
from onnxptq.runtime.window import (
    Image,
    Window,
    is_channels_last,
    make_image,
    pool_window,
)


def _pool_columns(draft: Draft, instr: Instr) -> tuple[dict[str, Cell], Window, View]:
    """The columns that both windowed pools share, the window and the output."""
    source, last = draft.read(instr.inputs[0]), is_channels_last(instr)
    image = Image.of(source, last)
    window = pool_window(instr, image.sizes)
    target = make_image(draft, instr, image, (image.channels, *window.out))
    columns: dict[str, Cell] = {
        "x": source,
        "y": target,
        "batch": image.batch,
        "channels": image.channels,
        **window.columns(),
        **image.columns("x"),
        **Image.of(target, last).columns("y"),
    }
    return columns, window, target


def max_pool(draft: Draft, instr: Instr) -> None:
    """The largest code of each window; the lowest there is where a window holds no pixel."""
    columns, window, target = _pool_columns(draft, instr)
    if target.size:
        work = target.size * math.prod(window.kernel)
        draft.row("max_pool", columns | {"empty": 0}, work)


def average_pool(draft: Draft, instr: Instr) -> None:
    """The mean of each window, as onnxruntime sums it in float32; of a whole map, of all pixels."""
    if averaged_pixels(instr, draft.read(instr.inputs[0]).shape) is not None:
        global_average_pool(draft, instr)
        return
    columns, window, target = _pool_columns(draft, instr)
    x_scale, y_scale, x_zero, y_zero = _both(instr)
    sign = draft.sign(instr.outputs[0])
    codes = np.arange(256) - draft.sign(instr.inputs[0])
    values = formulas.dequantized(codes, formulas.Affine(x_scale, x_zero))
    columns |= {
        "values": draft.constants.add(values.view(np.int32)),
        "include_pad": instr.int("count_include_pad"),
        "y_scale_bits": int(y_scale.view(np.int32)),
        "y_zero": y_zero,
        "lo": -sign,
        "hi": 255 - sign,
        "bias128": sign,
    }
    if target.size:
        draft.row("average_pool", columns, 16 * target.size * math.prod(window.kernel))


def _both(instr: Instr) -> tuple[np.float32, np.float32, int, int]:
    """Scales and zero points of input and output."""
    scales = instr.arrays["scales"].astype(np.float32)
    zeros = instr.arrays["zero_points"]
    return scales[0], scales[1], int(zeros[0]), int(zeros[1])


def global_average_pool(draft: Draft, instr: Instr) -> None:
    """The mean of each channel; its requantization depends on the number of pixels."""
    source, value = draft.read(instr.inputs[0]), instr.inputs[0]
    image = Image.of(source, is_channels_last(instr))
    pixels = math.prod(image.sizes)
    ones = (1,) * len(image.sizes)
    target = make_image(draft, instr, image, (image.channels, *ones))
    x, y = (draft.program.values[number] for number in (value, instr.outputs[0]))
    found, _ = average_requant(instr, x, y, pixels)
    batch, channel, rest = image.strides
    columns: dict[str, Cell] = {
        "x": source,
        "y": target,
        "batch": image.batch,
        "channels": image.channels,
        "pixels": pixels,
        "x_n": batch,
        "x_c": channel,
        "x_p": rest[-1],
        "y_n": image.channels,
        "y_c": 1,
        "x_zero": int(instr.arrays["zero_points"][0]) + draft.sign(value),
        **draft.scratch(global_average_pool_kernel.scratch_bytes()),
        **requant_columns(draft, instr, image.channels, found),
    }
    if target.size:
        draft.row("global_average_pool", columns, source.size)


def softmax(draft: Draft, instr: Instr) -> None:
    """Shares of exponentials; before opset 13 all axes from `axis` on are one."""
    source = draft.read(instr.inputs[0])
    shape, axis = source.shape, instr.int("axis") % len(source.shape)
    behind = shape[axis + 1 :]
    if instr.int("opset") < 13:
        length, inner = math.prod(shape[axis:]), 1
    else:
        length, inner = shape[axis], math.prod(behind)
    target = draft.make(instr.outputs[0], shape)
    if not source.size:
        return
    x_scale, y_scale, _, y_zero = _both(instr)
    table = formulas.softmax_table(x_scale, length)
    sign = draft.sign(instr.outputs[0])
    columns: dict[str, Cell] = {
        "x": source,
        "y": target,
        "outer": math.prod(shape[:axis]),
        "length": length,
        "inner": inner,
        "table": draft.constants.add(table.view(np.int32)),
        "one_over_bits": int(formulas.softmax_multiplier(y_scale).view(np.int32)),
        "y_zero": y_zero,
        "hi": 255 - sign,
        "bias128": sign,
        "exact": instr.int("exact"),
        "x_is_signed": 0,  # only distances of codes count, and those of stored ones are the same
    }
    draft.row("softmax", columns, 64 * source.size)


def reduce(draft: Draft, instr: Instr) -> None:
    """The largest or smallest code along axes; they are brought to the end where they are apart."""
    source = draft.read(instr.inputs[0])
    shape, found = source.shape, draft.optional_numbers(instr, 1)
    axes = sorted({axis % len(shape) for axis in found or range(len(shape))})
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    keep = [1 if axis in axes else size for axis, size in enumerate(shape)]
    sizes = keep if instr.int("keepdims") else [shape[axis] for axis in kept]
    target = draft.make(instr.outputs[0], sizes)
    if not source.size:
        if target.size:
            raise ProgramError(f"no element along axes {axes} of shape {shape}")
        return
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    if axes != list(range(axes[0], axes[-1] + 1)):
        picture = Picture.of(source)
        moved = picture.seen(picture.view.transpose(*kept, *axes))
        source = draft.temporary(moved.view.shape, source.dtype)
        copy(draft, moved, Picture.of(source))
        outer, inner = target.size, 1
    count = math.prod(shape[axis] for axis in axes)
    op = 3 if instr.op == "reduce_max" else 2
    columns: dict[str, Cell] = {"x": source, "y": target, "op": op}
    draft.row("reduce", columns | {"outer": outer, "count": count, "inner": inner}, count * outer)

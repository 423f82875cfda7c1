"""Rows of instructions that sum products or look at windows: layers, pools, softmax."""

import math

import numpy as np

from onnxptq import formulas, reach, requant
from onnxptq.errors import ProgramError
from onnxptq.kernels import global_average_pool as global_average_pool_kernel
from onnxptq.kernels.conv import conv_scratch_bytes
from onnxptq.kernels.depthwise import depthwise_scratch_bytes
from onnxptq.kernels.matmul import matmul_scratch_bytes
from onnxptq.program import Instr
from onnxptq.requant import GROUP, Requant
from onnxptq.runtime import plan_conv, plan_elementwise, plan_sums
from onnxptq.runtime.averages import average_requant, averaged_pixels
from onnxptq.runtime.draft import Array, Cell, Draft, Shape, View
from onnxptq.runtime.plan_movement import Picture, copy
from onnxptq.runtime.window import (
    Image,
    Window,
    conv_window,
    image_shape,
    is_channels_last,
    make_image,
    pool_window,
    spatial,
)

MAC_WORK = 16
"""Multiplications that count as one unit of work."""


def requant_columns(draft: Draft, instr: Instr, channels: int, found: Requant) -> dict[str, Cell]:
    """Columns of a requantization, for codes as they are stored.

    Args:
        draft: Where constants go.
        instr: Whose output the codes are.
        channels: How many; numbers that are the same for all are repeated.
        found: The requantization.
    """
    sign, steps = draft.sign(instr.outputs[0]), found.thresholds.shape[1]
    groups = -(-channels // GROUP)
    mantissa, exponent = requant.split_scale(found.scale)
    arrays = {
        "form": _each(found.form, groups).astype(np.uint8),
        **fixed_point_numbers(found, channels, sign),
        "mantissa": _each(mantissa, channels).astype(np.int32),
        "exponent": _each(exponent, channels),
    }
    columns: dict[str, Cell] = {name: draft.constants.add(a) for name, a in arrays.items()}
    thresholds = -1
    if steps:
        thresholds = draft.constants.add(_each(found.thresholds, channels).astype(np.int32))
    return columns | {
        "thresholds": thresholds,
        "steps": steps,
        "lo": found.lo + sign,
        "hi": found.hi + sign,
        "zero": found.zero_point + sign,
    }


def fixed_point_numbers(found: Requant, channels: int, sign: int) -> dict[str, Array]:
    """multiplier, rounding and shift of each channel, for codes that are stored `sign` higher."""
    shift = _each(found.shift, channels).astype(np.int64)
    rounding = _each(found.rounding, channels) + (np.int64(sign) << shift)
    return {
        "multiplier": _each(found.multiplier, channels).astype(np.int32),
        "rounding": rounding.astype(np.int64),
        "shift": shift,
    }


def _each(array: Array, count: int) -> Array:
    """An array of `count` entries, of as many or of one that stands for all."""
    if len(array) not in (1, count):
        raise ProgramError(f"numbers of {len(array)} channels for {count}")
    return np.ascontiguousarray(np.broadcast_to(array, (count, *array.shape[1:])))


def _ending(draft: Draft, instr: Instr, channels: int) -> dict[str, Cell]:
    """Columns of what happens to accumulators: they become codes, or stay."""
    if instr.requant is None:
        return {"real_acc": 1}
    assert isinstance(instr.requant, Requant)
    return {"real_acc": 0, **requant_columns(draft, instr, channels, instr.requant)}


def _bias(draft: Draft, instr: Instr, channels: int) -> int:
    bias = instr.arrays.get("bias")
    if bias is None:
        return -1
    return draft.constants.add(_each(bias.reshape(-1).astype(np.int32), channels))


def _steps(instr: Instr) -> Array:
    """Weights as the distance from their zero point, int16."""
    weight, zero = instr.arrays["weight"], instr.arrays["weight_zero"].reshape(-1)
    if instr.op == "conv":
        zero = zero.reshape(-1, *(1,) * (weight.ndim - 1))
    return weight.astype(np.int16) - zero.astype(np.int16)


def conv(draft: Draft, instr: Instr) -> None:
    """Convolution; one filter a channel has a kernel of its own."""
    image = Image.of(draft.read(instr.inputs[0]), is_channels_last(instr))
    weight, groups = _steps(instr), instr.int("group")
    filters, group_in, kernel = weight.shape[0], weight.shape[1], weight.shape[2:]
    if len(kernel) != len(image.sizes) or group_in * groups != image.channels:
        raise ProgramError(
            f"weights {weight.shape} in {groups} groups for an image of {image.channels} channels "
            f"and {len(image.sizes)} axes"
        )
    window = conv_window(instr, image.sizes, kernel)
    depthwise = groups == filters == image.channels and groups > 1
    group_out = filters // groups
    if not depthwise and _conv_u8s8(draft, instr, image, window, weight):
        return
    target = make_image(draft, instr, image, (filters, *window.out))
    if depthwise:
        packed = np.moveaxis(weight[:, 0], 0, -1)
    else:
        packed = np.moveaxis(weight.reshape(groups, group_out, *weight.shape[1:]), 2, -1)
    taps = math.prod(kernel) * group_in
    scratch = (
        depthwise_scratch_bytes(taps, filters) if depthwise else conv_scratch_bytes(taps, group_out)
    )
    columns = {
        "x": draft.read(instr.inputs[0]),
        "y": target,
        "weight": draft.constants.add(packed),
        "bias": _bias(draft, instr, filters),
        **window.columns(),
        **image.columns("x"),
        **Image.of(target, is_channels_last(instr)).columns("y"),
        "batch": image.batch,
        "groups": groups,
        "group_in": group_in,
        "group_out": group_out,
        "x_zero": instr.int("x_zero") + draft.sign(instr.inputs[0]),
        **draft.scratch(scratch),
        **_ending(draft, instr, filters),
    }
    if target.size:
        draft.row("depthwise" if depthwise else "conv", columns, target.size * taps // MAC_WORK)


def _conv_u8s8(draft: Draft, instr: Instr, image: Image, window: Window, weight: Array) -> bool:
    """A row of a fast kernel, if one can compute this; `weight` is [M, C/group, k_h, k_w]."""
    shape = image_shape(instr, image, (weight.shape[0], *window.out))
    if len(window.kernel) != 2 or math.prod(shape) == 0:
        return False
    groups, filters = instr.int("group"), weight.shape[0]
    bias = instr.arrays.get("bias")
    bias = np.zeros(filters, np.int32) if bias is None else bias.reshape(-1).astype(np.int32)
    grouped = weight.reshape(groups, filters // groups, *weight.shape[1:])
    layer = plan_conv.Layer(
        np.moveaxis(grouped, 2, -1),
        _each(bias, filters),
        instr.int("x_zero") + draft.sign(instr.inputs[0]),
        image,
        Image.of_shape(shape, is_channels_last(instr)),
        window,
        _codes(draft, instr),
    )
    if not plan_conv.fits(layer):
        return False
    found, numbers = instr.requant, None
    if found is not None:
        assert isinstance(found, Requant)
        stored = fixed_point_numbers(found, filters, draft.sign(instr.outputs[0]))
        numbers = plan_conv.fixed_point(layer, found, stored)
    layout = plan_conv.choose(layer)
    columns: dict[str, Cell] = {
        "x": draft.read(instr.inputs[0]),
        **plan_conv.columns(draft, layer, layout, numbers),
        **_ending(draft, instr, filters),
        **(_joined_sum(draft, instr, shape) if numbers else {}),
    }
    if "y" not in columns:
        columns["y"] = draft.make(instr.outputs[0], shape)
    draft.row(layout.kernel, columns, plan_conv.work_of(layer) // MAC_WORK)
    return True


def _codes(draft: Draft, instr: Instr) -> tuple[int, int]:
    """Lowest and highest code of x and of what is around it; any code where the program is fed."""
    number, zero = instr.inputs[0], instr.int("x_zero")
    x, sign = draft.program.values[number], draft.sign(number)
    if any(port.value == number for port in draft.program.inputs):
        return 0, 255
    return min(x.lo, zero) + sign, max(x.hi, zero) + sign


def _joined_sum(draft: Draft, instr: Instr, shape: Shape) -> dict[str, Cell]:
    """Columns of the residual sum that alone reads the output, if the kernel can compute it too."""
    value = instr.outputs[0]
    add = draft.sums.get(value)
    if add is None:
        return {}
    other = plan_sums.addend_of(draft, add, value, shape)
    numbers = plan_elementwise.pair_numbers(draft, add)
    params = plan_sums.sum_params(numbers, is_first=add.inputs[0] == value)
    if other is None:
        return {}
    draft.done.add(add.outputs[0])
    return {
        "y": draft.make(add.outputs[0], shape),
        "addend": draft.read(other),
        "sum_params": draft.constants.add(np.array(params, np.int64)),
    }


def matmul(draft: Draft, instr: Instr) -> None:
    """Product with constant matrices: a convolution of one pixel for each row."""
    source, weight = draft.read(instr.inputs[0]), _steps(instr)
    a_shape, b_shape, shape = _matrices(source.shape, weight.shape)
    target = draft.make(instr.outputs[0], shape)
    if math.prod(b_shape[:-2]) == 1:  # one matrix for all rows
        a_shape = (math.prod(a_shape[:-1]), a_shape[-1])
        b_shape = b_shape[-2:]
    k, n = b_shape[-2:]
    weight = weight.reshape(b_shape)
    stack = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    m = a_shape[-2]
    ending = _ending(draft, instr, n) | {"bias": _bias(draft, instr, n)}
    for number, (a, b) in enumerate(_stacked(a_shape[:-2], b_shape[:-2], stack)):
        matrix = weight.reshape(-1, k, n)[b]
        if m * n == 0:
            continue
        size = target.dtype.itemsize
        columns: dict[str, Cell] = {
            **Window((m,), (1,), (1,), (1,), (0,), (m,), padded=False).columns(),
            **spatial("x", (k,), 0),
            **spatial("y", (n,), 0),
            "x_c": 1,
            "y_c": 1,
            "batch": 1,
            "groups": 1,
            "group_in": k,
            "group_out": n,
            "x": source.at(a * m * k, ()),
            "y": target.at(number * m * n * size, ()),
            "weight": draft.constants.add(matrix.T),
            "x_zero": instr.int("x_zero") + draft.sign(instr.inputs[0]),
            **draft.scratch(conv_scratch_bytes(k, n)),
            **ending,
        }
        draft.row("conv", columns, m * n * k // MAC_WORK)


def _matrices(a: Shape, b: Shape) -> tuple[Shape, Shape, Shape]:
    """Shapes of both operands as stacks of matrices, and that of numpy's product.

    Raises:
        ProgramError: They do not fit.
    """
    if not a or not b:
        raise ProgramError(f"a product of shapes {a} and {b}")
    rows = a if len(a) > 1 else (1, *a)
    columns = b if len(b) > 1 else (*b, 1)
    if rows[-1] != columns[-2]:
        raise ProgramError(f"a product of shapes {a} and {b}")
    sizes = [*np.broadcast_shapes(rows[:-2], columns[:-2])]
    sizes += [rows[-2]] if len(a) > 1 else []
    sizes += [columns[-1]] if len(b) > 1 else []
    return rows, columns, tuple(sizes)


def _stacked(a: Shape, b: Shape, stack: Shape) -> list[tuple[int, int]]:
    """Which matrix of each stack makes each matrix of the result."""
    numbers = [np.arange(math.prod(sizes)).reshape(sizes) for sizes in (a, b)]
    first, second = (np.broadcast_to(array, stack).ravel().tolist() for array in numbers)
    return list(zip(first, second, strict=True))


def _check_depth(draft: Draft, instr: Instr, depth: int) -> None:
    """Where the number of terms of a sum is known only now, it may be too many."""
    a, b = (draft.program.values[number] for number in instr.inputs[:2])
    left = reach.Codes(a.lo, a.hi, instr.int("a_zero"))
    sums = reach.of_products(depth, left, reach.Codes(b.lo, b.hi, instr.int("b_zero")))
    if not sums.fits:
        raise ProgramError(
            f"accumulator may reach {sums.worst:.3g} > 2^31-1 (K={depth}). Feed smaller inputs"
        )


def matmul_computed(draft: Draft, instr: Instr) -> None:
    """Product of two stacks of computed matrices."""
    a, b = draft.read(instr.inputs[0]), draft.read(instr.inputs[1])
    a_shape, b_shape, shape = _matrices(a.shape, b.shape)
    target = draft.make(instr.outputs[0], shape)
    m, (k, n) = a_shape[-2], b_shape[-2:]
    _check_depth(draft, instr, k)
    stack = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    shared: dict[str, Cell] = {
        "bias": _bias(draft, instr, n),
        "m": m,
        "k": k,
        "n": n,
        "a_m": k,
        "a_k": 1,
        "b_k": n,
        "b_n": 1,
        "y_m": n,
        "y_n": 1,
        "a_zero": instr.int("a_zero") + draft.sign(instr.inputs[0]),
        "b_zero": instr.int("b_zero") + draft.sign(instr.inputs[1]),
        **draft.scratch(matmul_scratch_bytes(k)),
        **_ending(draft, instr, n),
    }
    for number, (first, second) in enumerate(_stacked(a_shape[:-2], b_shape[:-2], stack)):
        if m * n == 0:
            continue
        places: dict[str, Cell] = {
            "a": a.at(first * m * k, ()),
            "b": b.at(second * k * n, ()),
            "y": target.at(number * m * n * target.dtype.itemsize, ()),
        }
        draft.row("matmul", shared | places, m * n * k // MAC_WORK)


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

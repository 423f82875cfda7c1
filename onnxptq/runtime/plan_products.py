"""Rows of instructions that sum products: convolutions and products of matrices."""

import math

import numpy as np

from onnxptq import reach
from onnxptq.errors import ProgramError
from onnxptq.kernels.conv import conv_scratch_bytes
from onnxptq.kernels.depthwise import depthwise_scratch_bytes
from onnxptq.kernels.matmul import matmul_scratch_bytes
from onnxptq.program import Instr
from onnxptq.requant import Requant
from onnxptq.runtime import plan_conv, plan_depthwise, plan_elementwise, plan_sums
from onnxptq.runtime.draft import Array, Cell, Draft, Shape, View
from onnxptq.runtime.plan_requant import bias_place, each, ending, fixed_point_numbers
from onnxptq.runtime.window import (
    Image,
    Window,
    conv_window,
    image_shape,
    is_channels_last,
    make_image,
    spatial,
)

MAC_WORK = 16
"""Multiplications that count as one unit of work."""


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
    if _conv_u8s8(draft, instr, image, window, weight):
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
        "bias": bias_place(draft, instr, filters),
        **window.columns(),
        **image.columns("x"),
        **Image.of(target, is_channels_last(instr)).columns("y"),
        "batch": image.batch,
        "groups": groups,
        "group_in": group_in,
        "group_out": group_out,
        "x_zero": instr.int("x_zero") + draft.sign(instr.inputs[0]),
        **draft.scratch(scratch),
        **ending(draft, instr, filters),
    }
    if target.size:
        draft.row("depthwise" if depthwise else "conv", columns, target.size * taps // MAC_WORK)


def _conv_u8s8(draft: Draft, instr: Instr, image: Image, window: Window, weight: Array) -> bool:
    """A row of a fast kernel, if one can compute this; `weight` is [M, C/group, k_h, k_w]."""
    shape = image_shape(instr, image, (weight.shape[0], *window.out))
    if len(window.kernel) != 2 or math.prod(shape) == 0:
        return False
    grouped = weight.reshape(instr.int("group"), -1, *weight.shape[1:])
    layer = plan_conv.Layer(
        np.moveaxis(grouped, 2, -1),
        _biases(instr, weight.shape[0]),
        instr.int("x_zero") + draft.sign(instr.inputs[0]),
        image,
        Image.of_shape(shape, is_channels_last(instr)),
        window,
        _codes(draft, instr),
    )
    if not plan_conv.fits(layer):
        return False
    layer, numbers = _fixed_point(draft, instr, layer)
    places: dict[str, Cell] = {}
    if numbers and not layer.is_depthwise:
        places = _joined_sum(draft, instr, shape)
    if not places:
        places = {"y": draft.make(instr.outputs[0], shape)}
    places["x"] = draft.read(instr.inputs[0])
    _layer(draft, instr, layer, numbers, places)
    return True


def _codes(draft: Draft, instr: Instr) -> tuple[int, int]:
    """Lowest and highest code of x and of what is around it; any code where the program is fed."""
    number, zero = instr.inputs[0], instr.int("x_zero")
    x, sign = draft.program.values[number], draft.sign(number)
    if any(port.value == number for port in draft.program.inputs):
        return 0, 255
    return min(x.lo, zero) + sign, max(x.hi, zero) + sign


def _biases(instr: Instr, channels: int) -> Array:
    bias = instr.arrays.get("bias")
    bias = np.zeros(channels, np.int32) if bias is None else bias.reshape(-1).astype(np.int32)
    return each(bias, channels)


def _fixed_point(
    draft: Draft, instr: Instr, layer: plan_conv.Layer
) -> tuple[plan_conv.Layer, dict[str, Array] | None]:
    """The layer and the numbers of the epilogue, where it can make the codes."""
    if instr.requant is None:
        return layer, None
    assert isinstance(instr.requant, Requant)
    sign = draft.sign(instr.outputs[0])
    stored = fixed_point_numbers(instr.requant, layer.bias.size, sign)
    return plan_conv.fixed_point(layer, instr.requant, stored) or (layer, None)


def _layer(
    draft: Draft,
    instr: Instr,
    layer: plan_conv.Layer,
    numbers: dict[str, Array] | None,
    places: dict[str, Cell],
) -> None:
    """A row of the fastest kernel for a layer; `places` has x, y and what a sum reads."""
    columns: dict[str, Cell] = {**ending(draft, instr, layer.bias.size), **places}
    if layer.is_depthwise:
        columns |= plan_depthwise.columns(draft, layer, numbers)
        draft.row(plan_depthwise.KERNEL, columns, plan_depthwise.work_of(layer))
        return
    layout = plan_conv.choose(layer)
    columns = {**plan_conv.columns(draft, layer, layout, numbers), **columns}
    draft.row(layout.kernel, columns, plan_conv.work_of(layer, layout))


def _joined_sum(draft: Draft, instr: Instr, shape: Shape) -> dict[str, Cell]:
    """Columns of the residual sum that alone reads the output, if the kernel can compute it too."""
    value = instr.outputs[0]
    add = draft.sums.get(value)
    if add is None:
        return {}
    other = plan_sums.addend_of(draft, add, value, shape)
    numbers = plan_elementwise.pair_numbers(draft, add)
    params = plan_sums.sum_params(numbers, is_first=add.inputs[0] == value)
    if other is None or params is None:
        return {}
    draft.done.add(add.outputs[0])
    return {
        "y": draft.make(add.outputs[0], shape),
        "addend": draft.read(other),
        "sum_params": draft.constants.add(params),
    }


def matmul(draft: Draft, instr: Instr) -> None:
    """Product with constant matrices: a convolution of one pixel for each row."""
    source, weight = draft.read(instr.inputs[0]), _steps(instr)
    a_shape, b_shape, shape = _matrices(source.shape, weight.shape)
    target = draft.make(instr.outputs[0], shape)
    if math.prod(b_shape[:-2]) == 1:  # one matrix for all rows
        a_shape = (math.prod(a_shape[:-1]), a_shape[-1])
        b_shape = b_shape[-2:]
    m, (k, n) = a_shape[-2], b_shape[-2:]
    if m * n == 0:
        return
    matrices = weight.reshape(-1, k, n)
    stack = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    for number, (a, b) in enumerate(_stacked(a_shape[:-2], b_shape[:-2], stack)):
        x = source.at(a * m * k, ())
        y = target.at(number * m * n * target.dtype.itemsize, ())
        if k == 0 or not _product(draft, instr, matrices[b], m, (x, y)):
            _product_of_any(draft, instr, matrices[b], m, (x, y))


def _product(draft: Draft, instr: Instr, matrix: Array, m: int, places: tuple[View, View]) -> bool:
    """A row of a fast kernel, if one can compute this."""
    k, n = matrix.shape
    layer = plan_conv.Layer(
        matrix.T[None, :, None, None],
        _biases(instr, n),
        instr.int("x_zero") + draft.sign(instr.inputs[0]),
        Image(1, k, (m, 1), (m * k, 1, (k, k))),
        Image(1, n, (m, 1), (m * n, 1, (n, n))),
        Window((m, 1), (1, 1), (1, 1), (1, 1), (0, 0), (m, 1), padded=False),
        _codes(draft, instr),
    )
    if not plan_conv.fits(layer):
        return False
    layer, numbers = _fixed_point(draft, instr, layer)
    both: dict[str, Cell] = {"x": places[0], "y": places[1]}
    _layer(draft, instr, layer, numbers, both)
    return True


def _product_of_any(
    draft: Draft, instr: Instr, matrix: Array, m: int, places: tuple[View, View]
) -> None:
    """A row of the kernel for all weights and CPUs."""
    k, n = matrix.shape
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
        "x": places[0],
        "y": places[1],
        "weight": draft.constants.add(matrix.T),
        "x_zero": instr.int("x_zero") + draft.sign(instr.inputs[0]),
        **draft.scratch(conv_scratch_bytes(k, n)),
        **ending(draft, instr, n),
        "bias": bias_place(draft, instr, n),
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
        "bias": bias_place(draft, instr, n),
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
        **ending(draft, instr, n),
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

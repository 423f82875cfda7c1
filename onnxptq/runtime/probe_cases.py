"""One case of each of onnxruntime's formulas, beside what it makes of the same numbers itself."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxptq import formulas, ort
from onnxptq.formulas import Affine, Container, PairFormula
from onnxptq.runtime.plan_resize import COORDINATES, ROUNDINGS, nearest_pixels

Array = npt.NDArray[Any]
Case = tuple[Array, Array]
"""What the formula gives, and what onnxruntime gives."""
Cases = Callable[[np.random.Generator], Iterator[Case]]
Softmax = Callable[[Array, np.float32, Affine, Container], Array]

MICROSOFT = "com.microsoft"
STANDARD = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "Resize")
U8, S8 = np.dtype(np.uint8), np.dtype(np.int8)
PIXELS = range(2, 14)
"""Sizes of axes, each resized to each."""


def _scale(rng: np.random.Generator) -> np.float32:
    return np.float32(int(rng.integers(1, 40)) * 0.01)


def _zero(rng: np.random.Generator) -> int:
    return (0, 255, int(rng.integers(0, 256)))[int(rng.integers(0, 3))]


def _affine(rng: np.random.Generator) -> Affine:
    return Affine(_scale(rng), _zero(rng))


def _codes(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 256, shape).astype(np.uint8)


def _run(
    op: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array],
    order: str,
    **attributes: Any,
) -> Array:
    """Run one node; `order` lists its inputs, "-" for an absent one."""
    domain = "" if op in STANDARD else MICROSOFT
    names = ["" if name == "-" else name for name in order.split()]
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    initializers = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    return _run_graph([node], feeds, initializers)["y"]


def _run_graph(
    nodes: list[onnx.NodeProto], feeds: Mapping[str, Array], constants: list[onnx.TensorProto]
) -> dict[str, Array]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for node in nodes for name in node.output]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.session(model.SerializeToString(), threads=1).run(feeds)


def _parameters(**affines: Affine) -> dict[str, Array]:
    """Scales and zero points: of `x` as `xs` and `xz`."""
    found: dict[str, Array] = {}
    for name, affine in affines.items():
        found[f"{name}s"] = np.asarray(affine.scale, np.float32)
        found[f"{name}z"] = np.asarray(affine.zero_point, np.uint8)
    return found


def _convolution(rng: np.random.Generator) -> Iterator[Case]:
    """Dense, odd and depthwise: three kernels of MLAS with one arithmetic.

    Weights are small enough for no sum of two products to saturate on CPUs without VNNI
    (ort_semantics A.4): that is no other formula, and certificates count it by itself.
    """
    for channels, outputs, group in ((16, 16, 1), (5, 7, 1), (16, 16, 16)):
        x, y = _affine(rng), _affine(rng)
        codes = _codes(rng, 1, channels, 9, 9)
        weight = rng.integers(-64, 65, (outputs, channels // group, 1, 1)).astype(np.int8)
        scales = (rng.integers(1, 40, outputs) * 0.01).astype(np.float32) / np.float32(channels)
        bias = rng.integers(-999, 1000, outputs).astype(np.int32)
        constants = {
            **_parameters(x=x, y=y),
            "w": weight,
            "ws": scales,
            "wz": np.zeros(outputs, np.int8),
            "b": bias,
        }
        found = _run("QLinearConv", {"x": codes}, constants, "x xs xz w ws wz ys yz b", group=group)
        rows = weight.reshape(outputs, -1).astype(np.int64)
        steps = codes[0].reshape(channels, -1).astype(np.int64) - x.zero_point
        acc = rows @ steps if group == 1 else rows * steps
        acc = (acc + bias[:, None]).T
        scale = formulas.requant_scale(x.scale, scales, y.scale)
        expected = formulas.requantized(acc, scale, y.zero_point, 0, 255)
        yield expected.T.reshape(found.shape), found


def _product(rng: np.random.Generator) -> Iterator[Case]:
    """Small weights, so that results lie on ties.

    Few rows: onnxruntime 1.23.2 sums wrongly in the last of 32 rows, whatever the formula is.
    """
    for _ in range(5):
        x, y = _affine(rng), _affine(rng)
        codes, weight = _codes(rng, 12, 4), rng.integers(-3, 4, (4, 20)).astype(np.int8)
        scales = (rng.integers(1, 40, 20) * 0.01).astype(np.float32)
        acc = (codes.astype(np.int64) - x.zero_point) @ weight.astype(np.int64)
        zeros = {"wz": np.zeros(20, np.int8)}
        constants = {**_parameters(x=x, y=y), "w": weight, "ws": scales, **zeros}
        scale = formulas.requant_scale(x.scale, scales, y.scale)
        expected = formulas.requantized(acc, scale, y.zero_point, 0, 255)
        yield expected, _run("QLinearMatMul", {"x": codes}, constants, "x xs xz w ws wz ys yz")
        yield expected, _run("QGemm", {"x": codes}, constants, "x xs xz w ws wz - ys yz")
        real = acc.astype(np.float32) * (x.scale * scales)
        yield real, _run("QGemm", {"x": codes}, constants, "x xs xz w ws wz")


def _pairs(rng: np.random.Generator, op: str, shape: tuple[int, int]) -> Iterator[Case]:
    a, b, y = _affine(rng), _affine(rng), _affine(rng)
    formula = PairFormula(a, b, y, U8, op == "QLinearAdd" and shape[1] == 1)
    first = _codes(rng, *shape)
    second = _codes(rng, shape[0], 256)
    run = formulas.added if op == "QLinearAdd" else formulas.multiplied
    expected = np.broadcast_to(run(first, second, formula), second.shape)
    order = "a as az b bs bz ys yz"
    yield expected, _run(op, {"a": first, "b": second}, _parameters(a=a, b=b, y=y), order)


def _sums(rng: np.random.Generator) -> Iterator[Case]:
    yield from _pairs(rng, "QLinearAdd", (64, 256))
    yield from _pairs(rng, "QLinearAdd", (64, 1))


def _factors(rng: np.random.Generator) -> Iterator[Case]:
    yield from _pairs(rng, "QLinearMul", (64, 256))


def _concat(rng: np.random.Generator) -> Iterator[Case]:
    x, y = _affine(rng), _affine(rng)
    codes = np.arange(256, dtype=np.uint8)[None]
    found = _run("QLinearConcat", {"x": codes}, _parameters(x=x, y=y), "ys yz x xs xz", axis=1)
    yield formulas.quantized(formulas.dequantized(codes, x), y, U8), found


def _global_average(rng: np.random.Generator) -> Iterator[Case]:
    x, y = _affine(rng), _affine(rng)
    codes = _codes(rng, 8, 16, 5, 7)
    acc = codes.astype(np.int64).sum((2, 3), keepdims=True) - 35 * x.zero_point
    scale = formulas.global_average_scale(x.scale, y.scale, 35)
    expected = formulas.requantized(acc, scale, y.zero_point, 0, 255)
    order = "x xs xz ys yz"
    yield expected, _run("QLinearGlobalAveragePool", {"x": codes}, _parameters(x=x, y=y), order)


def _average(rng: np.random.Generator) -> Iterator[Case]:
    x, y = _affine(rng), _affine(rng)
    codes = _codes(rng, 1, 16, 8, 8)
    windows = codes.reshape(1, 16, 4, 2, 4, 2).transpose(0, 1, 2, 4, 3, 5).reshape(1, 16, 4, 4, 4)
    real = formulas.average_pooled(windows, np.ones(4, np.bool_), 4, x, y)
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    parameters = _parameters(x=x, y=y)
    found = _run("QLinearAveragePool", {"x": codes}, parameters, "x xs xz ys yz", **attributes)
    yield formulas.rounded(real, U8), found


def _softmax(rng: np.random.Generator, dtype: Container, run: Softmax) -> Iterator[Case]:
    """Rows that the two ways of softmax make different codes of, and some that they do not."""
    ends = np.iinfo(dtype)
    x_scale = np.float32(rng.uniform(0.005, 0.03))
    y = Affine(np.float32(1 / int(rng.integers(100, 256))), int(ends.min))
    codes = rng.integers(ends.min, ends.max, (20_000, 7), dtype, endpoint=True)
    once = formulas.softmaxed(codes, x_scale, y, dtype)
    differ = (once != formulas.softmaxed_in_float32(codes, x_scale, y, dtype)).any(axis=1)
    codes = codes[differ | (np.arange(len(codes)) < 100)]
    yield _softmax_case(codes, (x_scale, y), dtype, run)
    # One code far above the others makes a share of 1, which is one code too many at 1 / 256.
    steep = np.where(np.arange(7) == 3, ends.max, ends.min).astype(dtype)[None]
    full = Affine(np.float32(1 / 256), int(ends.min))
    yield _softmax_case(steep, (np.float32(0.1), full), dtype, run)


def _softmax_case(
    codes: Array, scales: tuple[np.float32, Affine], dtype: Container, run: Softmax
) -> Case:
    x_scale, y = scales
    numbers = (x_scale, dtype.type(0), y.scale, dtype.type(y.zero_point))
    names = ("xs", "xz", "ys", "yz")
    parameters = {n: np.asarray(number) for n, number in zip(names, numbers, strict=True)}
    order = "x xs xz ys yz"
    found = _run("QLinearSoftmax", {"x": codes}, parameters, order, axis=-1, opset=13)
    return run(codes, x_scale, y, dtype), found


def _border(rng: np.random.Generator) -> Iterator[Case]:
    x = _affine(rng)
    real = ((rng.integers(-600, 600, 500) / 2).astype(np.float32) * x.scale).astype(np.float32)
    parameters = _parameters(x=x)
    yield (
        formulas.quantized(real, x, U8),
        _run("QuantizeLinear", {"r": real}, parameters, "r xs xz"),
    )
    codes = np.arange(256, dtype=np.uint8)
    yield (
        formulas.dequantized(codes, x),
        _run("DequantizeLinear", {"c": codes}, parameters, "c xs xz"),
    )


def _nearest(_: np.random.Generator, modes: tuple[str, str]) -> Iterator[Case]:
    """All small sizes to all others: among them are places less than a rounding from a half."""
    attributes = dict(zip(("coordinate_transformation_mode", "nearest_mode"), modes, strict=True))
    nodes, expected = list[onnx.NodeProto](), list[Array]()
    sizes = [numpy_helper.from_array(np.array([1, new], np.int64), f"to{new}") for new in PIXELS]
    for size in PIXELS:
        for new in PIXELS:
            names = [f"x{size}", "", "", f"to{new}"]
            output = f"y{len(nodes)}"
            nodes.append(helper.make_node("Resize", names, [output], mode="nearest", **attributes))
            scale = np.float32(new) / np.float32(size)
            expected.append(nearest_pixels(modes, size, new, scale))
    found = _run_graph(nodes, {f"x{n}": np.arange(n, dtype=np.uint8)[None] for n in PIXELS}, sizes)
    for number, pixels in enumerate(expected):
        yield pixels[None], found[f"y{number}"]


RANDOM: dict[str, Cases] = {
    "convolution": _convolution,
    "matrix product": _product,
    "sum": _sums,
    "product": _factors,
    "concatenation": _concat,
    "global average": _global_average,
    "average": _average,
    "softmax": functools.partial(_softmax, dtype=U8, run=formulas.softmaxed),
    "softmax in float32": functools.partial(_softmax, dtype=U8, run=formulas.softmaxed_in_float32),
    "int8 softmax": functools.partial(_softmax, dtype=S8, run=formulas.softmaxed),
    "int8 softmax in float32": functools.partial(
        _softmax, dtype=S8, run=formulas.softmaxed_in_float32
    ),
    "quantization": _border,
}
"""Formulas whose cases are drawn; of the two ways of softmax onnxruntime has one."""

COMPLETE: dict[str, Cases] = {
    f"nearest pixel ({mode}, {rounding})": functools.partial(_nearest, modes=(mode, rounding))
    for mode in COORDINATES
    for rounding in ROUNDINGS
}
"""Formulas whose cases are always the same."""

FORMULAS = {**RANDOM, **COMPLETE}
"""Each formula by its name."""

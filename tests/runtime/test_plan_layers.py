"""Layers, pools and softmax: the executor equals onnxruntime's kernels, bit for bit."""

from typing import Any

import numpy as np
import pytest

from onnxptq import formulas
from onnxptq.errors import ProgramError
from onnxptq.runtime.probe import check
from tests.cpus import needs_vnni
from tests.ort_versions import IS_OLD
from tests.runtime.small_programs import (
    MICROSOFT,
    F,
    found,
    random_codes,
    random_scales,
    reference,
    run_one,
)

# Shapes as N, C, spatial; attributes as ONNX has them.
CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((1, 3, 7, 6), (5, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    "lopsided": ((2, 4, 9, 5), (17, 4, 3, 2), {"pads": (1, 0, 0, 1), "strides": (2, 1)}),
    "dilated": ((1, 2, 9, 9), (3, 2, 3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
    "groups": ((1, 6, 5, 5), (9, 2, 3, 3), {"group": 3}),
    "depthwise": ((2, 5, 6, 7), (5, 1, 3, 3), {"group": 5, "pads": (1, 1, 1, 1)}),
    "depthwise 5x5": ((1, 48, 9, 7), (48, 1, 5, 5), {"group": 48, "pads": (2, 2, 2, 2)}),
    "depthwise with steps": (
        (1, 32, 8, 9),
        (32, 1, 3, 4),
        {"group": 32, "strides": (2, 2), "pads": (1, 0, 1, 2)},
    ),
    "depthwise, dilated": (
        (2, 33, 9, 8),
        (33, 1, 3, 2),
        {"group": 33, "dilations": (2, 3), "pads": (0, 3, 2, 3)},
    ),
    "two filters a channel": ((1, 4, 5, 5), (8, 1, 3, 3), {"group": 4}),
    "1x1": ((1, 16, 3, 3), (33, 16, 1, 1), {}),
    "1x1 with stride": ((1, 16, 4, 5), (8, 16, 1, 1), {"strides": (2, 2)}),
    "one axis": ((2, 3, 11), (4, 3, 5), {"strides": (2,), "pads": (2, 1)}),
    "three axes": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"strides": (1, 2, 1)}),
    "same upper": ((1, 3, 6, 7), (2, 3, 3, 2), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    "same lower": ((1, 3, 6, 7), (2, 3, 2, 4), {"auto_pad": "SAME_LOWER"}),
    "same of a small kernel": (
        (1, 3, 6, 7),
        (2, 3, 1, 1),
        {"auto_pad": "SAME_UPPER", "strides": (3, 3)},
    ),
    "valid": ((1, 3, 6, 7), (2, 3, 3, 3), {"auto_pad": "VALID"}),
}


@needs_vnni
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtypes", [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str, dtypes: tuple[str, str], last: bool, rng: np.random.Generator) -> None:
    shape, weights, attributes = CONVS[name]
    kind, weight_kind = dtypes
    x, w = random_codes(rng, kind, *shape), random_codes(rng, weight_kind, *weights)
    filters, (x_zero, y_zero) = weights[0], random_codes(rng, kind, 2)
    w_zero = random_codes(rng, weight_kind, 1) if weight_kind == "uint8" else np.zeros(1, np.int8)
    x_scale, y_scale, w_scale = F(0.02), F(0.37), random_scales(rng, filters)
    bias = rng.integers(-9999, 9999, filters).astype(np.int32)
    constants = {
        "xs": np.asarray(x_scale),
        "xz": np.asarray(x_zero),
        "w": w,
        "ws": w_scale,
        "wz": np.repeat(w_zero, filters),
        "ys": np.asarray(y_scale),
        "yz": np.asarray(y_zero),
        "bias": bias,
    }
    scale = formulas.requant_scale(x_scale, w_scale, y_scale)

    y = run_one(
        "conv",
        np.moveaxis(x, 1, -1) if last else x,
        kind,
        attrs={"group": 1, **attributes, "x_zero": int(x_zero), "channels_last": int(last)},
        arrays={"weight": w, "weight_zero": w_zero, "bias": bias},
        requant=found(scale, int(y_zero), kind),
    )

    expected = reference("QLinearConv", {"x": x}, kind, constants, **attributes)
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1) if last else y, expected)


def test_conv_without_requantization_gives_accumulators(rng: np.random.Generator) -> None:
    for group, weights in ((1, (3, 4, 3, 3)), (4, (4, 1, 3, 3))):
        x, w = random_codes(rng, "int8", 2, 4, 5, 6), random_codes(rng, "int8", *weights)

        y = run_one(
            "conv",
            x,
            "int32",
            attrs={"group": group, "x_zero": -3},
            arrays={"weight": w, "weight_zero": np.zeros(1, np.int8)},
        )

        wide = reference("Conv", {"x": (x.astype(F) + 3), "w": w.astype(F)}, "float32", group=group)
        np.testing.assert_array_equal(y, wide.astype(np.int32))


MATMULS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "matrix": ((5, 7), (7, 3)),
    "stack": ((2, 3, 5, 7), (7, 19)),
    "stack of both": ((2, 3, 5, 7), (3, 7, 4)),
    "broadcast": ((4, 1, 2, 3), (1, 5, 3, 2)),
    "wider stack of the second": ((2, 3), (4, 3, 5)),
    "row": ((7,), (7, 3)),
    "column": ((5, 7), (7,)),
    "no row": ((0, 7), (7, 3)),
}


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("name", MATMULS)
def test_matmul(name: str, kind: str, rng: np.random.Generator) -> None:
    a_shape, b_shape = MATMULS[name]
    a, b = random_codes(rng, kind, *a_shape), random_codes(rng, kind, *b_shape)
    a_zero, b_zero, y_zero = random_codes(rng, kind, 3)
    scales = (F(0.02), F(0.03), F(0.11))
    scale = formulas.requant_scale(*scales)
    steps = a.astype(np.int64) - int(a_zero), b.astype(np.int64) - int(b_zero)
    acc = np.matmul(*steps)

    y = run_one(
        "matmul",
        a,
        kind,
        attrs={"x_zero": int(a_zero)},
        arrays={"weight": b, "weight_zero": np.array([b_zero])},
        requant=found(scale, int(y_zero), kind),
    )
    computed = run_one(
        "matmul_computed",
        a,
        kind,
        [b],
        attrs={"a_zero": int(a_zero), "b_zero": int(b_zero)},
        requant=found(scale, int(y_zero), kind),
    )
    accumulators = run_one(
        "matmul_computed", a, "int32", [b], attrs={"a_zero": int(a_zero), "b_zero": int(b_zero)}
    )

    lo, hi = np.iinfo(kind).min, np.iinfo(kind).max
    expected = formulas.requantized(acc, scale, int(y_zero), int(lo), int(hi)).astype(kind)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(computed, expected)
    np.testing.assert_array_equal(accumulators, acc)


POOLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "2x2": ((1, 3, 6, 8), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    "padded": ((2, 5, 7, 9), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 0, 1, 2)}),
    "ceil": ((1, 2, 7, 6), {"kernel_shape": (3, 2), "strides": (2, 3), "ceil_mode": 1}),
    "ceil and pads": (
        (1, 2, 5, 5),
        {"kernel_shape": (2, 2), "strides": (3, 3), "pads": (1, 1, 1, 1), "ceil_mode": 1},
    ),
    "one axis": ((1, 4, 9), {"kernel_shape": (4,), "strides": (3,), "pads": (1, 2)}),
    "three axes": ((1, 2, 4, 5, 6), {"kernel_shape": (2, 3, 2), "strides": (1, 2, 1)}),
    "same upper": (
        (1, 2, 7, 6),
        {"kernel_shape": (3, 2), "strides": (2, 2), "auto_pad": "SAME_UPPER"},
    ),
    "same lower": (
        (1, 2, 7, 6),
        {"kernel_shape": (4, 2), "strides": (2, 1), "auto_pad": "SAME_LOWER"},
    ),
    "same of a small kernel": (
        (1, 2, 8, 7),
        {"kernel_shape": (1, 2), "strides": (3, 4), "auto_pad": "SAME_UPPER"},
    ),
    "valid": ((1, 2, 7, 6), {"kernel_shape": (3, 2), "auto_pad": "VALID"}),
    "whole image": ((2, 3, 4, 5), {"kernel_shape": (4, 5)}),
    "whole image, padded": ((2, 3, 4, 5), {"kernel_shape": (4, 5), "pads": (1, 0, 0, 0)}),
}
DILATED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "dilated": ((1, 3, 9, 8), {"kernel_shape": (3, 2), "dilations": (2, 3), "pads": (1, 1, 1, 1)}),
    "dilated and ceil": (
        (1, 1, 10, 9),
        {"kernel_shape": (3, 2), "dilations": (2, 2), "strides": (2, 3), "ceil_mode": 1},
    ),
}


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("name", POOLS | DILATED)
def test_max_pool(name: str, kind: str, last: bool, rng: np.random.Generator) -> None:
    shape, attributes = (POOLS | DILATED)[name]
    x = random_codes(rng, kind, *shape)

    y = run_one(
        "max_pool",
        np.moveaxis(x, 1, -1) if last else x,
        kind,
        attrs={**attributes, "channels_last": int(last)},
    )

    expected = reference("MaxPool", {"x": x}, kind, **attributes)
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1) if last else y, expected)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("include_pad", [0, 1])
@pytest.mark.parametrize("name", POOLS)
def test_average_pool(
    name: str, include_pad: int, kind: str, last: bool, rng: np.random.Generator
) -> None:
    shape, attributes = POOLS[name]
    x, zeros = random_codes(rng, kind, *shape), random_codes(rng, kind, 2)
    scales = np.array([0.05, 0.03], F)
    layout = np.moveaxis(x, 1, -1) if last else x

    y = run_one(
        "average_pool",
        layout,
        kind,
        attrs={**attributes, "count_include_pad": include_pad, "channels_last": int(last)},
        arrays={"scales": scales, "zero_points": zeros},
    )

    constants = {"xs": scales[0], "xz": zeros[0], "ys": scales[1], "yz": zeros[1]}
    expected = reference(
        "QLinearAveragePool",
        {"x": np.ascontiguousarray(layout)},
        kind,
        {key: np.asarray(array) for key, array in constants.items()},
        MICROSOFT,
        count_include_pad=include_pad,
        channels_last=int(last),
        **attributes,
    )
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 17, 7, 7), (1, 2, 1, 1), (3, 2, 9)])
def test_global_average_pool(
    shape: tuple[int, ...], kind: str, last: bool, rng: np.random.Generator
) -> None:
    x, zeros = random_codes(rng, kind, *shape), random_codes(rng, kind, 2)
    layout = np.ascontiguousarray(np.moveaxis(x, 1, -1) if last else x)
    scales = np.array([0.05, 0.03], F)

    y = run_one(
        "global_average_pool",
        layout,
        kind,
        attrs={"channels_last": int(last)},
        arrays={"scales": scales, "zero_points": zeros},
    )

    constants = {"xs": scales[0], "xz": zeros[0], "ys": scales[1], "yz": zeros[1]}
    expected = reference(
        "QLinearGlobalAveragePool",
        {"x": layout},
        kind,
        {key: np.asarray(array) for key, array in constants.items()},
        MICROSOFT,
        channels_last=int(last),
    )
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(("shape", "axis"), [((5, 33), 1), ((2, 5, 7), 1), ((2, 3, 4), -1)])
def test_softmax(
    shape: tuple[int, ...], axis: int, opset: int, kind: str, rng: np.random.Generator
) -> None:
    if IS_OLD:
        pytest.skip("an old onnxruntime wraps codes around")
    x = random_codes(rng, kind, *shape)
    scales = np.array([0.07, 1 / 256], F)
    zeros = np.array([3, np.iinfo(kind).min], kind)

    y = run_one(
        "softmax",
        x,
        kind,
        attrs={"axis": axis, "opset": opset, "exact": int(not check("softmax")[1])},
        arrays={"scales": scales, "zero_points": zeros},
    )

    constants = {"xs": scales[0], "xz": zeros[0], "ys": scales[1], "yz": zeros[1]}
    expected = reference(
        "QLinearSoftmax",
        {"x": x},
        kind,
        {key: np.asarray(array) for key, array in constants.items()},
        MICROSOFT,
        axis=axis,
        opset=opset,
    )
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [None, (1,), (-1,), (0, 1), (0, 2), (3, 1)])
def test_reduce(
    axes: tuple[int, ...] | None, keep: int, kind: str, rng: np.random.Generator
) -> None:
    x = random_codes(rng, kind, 2, 3, 4, 5)
    operand = None if axes is None else np.array(axes, np.int64)

    for op, node in (("reduce_max", "ReduceMax"), ("reduce_min", "ReduceMin")):
        y = run_one(op, x, kind, [operand], attrs={"keepdims": keep})

        expected = reference(node, {"x": x}, kind, {"axes": operand}, keepdims=keep)
        np.testing.assert_array_equal(y, expected)


def test_a_window_that_does_not_fit_is_refused_by_name(rng: np.random.Generator) -> None:
    x = random_codes(rng, "uint8", 1, 2, 3, 3)

    with pytest.raises(ProgramError, match=r"node 'max_pool_0' \(max_pool\): a window of \(5, 5\)"):
        run_one("max_pool", x, "uint8", attrs={"kernel_shape": (5, 5)})


def test_products_of_shapes_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    x, weight = random_codes(rng, "uint8", 2, 3), random_codes(rng, "int8", 4, 5)

    with pytest.raises(
        ProgramError, match=r"\(matmul\): a product of shapes \(2, 3\) and \(4, 5\)"
    ):
        run_one(
            "matmul",
            x,
            "int32",
            attrs={"x_zero": 0},
            arrays={"weight": weight, "weight_zero": np.zeros(1, np.int8)},
        )

"""kernels/softmax.py equals onnxruntime's QLinearSoftmax."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq.kernels import cases_softmax, softmax
from tests.ort_versions import IS_OLD, SOFTMAX_IS_EXACT

pytestmark = pytest.mark.skipif(IS_OLD, reason="an old onnxruntime wraps codes around")

SCALES = (0.001, 0.01, 0.05, 0.25, float(np.log(2)), 2.0)


def onnxruntime_softmax(
    x: np.ndarray, axis: int, scales: tuple[float, float], y_zero: int
) -> np.ndarray:
    of = x.dtype.type
    code = TensorProto.INT8 if of == np.int8 else TensorProto.UINT8
    names = ["x", "xs", "xz", "ys", "yz"]
    constants = [np.float32(scales[0]), of(3), np.float32(scales[1]), of(y_zero)]
    graph = helper.make_graph(
        [
            helper.make_node(
                "QLinearSoftmax", names, ["y"], domain="com.microsoft", axis=axis, opset=13
            )
        ],
        "one",
        [helper.make_tensor_value_info("x", code, x.shape)],
        [helper.make_tensor_value_info("y", code, x.shape)],
        [
            numpy_helper.from_array(np.asarray(c), n)
            for n, c in zip(names[1:], constants, strict=True)
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("y_scale", [1 / 256, 1 / 128, 0.0007, 0.0031, 0.01, 1.5])
@pytest.mark.parametrize("of", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((5, 1), 1),
        ((40, 2), 1),
        ((40, 5), 1),
        ((20, 10), -1),
        ((3, 300), 1),
        ((3, 1000), 1),
        ((2, 17, 4, 3), 1),
    ],
    ids=str,
)
def test_softmax_equals_onnxruntime(
    shape: tuple[int, ...],
    axis: int,
    of: type[np.uint8] | type[np.int8],
    y_scale: float,
    rng: np.random.Generator,
) -> None:
    signed = of == np.int8
    for x_scale in SCALES:
        for narrow in (1, 40):
            x = (rng.integers(0, 256, shape) // narrow).astype(np.uint8)
            codes = (x.astype(np.int64) - 128).astype(np.int8) if signed else x
            y_zero = int(rng.integers(0, 9)) - (128 if signed else 0)
            y = onnxruntime_softmax(codes, axis, (x_scale, y_scale), y_zero)
            at = axis % len(shape)
            outer, inner = int(np.prod(shape[:at])), int(np.prod(shape[at + 1 :]))
            row, arena, consts, *_ = cases_softmax.call(
                x,
                (outer, shape[at], inner),
                (x_scale, y_scale),
                y_zero,
                (signed, signed),
                SOFTMAX_IS_EXACT,
            )

            softmax.softmax(row, arena, consts, 0, 1)

            found = arena[row[softmax.Y] : row[softmax.Y] + y.size].reshape(shape)
            expected = y.astype(np.int64) + (128 if signed else 0)
            np.testing.assert_array_equal(found, expected)


def near_halves(rng: np.random.Generator, scales: tuple[float, float]) -> np.ndarray:
    """Rows whose quotients lie so near to a half that float32 rounding would change the code."""
    x = rng.integers(0, 256, (40000, 5)).astype(np.uint8)
    x = x // rng.choice([1, 4, 16], (len(x), 1)).astype(np.uint8)
    c = np.floor(np.float32(1) / np.float32(scales[1]))
    values = np.exp((x - x.max(axis=1, keepdims=True).astype(np.float64)) * scales[0])
    quotients = values * float(c) / values.sum(axis=1, keepdims=True)
    distance = np.abs(quotients - np.floor(quotients) - 0.5)
    return x[(distance < 3e-7 * quotients).any(axis=1)]


@pytest.mark.parametrize("of", [np.uint8, np.int8])
def test_quotients_near_a_half_round_as_onnxruntimes(
    of: type[np.uint8] | type[np.int8], rng: np.random.Generator
) -> None:
    signed = of == np.int8
    seen = 0
    for y_scale in (1 / 128, 0.01, 0.0173, 0.0091):
        for _ in range(8):
            scales = (float(np.float32(rng.uniform(0.003, 0.3))), y_scale)
            x = near_halves(rng, scales)
            if not len(x):
                continue
            codes = (x.astype(np.int64) - 128).astype(np.int8) if signed else x
            y_zero = -128 if signed else 0
            y = onnxruntime_softmax(codes, 1, scales, y_zero)
            row, arena, consts, *_ = cases_softmax.call(
                x, (len(x), 5, 1), scales, y_zero, (signed, signed), SOFTMAX_IS_EXACT
            )

            softmax.softmax(row, arena, consts, 0, 1)

            found = arena[row[softmax.Y] : row[softmax.Y] + y.size].reshape(y.shape)
            np.testing.assert_array_equal(found, y.astype(np.int64) + (128 if signed else 0))
            seen += len(x)
    assert seen > 20

"""kernels/boundary.py equals onnxruntime's QuantizeLinear and DequantizeLinear."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq.kernels import boundary, cases_boundary


def round_trip(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of onnxruntime's QuantizeLinear and the numbers of its DequantizeLinear."""
    code = TensorProto.INT8 if zero.dtype == np.int8 else TensorProto.UINT8
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=axis),
        ],
        "round_trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("q", code, x.shape),
            helper.make_tensor_value_info("d", TensorProto.FLOAT, x.shape),
        ],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    codes, real = session.run(None, {"x": x})
    return np.asarray(codes), np.asarray(real)


def awkward(rng: np.random.Generator, scale: np.ndarray, size: int) -> np.ndarray:
    """Halves of the scale, numbers next to them, numbers far outside, inf and NaN."""
    halves = ((np.arange(size) - size // 2 + np.float32(0.5)) * scale).astype(np.float32)
    near = np.nextafter(halves, rng.choice([-np.inf, np.inf], size).astype(np.float32))
    rest = (rng.standard_normal(size) * 1e3 * scale).astype(np.float32)
    extremes = np.asarray([np.nan, np.inf, -np.inf, 1e30, -1e30, -0.0, 1e-45], np.float32)
    return np.concatenate([halves, near, rest, extremes])


@pytest.mark.parametrize("of", [np.uint8, np.int8])
def test_per_tensor_parameters_give_onnxruntimes_codes_and_numbers(
    of: type[np.uint8] | type[np.int8], rng: np.random.Generator
) -> None:
    shift = 128 if of == np.int8 else 0
    for scale in np.asarray([0.01, 0.05, 0.5, 0.0173, 1 / 3, 3e-39], np.float32):
        zero = np.asarray(rng.integers(-shift, 256 - shift), of)
        x = awkward(rng, scale, 600)
        codes, real = round_trip(x, scale, zero, 1)
        stored_zero = np.asarray([int(zero) + shift], np.int32)
        row, arena, consts, *_ = cases_boundary.quantize_call(
            x.reshape(1, 1, -1), scale.reshape(1), stored_zero, (0, 255)
        )

        boundary.quantize(row, arena, consts, 0, 1)

        found = arena[row[boundary.Y] : row[boundary.Y] + x.size]
        np.testing.assert_array_equal(found, codes.astype(np.int64) + shift)

        row, arena, consts, *_ = cases_boundary.dequantize_call(
            found.reshape(1, 1, -1), scale.reshape(1), stored_zero
        )

        boundary.dequantize(row, arena, consts, 0, 1)

        found = arena[row[boundary.Y] : row[boundary.Y] + 4 * x.size].view(np.uint32)
        np.testing.assert_array_equal(found, real.view(np.uint32))


@pytest.mark.parametrize("axis", [1, 2])
def test_per_channel_parameters_give_onnxruntimes_codes_and_numbers(
    axis: int, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((3, 5, 7)).astype(np.float32)
    scale = rng.uniform(0.002, 0.02, x.shape[axis]).astype(np.float32)
    zero = rng.integers(0, 256, x.shape[axis]).astype(np.uint8)
    codes, real = round_trip(x, scale, zero, axis)
    shaped = x if axis == 1 else x.reshape(15, 7, 1)
    row, arena, consts, *_ = cases_boundary.quantize_call(
        shaped, scale, zero.astype(np.int32), (0, 255)
    )

    boundary.quantize(row, arena, consts, 0, 1)

    found = arena[row[boundary.Y] : row[boundary.Y] + x.size]
    np.testing.assert_array_equal(found, codes.ravel())

    row, arena, consts, *_ = cases_boundary.dequantize_call(
        found.reshape(shaped.shape), scale, zero.astype(np.int32)
    )

    boundary.dequantize(row, arena, consts, 0, 1)

    found = arena[row[boundary.Y] : row[boundary.Y] + 4 * x.size].view(np.uint32)
    np.testing.assert_array_equal(found, real.ravel().view(np.uint32))

"""kernels/global_average_pool.py equals onnxruntime's QLinearGlobalAveragePool."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq.kernels import cases_global_average_pool, global_average_pool, requantize


def onnxruntime_pool(
    x: np.ndarray, scales: tuple[float, float], zeros: tuple[int, int], channels_last: bool
) -> np.ndarray:
    of = x.dtype.type
    code = TensorProto.INT8 if of == np.int8 else TensorProto.UINT8
    constants = {
        "xs": np.float32(scales[0]),
        "xz": of(zeros[0]),
        "ys": np.float32(scales[1]),
        "yz": of(zeros[1]),
    }
    node = helper.make_node(
        "QLinearGlobalAveragePool",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        channels_last=int(channels_last),
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", code, x.shape)],
        [helper.make_tensor_value_info("y", code, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0]).ravel()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("of", [np.uint8, np.int8])
def test_codes_are_onnxruntimes(
    of: type[np.uint8] | type[np.int8], channels_last: bool, rng: np.random.Generator
) -> None:
    shift = 128 if of == np.int8 else 0
    for side in (1, 2, 4, 5, 7):
        for unit in (0.01, 0.5, 0.013):
            scales = (unit * int(rng.integers(1, 9)), unit * int(rng.integers(1, 5)))
            zeros = (int(rng.integers(0, 256)), int(rng.integers(0, 256)))
            x = rng.integers(0, 256, (2, 70, side, side)).astype(np.uint8)
            codes = (x.astype(np.int64) - shift).astype(of)
            fed = np.moveaxis(codes, 1, -1).copy() if channels_last else codes
            onnx_zeros = (zeros[0] - shift, zeros[1] - shift)
            y = onnxruntime_pool(fed, scales, onnx_zeros, channels_last)
            count = np.float32(side * side)
            scale = np.float32(scales[0]) / (np.float32(scales[1]) * count)
            row, arena, consts, *_ = cases_global_average_pool.call(
                x.reshape(2, 70, -1),
                np.full(70, scale, np.float32),
                zeros,
                np.full(5, requantize.INT64, np.uint8),
                channels_last,
            )

            global_average_pool.global_average_pool(row, arena, consts, 0, 1)

            at = row[global_average_pool.Y]
            np.testing.assert_array_equal(arena[at : at + 140], y.astype(np.int64) + shift)

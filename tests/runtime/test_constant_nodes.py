"""Nodes that only constants reach: they are run once, not at each run and not as islands."""

import numpy as np
import onnx
from onnx import numpy_helper

from onnxptq.graph import io
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import verify

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
one (uint8[1, 4, 6, 6] x) => (uint8[?] y)
<float s = {0.05}, uint8 z = {100}, float t = {0.02}, int8 u = {0}, float c = {0.3}> {
    r = DequantizeLinear(x, s, z)
    w = DequantizeLinear(codes, t, u)
    p = Conv(r, w)
    e = Elu(p)
    y = QuantizeLinear(e, c, z)
}
"""


def float_layer() -> onnx.ModelProto:
    """A convolution that onnxruntime leaves in float, its weights stored as codes."""
    model = onnx.parser.parse_model(TEXT)
    weights = np.random.default_rng(0).integers(-128, 128, (5, 4, 3, 3)).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(weights, "codes"))
    return model


def test_stored_weights_of_a_float_layer_are_dequantized_once():
    program = lower(io.from_proto(float_layer(), "test"))

    assert [instr.op for instr in program.instrs] == ["host", "dequantize", "island", "quantize"]
    assert program.islands[0].op_types == ("DequantizeLinear",)


def test_the_result_is_that_of_onnxruntime():
    found = verify(io.from_proto(float_layer(), "test"))

    assert found.holds


def test_random_numbers_are_drawn_at_each_run():
    text = TEXT.replace("r = DequantizeLinear(x, s, z)", "d = DequantizeLinear(x, s, z) "
                        "n = RandomNormal <shape = [1, 4, 6, 6]> () r = Add(d, n)")  # fmt: skip
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(float_layer().graph.initializer[-1])
    executor = Executor(lower(io.from_proto(model, "test")))
    codes = np.full((1, 4, 6, 6), 100, np.uint8)

    first, second = (executor.run(None, {"x": codes})[0] for _ in range(2))

    assert (first != second).any()

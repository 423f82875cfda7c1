"""Float functions between codes: which become tables, and what becomes of those that do not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxptq.graph import io
from onnxptq.ops.fused import NotInteger
from onnxptq.runtime import lower as lowering
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import verify

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'


def from_text(body: str) -> ir.Model:
    return io.from_proto(onnx.parser.parse_model(HEADER + body), "test")


def between(nodes: str, constants: str = "") -> ir.Model:
    """uint8 codes [3, 300] through float nodes from `r` to `f`, to uint8 codes again."""
    return from_text(f"""
        one (uint8[3, 300] x) => (uint8[?] y)
        <float s = {{0.05}}, uint8 z = {{100}}, float t = {{0.02}}, uint8 v = {{3}} {constants}> {{
            r = DequantizeLinear(x, s, z)
            {nodes}
            y = QuantizeLinear(f, t, v)
        }}""")


CHAINS = [
    "f = Tanh(r)",
    "f = HardSwish(r)",
    "a = Softplus(r) b = Tanh(a) f = Mul(r, b)",
    "a = Erf(r) b = Sub(a, one) f = Div(b, half)",
    "f = Elu <alpha = 0.3> (r)",
]
CONSTANTS = ", float one = {1.0}, float half = {0.5}"


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_elementwise_nodes_is_one_table(chain: str):
    model = between(chain, CONSTANTS)

    program = lower(io.from_proto(ir.serde.serialize_model(model), "test"))
    found = verify(model)

    assert [instr.op for instr in program.instrs] == ["table"]
    assert found.holds


def test_a_constant_of_higher_rank_raises_the_rank_of_the_result():
    """A table gives the shape of its input, which is not that of the sum here."""
    model = between("f = Add(r, c)", ", float[1, 1, 1] c = {0.3}")

    found = verify(model)

    assert found.holds
    assert [island.op_types for island in found.islands] == [("Add",)]


def test_a_function_whose_result_depends_on_the_place_runs_in_float(
    monkeypatch: pytest.MonkeyPatch,
):
    """Then the nodes before the QuantizeLinear are needed as well."""

    def refuse(*_: object) -> None:
        raise NotInteger("its result depends on where in a vector an element stands")

    monkeypatch.setattr(lowering, "tabulate", refuse)

    found = verify(between("f = Tanh(r)"))

    assert found.holds
    assert [island.op_types for island in found.islands] == [("Tanh",)]


def test_accumulators_that_are_dequantized_become_no_table():
    """Their 2^32 values are no codes, though a DequantizeLinear reads them."""
    model = from_text("""
        one (uint8[2, 4, 6, 6] x) => (uint8[?] y)
        <int8[5, 4, 3, 3] w, uint8 z = {100}, int8 u = {0}, float s = {0.0005},
         float t = {0.02}, uint8 v = {30}> {
            a = ConvInteger(x, w, z, u)
            r = DequantizeLinear(a, s)
            y = QuantizeLinear(r, t, v)
        }""")
    proto = ir.serde.serialize_model(model)
    weights = np.random.default_rng(0).integers(-128, 128, (5, 4, 3, 3))
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w"]
    del proto.graph.initializer[:]
    del proto.graph.input[1:]
    proto.graph.initializer.extend(
        [*kept, helper.make_tensor("w", onnx.TensorProto.INT8, (5, 4, 3, 3), weights.ravel())]
    )

    found = verify(io.from_proto(proto, "test"))

    assert found.holds

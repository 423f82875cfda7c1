import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxptq import passes
from onnxptq.errors import ModelError
from onnxptq.graph import io, text
from onnxptq.passes import simplify
from tests.data_paths import data_path

# A folded network rounds each weight once more and adds in the same order; logits are of order 10.
RTOL, ATOL = 1e-4, 1e-4


def run(model: ir.Model | Path, feeds: dict[str, Any]) -> list[Any]:
    source = str(model) if isinstance(model, Path) else io.to_bytes(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def assert_same_outputs(before: ir.Model | Path, after: ir.Model, feeds: dict[str, Any]) -> None:
    for expected, got in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_allclose(got, expected, RTOL, ATOL)


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def graph(
    body: str, ports: str, opset: int = 17, ir_version: int = 8, domains: str = ""
) -> ir.Model:
    return text.from_text(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]>\ng {ports} {{ {body} }}'
    )


X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(4, 3)


def test_resnet20_becomes_convolutions_and_integer_friendly_nodes() -> None:
    path = data_path("models", "resnet20_cifar10.onnx")

    prepared = passes.prepare(io.load(path))

    assert dict(ops(prepared.model)) == {
        "Conv": 19,
        "Relu": 19,
        "Add": 9,
        "Slice": 2,
        "Pad": 2,
        "GlobalAveragePool": 1,
        "Reshape": 1,
        "Gemm": 1,
    }
    assert prepared.notes == ()
    assert len(prepared.norms) == 19
    assert io.opset(prepared.model) == 21
    assert str(prepared.model.graph.inputs[0].shape) == "[N,3,32,32]"
    assert str(prepared.model.graph.outputs[0].shape) == "[N,10]"
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    assert_same_outputs(path, prepared.model, {"input": images})


def test_prepare_leaves_its_argument_alone() -> None:
    model = graph("a = Identity (x) y = Relu (a)", "(float[N,3] x) => (float[N,3] y)")
    digest = io.digest(model)

    passes.prepare(model)

    assert io.digest(model) == digest


def test_prepare_twice_gives_the_same_bytes() -> None:
    model = graph("a = Relu (x) b = Relu (a) y = Add (a, b)", "(float[N,3] x) => (float[N,3] y)")

    first, second = (io.to_bytes(passes.prepare(model).model) for _ in range(2))

    assert first == second


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 18, 21])
def test_every_opset_from_7_is_raised_to_21(opset: int) -> None:
    model = graph(
        "a = Relu (x) y = Softmax <axis = 1> (a)", "(float[N,3] x) => (float[N,3] y)", opset
    )

    prepared = passes.prepare(model)

    assert io.opset(prepared.model) == 21
    assert prepared.model.ir_version == 10
    assert_same_outputs(model, prepared.model, {"x": X})


@pytest.mark.parametrize("opset", [22, 24, 26])
def test_an_opset_above_21_stays(opset: int) -> None:
    model = graph("y = Relu (x)", "(float[N,3] x) => (float[N,3] y)", opset, ir_version=10)

    prepared = passes.prepare(model)

    assert io.opset(prepared.model) == opset
    assert_same_outputs(model, prepared.model, {"x": X})


def test_operators_of_other_domains_survive() -> None:
    model = graph(
        "a = com.microsoft.Gelu (x) y = Relu (a)",
        "(float[N,3] x) => (float[N,3] y)",
        domains=', "com.microsoft" : 1',
    )

    prepared = passes.prepare(model)

    assert dict(ops(prepared.model)) == {"Gelu": 1, "Relu": 1}
    assert io.opset(prepared.model) == 21
    assert_same_outputs(model, prepared.model, {"x": X})


def test_unknown_operators_survive() -> None:
    model = graph(
        "a = my.domain.Magic (x) b = Identity (a) y = Relu (b)",
        "(float[N,3] x) => (float[N,3] y)",
        domains=', "my.domain" : 1',
    )

    prepared = passes.prepare(model)

    assert dict(ops(prepared.model)) == {"Magic": 1, "Relu": 1}


def test_functions_of_the_model_are_inlined() -> None:
    model = text.from_text("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,3] x) => (float[N,3] y) { a = local.twice (x) y = local.twice (a) }
        <domain: "local", opset_import: ["" : 17]>
        twice (v) => (w) { t = Add (v, v) w = Identity (t) }
    """)

    prepared = passes.prepare(model)

    assert dict(ops(prepared.model)) == {"Add": 2}
    assert not prepared.model.functions
    assert_same_outputs(model, prepared.model, {"x": X})


def test_initializers_listed_as_inputs_become_constants() -> None:
    weight = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "old",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]),
                helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 7)],
        ir_version=3,
    )
    model = io.from_proto(proto, "old")

    prepared = passes.prepare(model)

    assert [value.name for value in prepared.model.graph.inputs] == ["x"]
    assert prepared.model.graph.initializers["w"].const_value is not None
    assert_same_outputs(model, prepared.model, {"x": X})


def test_norms_are_kept_by_the_name_of_the_node() -> None:
    model = graph(
        """[conv] c = Conv (x, w)
           y = BatchNormalization <epsilon = 0.25> (c, gamma, beta, mean, var)""",
        """(float[N,1,2,2] x) => (float[N,2,2,2] y)
           <float[2,1,1,1] w = {1, 2}, float[2] gamma = {1, 2}, float[2] beta = {3, 4},
            float[2] mean = {5, 6}, float[2] var = {7, 8}>""",
    )

    norms = passes.prepare(model).norms

    norm = norms["conv"]
    assert list(norms) == ["conv"]
    assert (norm.gamma.tolist(), norm.beta.tolist()) == ([1, 2], [3, 4])
    assert (norm.mean.tolist(), norm.variance.tolist(), norm.epsilon) == ([5, 6], [7, 8], 0.25)


def test_a_batch_norm_in_training_mode_stays_and_is_noted() -> None:
    model = graph(
        "y, m, v = BatchNormalization <training_mode = 1> (x, one, one, one, one)",
        "(float[N,1,2,2] x) => (float[N,1,2,2] y) <float[1] one = {1}>",
    )

    prepared = passes.prepare(model)

    assert dict(ops(prepared.model)) == {"BatchNormalization": 1}
    assert "is in training mode: it stays in float" in prepared.notes[0]


def test_bodies_are_converted_but_not_folded() -> None:
    model = graph(
        """y = If (c) <
             then_branch = t () => (float[N,1] a) {
               s = ReduceSum <axes = [1]> (x) a = Identity (s) },
             else_branch = e () => (float[N,1] b) { b = ReduceMax <axes = [1]> (x) }>""",
        "(float[N,3] x, bool c) => (float[N,1] y)",
        opset=11,
        ir_version=6,
    )

    prepared = passes.prepare(model)

    branch = prepared.model.graph[-1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch][-2:] == ["ReduceSum", "Identity"]
    for condition in (True, False):
        assert_same_outputs(model, prepared.model, {"x": X, "c": np.array(condition)})


def test_nodes_and_values_without_names_get_unique_ones() -> None:
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Relu", ["x"], ["Relu_1"], name="Relu_0"),
                helper.make_node("Neg", ["Relu_1"], ["b"], name="Relu_0"),
                helper.make_node("Relu", ["b"], ["y"]),
            ],
            "names",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )

    prepared = passes.prepare(io.from_proto(proto, "names"))

    assert [node.name for node in prepared.model.graph] == ["Relu_0", "Relu_0_0", "Relu_1"]


def shape_arithmetic() -> ir.Model:
    """A model that gives onnxsim something to fold: arithmetic on a shape."""
    return graph(
        """s = Shape (x) t = Add (s, zero) u = Sub (t, zero) a = Expand (one, u) y = Mul (x, a)""",
        "(float[N,M] x) => (float[N,M] y) <int64[1] zero = {0}, float one = {2}>",
    )


def test_onnxsim_is_started_only_where_it_has_something_to_fold() -> None:
    clean = graph("y = Relu (x)", "(float[N,3] x) => (float[N,3] y)")

    assert not simplify.needs_simplifying(clean)
    assert simplify.needs_simplifying(shape_arithmetic())


def test_a_slow_onnxsim_is_left_out_with_a_note() -> None:
    model = shape_arithmetic()

    prepared = passes.prepare(model, simplify_seconds=0.01)

    assert prepared.notes == ("onnxsim was not used: it took longer than 0.01 s",)
    assert_same_outputs(model, prepared.model, {"x": X})


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", r"it crashed \(-6\)"),
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("import sys, pathlib; pathlib.Path(sys.argv[2]).write_bytes(b'junk')", "not used"),
        ("import sys, pathlib; pathlib.Path(sys.argv[2]).write_bytes(b'')", "changed the inputs"),
    ],
)
def test_a_broken_onnxsim_is_left_out_with_a_note(
    program: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(program)
    monkeypatch.setattr(simplify, "WORKER", (sys.executable, str(script)))
    model = shape_arithmetic()

    prepared = passes.prepare(model)

    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(prepared.notes[0])
    assert_same_outputs(model, prepared.model, {"x": X})


def test_a_scan_of_opset_8_keeps_its_opset() -> None:
    model = graph(
        """s, z = Scan ("", initial, x) <num_scan_inputs = 1, body = b
             (float[3] total, float[3] next) => (float[3] sum, float[3] out) {
               sum = Add (total, next) out = Identity (sum) }>""",
        "(float[1,3] initial, float[1,4,3] x) => (float[1,3] s, float[1,4,3] z)",
        opset=8,
        ir_version=3,
    )

    prepared = passes.prepare(model)

    assert "opset stays at 8" in prepared.notes[0]
    feeds = {"initial": X[:1], "x": X[None]}
    assert_same_outputs(model, prepared.model, feeds)


def test_find_quantized_names_the_nodes() -> None:
    model = graph(
        """[q] a = QuantizeLinear (x, s, z) [d] b = DequantizeLinear (a, s, z)
           [m] y = com.microsoft.QLinearSigmoid (a, s, z, s, z)""",
        "(float[N,3] x) => (uint8[N,3] y) <float s = {1}, uint8 z = {0}>",
        domains=', "com.microsoft" : 1',
    )

    assert passes.find_quantized(model) == ("q", "d", "m")
    assert passes.find_quantized(graph("y = Relu (x)", "(float[N] x) => (float[N] y)")) == ()


def test_recursive_functions_are_refused() -> None:
    model = text.from_text("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,3] x) => (float[N,3] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        f (v) => (w) { w = local.f (v) }
    """)

    with pytest.raises(ModelError, match="functions cannot be inlined"):
        passes.prepare(model)

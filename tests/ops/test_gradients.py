"""What a row's `gradient` claims: the operator's own numbers, and derivatives that are true."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.ops import OPS
from onnxptq.ops.op import Case, Op
from tests.small_models import from_text, one_node, proto_from_text

torch = pytest.importorskip("torch", reason="needs the torch extra")
subgraph = pytest.importorskip("onnxptq.methods.reconstruction.subgraph")
functions = pytest.importorskip("onnxptq.methods.reconstruction.functions")

pytestmark = pytest.mark.torch

ROWS = [
    pytest.param(op, case, id=f"{op.type}-{position}")
    for op in OPS.values()
    for position, case in enumerate(op.cases)
]

FLOAT_TOLERANCE = 2e-6
"""Of the largest number: sums of a few hundred float32 products in another order."""


def as_torch(model: ir.Model, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The model's outputs by torch."""
    graph = subgraph.Subgraph(list(model.graph))
    made = graph({name: torch.from_numpy(array) for name, array in feeds.items()})
    return {str(value.name): made[str(value.name)].numpy() for value in model.graph.outputs}


def assert_like_onnxruntime(model: ir.Model, feeds: dict[str, npt.NDArray[Any]]) -> None:
    expected = ort.session(model).run(feeds)
    found = as_torch(model, feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        room = FLOAT_TOLERANCE * max(1.0, float(np.abs(array).max()))
        assert found[name].shape == array.shape
        assert np.abs(found[name] - array).max() <= room, name


def test_every_operator_has_a_gradient():
    assert [name for name, op in OPS.items() if op.gradient is None] == []


@pytest.mark.parametrize(("op", "case"), ROWS)
def test_torch_computes_what_onnxruntime_computes(op: Op, case: Case, rng: np.random.Generator):
    model = one_node(op, case, rng)
    feeds = {"x": rng.normal(size=case.shape).astype(np.float32)}

    assert_like_onnxruntime(model, feeds)


@pytest.mark.parametrize(("op", "case"), ROWS)
def test_gradients_agree_with_finite_differences(op: Op, case: Case, rng: np.random.Generator):
    """In float64, at random points: no kink lies within a step of one."""
    model = one_node(op, case, rng)
    graph = subgraph.Subgraph(list(model.graph))
    names = [f"c{position}" for position, given in case.constants.items() if type(given) is tuple]
    constants = {name: graph.constant(name).double() for name in names}
    weights = [constants[name].requires_grad_() for name in constants]
    x = torch.from_numpy(rng.normal(size=case.shape)).requires_grad_()

    def outputs(x: Any, *weights: Any) -> Any:
        made = graph({"x": x}, dict(zip(constants, weights, strict=True)))
        return tuple(made[str(value.name)] for value in model.graph.outputs)

    assert torch.autograd.gradcheck(outputs, (x, *weights), fast_mode=True)


OTHERS = [
    "y = Tanh(x)",
    "y = Gelu(x)",
    "y = Erf(x)",
    "y = Neg(x)",
    "y = Elu<alpha = 0.5>(x)",
    "y = ReduceMean<keepdims = 0>(x, axes)",
    "y = Softplus(x)",
    "y = AveragePool<kernel_shape = [3, 3], pads = [0, 1, 2, 1], strides = [2, 2]>(x)",
    "y = MaxPool<kernel_shape = [2, 2], pads = [1, 0, 0, 1], dilations = [2, 1]>(x)",
    "y = Transpose<perm = [0, 3, 1, 2]>(x)",
    "y = LayerNormalization<axis = -1>(x, scale)",
]


@pytest.mark.parametrize("line", OTHERS)
def test_other_forms_and_operators_are_onnxruntimes_too(line: str, rng: np.random.Generator):
    proto = proto_from_text(
        "g (float[2, 4, 6, 8] x) => (float[a, b, c, d] y)\n"
        "<int64[2] axes = {2, 3}, float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}> { " + line + " }",
        rng,
        {},
    )
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    model = ir.serde.deserialize_model(proto)

    assert_like_onnxruntime(model, {"x": rng.normal(size=(2, 4, 6, 8)).astype(np.float32)})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)", "rounds its"),
        ("y = AveragePool<kernel_shape = [2, 2], auto_pad = 'SAME_UPPER'>(x)", "its padding"),
        ("y = Det(x)", "Det has no gradient"),
    ],
)
def test_what_torch_does_not_know_is_refused(line: str, reason: str, rng: np.random.Generator):
    proto = proto_from_text(
        "g (float[1, 2, 5, 5] x) => (float[a] y) { " + line.replace("'", '"') + " }", rng, {}
    )
    model = ir.serde.deserialize_model(proto)

    with pytest.raises(functions.NoGradientError, match=reason):
        as_torch(model, {"x": rng.normal(size=(1, 2, 5, 5)).astype(np.float32)})


def test_a_network_is_onnxruntimes_number_by_number(rng: np.random.Generator):
    model = from_text(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1], group = 8>(b, w2)
            d = Add(b, c)
            e = HardSwish(d)
            f = GlobalAveragePool(e)
            h = Flatten(f)
            y = Gemm(h, w3)
        }""",
        rng,
        {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (8, 5)},
    )

    assert_like_onnxruntime(model, {"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)})

"""Second moments of layers against the layers themselves, run by onnxruntime."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.methods.moments import Moments, from_rows, supports, to_rows
from onnxptq.ops.nodes import constant
from onnxptq.rewrite.regions import weight_of

TOLERANCE = 1e-5  # float32 sums of a few hundred products

LAYERS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("Conv", (3, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ("Conv", (2, 4, 11, 10), (6, 4, 3, 2), {"strides": [2, 3], "pads": [0, 1, 2, 1]}),
    ("Conv", (2, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ("Conv", (2, 8, 9, 9), (4, 4, 2, 2), {"group": 2, "dilations": [2, 3]}),
    ("Conv", (2, 3, 9, 9), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (2, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", (2, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    ("Conv", (2, 4, 17), (6, 4, 5), {"pads": [2, 2]}),
    ("Gemm", (5, 7), (3, 7), {"transB": 1}),
    ("Gemm", (5, 7), (7, 3), {}),
    ("MatMul", (2, 5, 7), (7, 3), {}),
]


def layer(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]
) -> tuple[ir.Node, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A node with random weights, its random input, and its output."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal(weight).astype(np.float32)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=shape)
    w = ir.val("w", const_value=ir.tensor(array, name="w"))
    node = ir.node(op, [x, w], attributes, outputs=[ir.val("y")], name="layer")
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    given = rng.standard_normal(shape).astype(np.float32)
    return node, given, ort.session(model).run({"x": given})["y"]


@pytest.mark.parametrize(("op", "shape", "weight", "attributes"), LAYERS)
def test_the_error_is_that_of_running_the_layer(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    """With the true weights the error is 0 against the output, and its mean square against 0."""
    node, x, y = layer(op, shape, weight, attributes)
    array = constant(weight_of(node))  # type: ignore[arg-type]
    assert array is not None

    moments = Moments.of(node, x, y)

    rows = to_rows(node, array.astype(np.float64))
    none = np.zeros(rows.shape[:2])
    square = float(np.mean(y.astype(np.float64) ** 2))
    assert moments.error(rows, none).max() < TOLERANCE * square
    assert float(moments.error(0.0 * rows, none).mean()) == pytest.approx(square, rel=TOLERANCE)


@pytest.mark.parametrize(("op", "shape", "weight", "attributes"), LAYERS)
def test_rows_go_back_to_the_weight(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    node, _, _ = layer(op, shape, weight, attributes)
    array = constant(weight_of(node))  # type: ignore[arg-type]
    assert array is not None

    np.testing.assert_array_equal(from_rows(node, to_rows(node, array), array), array)


def test_bias_takes_the_mean_error_away() -> None:
    node, x, y = layer(*LAYERS[0])
    array = constant(weight_of(node))  # type: ignore[arg-type]
    assert array is not None
    moments = Moments.of(node, x, (y + 3.0).astype(np.float32))
    rows = to_rows(node, array.astype(np.float64))

    bias = moments.bias(rows)

    np.testing.assert_allclose(bias, 3.0, rtol=TOLERANCE)
    assert moments.error(rows, bias).max() < TOLERANCE * float(np.mean((y + 3.0) ** 2))


def test_sums_of_batches_are_those_of_all() -> None:
    node, x, y = layer(*LAYERS[0])

    whole, parts = Moments.of(node, x, y), Moments.of(node, x[:1], y[:1])
    parts += Moments.of(node, x[1:], y[1:])

    assert parts.count == whole.count
    np.testing.assert_allclose(parts.inputs, whole.inputs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(parts.cross, whole.cross, rtol=1e-4, atol=1e-3)


def test_stacks_of_matrices_are_not_supported() -> None:
    node, _, _ = layer("MatMul", (2, 5, 7), (2, 7, 3), {})

    assert not supports(node)

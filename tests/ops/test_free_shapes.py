"""Every operator where all sizes of the inputs are free until it runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq.errors import ProgramError
from onnxptq.graph import io
from onnxptq.reach import INT32_MAX
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.ops.fused_nodes import Node
from tests.ops.test_every_op import FORMATS, INDEXED, in_format, quantized_case
from tests.ops.test_fused_products import CONVOLUTIONS, PRODUCTS
from tests.ops.test_nodes_on_codes import EXTREMES, MOVES, PAIRS, POOLS, RESIZES, UNARY
from tests.ort_versions import IS_OLD


def with_free_sizes(model: ir.Model) -> tuple[ir.Model, Mapping[str, np.ndarray]]:
    """The model with a name for each size of its inputs, and a feed of the sizes that it had."""
    proto, rng = ir.serde.serialize_model(model), np.random.default_rng(0)
    del proto.graph.value_info[:]
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        feeds[value.name] = _random(
            rng,
            [side.dim_value for side in kind.shape.dim],
            helper.tensor_dtype_to_np_dtype(kind.elem_type),
        )
        for axis, side in enumerate(kind.shape.dim):
            side.dim_param = f"{value.name}_{axis}"
    return io.from_proto(proto, "free"), feeds


def _random(rng: np.random.Generator, shape: list[int], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "f":
        return (2 * rng.normal(size=shape)).astype(dtype)
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)


@needs_vnni
@pytest.mark.parametrize(("op_type", "position"), INDEXED)
def test_an_operator_runs_as_in_onnxruntime(op_type: str, position: int):
    model, feeds = with_free_sizes(in_format(*quantized_case(op_type, position), FORMATS[0]))

    found = verify(model, [feeds])

    assert found.first_difference is None
    assert found.holds
    assert IS_OLD or found.islands == ()


@needs_vnni
@pytest.mark.parametrize(
    "node", [*CONVOLUTIONS, *PRODUCTS, *PAIRS, *EXTREMES, *POOLS, *UNARY, *MOVES, *RESIZES], ids=str
)
def test_a_node_of_others_runs_as_in_onnxruntime(node: Node):
    model, feeds = with_free_sizes(node.model())

    found = verify(model, [feeds])

    assert found.first_difference is None
    assert found.holds
    assert IS_OLD or found.islands == ()


def test_sums_too_long_for_int32_are_refused_when_the_size_is_known():
    shapes = {"a": ["m", "k"], "b": ["k", "n"], "y": ["m", "n"]}
    ports = [helper.make_tensor_value_info(n, TensorProto.UINT8, s) for n, s in shapes.items()]
    names = ["a", "s", "z", "b", "s", "z", "s", "z"]
    node = helper.make_node("QLinearMatMul", names, ["y"], name="scores")
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "s")
    zero = numpy_helper.from_array(np.array(0, np.uint8), "z")
    graph = helper.make_graph([node], "g", ports[:2], ports[2:], [scale, zero])
    opsets = [helper.make_opsetid("", 21)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    executor = Executor(lower(io.from_proto(proto, "long")))
    longest = INT32_MAX // 255**2

    (most,) = executor.run(None, largest_codes(longest))

    assert most[0, 0] == 255
    with pytest.raises(
        ProgramError, match=r"'scores'.* accumulator may reach 2\.15e\+09 > 2\^31-1"
    ):
        executor.run(None, largest_codes(longest + 1))


def largest_codes(depth: int) -> dict[str, np.ndarray]:
    return {"a": np.full((1, depth), 255, np.uint8), "b": np.full((depth, 1), 255, np.uint8)}

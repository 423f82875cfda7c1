"""onnx's own node tests of integer operators through the executor: in integers, and bit for bit?

    python -m benchmarks.node_cases [--filter PATTERN]

Each node case of onnx.backend.test that quantizes, dequantizes, or reads or makes 8-bit codes. Its
parameters (scales, zero points, weights, bounds) become initializers with the case's own values, as
they are in any deployed file; the data stay an input, but for types that onnxruntime's Python has
no arrays of. The executor's outputs are compared with onnxruntime's and with those that the case
expects.
"""

import fnmatch
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from benchmarks.common import parser, show, write_results
from onnxptq import ort
from onnxptq.errors import ModelError, OnnxptqError
from onnxptq.graph import io
from onnxptq.program import IntegerProgram
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.lower import lower

QUANTIZING = frozenset(
    ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QuantizeLinear",
     "DequantizeLinear", "DynamicQuantizeLinear")
)  # fmt: skip
CODES = (TensorProto.UINT8, TensorProto.INT8)
PARAMETRIC = QUANTIZING | {"Clip"}
"""Operators whose second and later inputs are parameters; those of others are data."""

OLDEST_OPSET = 10
"""The first with QuantizeLinear."""
INTEGER, FOLDED, ISLAND = "integer", "of constants alone", "island"
NOT_RUN = "not run by onnxruntime"


@dataclass(frozen=True)
class NodeCase:
    """A case of onnx with its parameters as initializers.

    Attributes:
        name: onnx's name of it.
        model: The model.
        feeds: The data.
        expected: What onnx says that comes out, in the order of the outputs.
    """

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Any]
    expected: Sequence[Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        name: The case.
        kind: INTEGER; FOLDED where the data have no part in it; ISLAND; or NOT_RUN.
        why: Why it has an island, or why onnxruntime does not run it.
        as_onnxruntime: Whether all bits are onnxruntime's.
        as_onnx: Whether all bits are those that onnx expects.
    """

    name: str
    kind: str
    why: str = ""
    as_onnxruntime: bool = False
    as_onnx: bool = False


def cases(pattern: str = "*") -> Iterator[NodeCase]:
    """All cases of integer operators."""
    for case in load_model_tests(kind="node"):
        model = case.model
        if model is None or not fnmatch.fnmatchcase(case.name, pattern) or not concerned(model):
            continue
        assert case.data_sets
        inputs, outputs = case.data_sets[0]
        yield NodeCase(case.name, *with_parameters(model, inputs), outputs)


def concerned(model: onnx.ModelProto) -> bool:
    """Whether a model quantizes or dequantizes, or reads or makes 8-bit codes."""
    ports = [*model.graph.input, *model.graph.output]
    codes = any(value.type.tensor_type.elem_type in CODES for value in ports)
    return codes or any(node.op_type in QUANTIZING for node in model.graph.node)


def with_parameters(
    model: onnx.ModelProto, inputs: Sequence[Any]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with its parameters as initializers, and what is left to feed."""
    named = {
        value.name: as_array(array) for value, array in zip(model.graph.input, inputs, strict=True)
    }
    nodes = [node for node in model.graph.node if node.op_type in PARAMETRIC]
    fixed = {name for node in nodes for name in node.input[1:] if name in named}
    fixed -= {node.input[0] for node in nodes}
    fixed |= {name for name, array in named.items() if array.dtype.kind not in "fiub"}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.input[:]
    for value in model.graph.input:
        if value.name in fixed:
            changed.graph.initializer.append(numpy_helper.from_array(named[value.name], value.name))
        else:
            changed.graph.input.append(value)
    return changed, {name: array for name, array in named.items() if name not in fixed}


def as_array(value: Any) -> np.ndarray:
    """A value of a data set as an array; types that numpy lacks come as messages."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value)


def runnable(model: onnx.ModelProto) -> ort.Session:
    """A session of the model; where its opset is newer than onnxruntime, of the newest that runs.

    Raises:
        ModelError: None runs.
    """
    newest = model.opset_import[0].version
    refused: ModelError | None = None
    for version in range(newest, OLDEST_OPSET - 1, -1):
        model.opset_import[0].version = version
        try:
            return ort.session(model.SerializeToString(), threads=1)
        except ModelError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def try_case(case: NodeCase) -> Outcome:
    """Run one case in onnxruntime and in the executor."""
    try:
        session = runnable(case.model)
    except ModelError as error:
        return Outcome(case.name, NOT_RUN, str(error))
    try:
        reference = list(session.run(case.feeds).values())
    except ModelError as error:
        return Outcome(case.name, NOT_RUN, str(error), as_onnx=as_onnx_without_reference(case))
    program = lower(io.from_proto(case.model, case.name))
    found = Executor(program).run(None, case.feeds)
    return Outcome(
        case.name,
        kind_of(program),
        "; ".join(island.why for island in program.islands),
        same_bits(reference, found),
        same_bits(case.expected, found),
    )


def kind_of(program: IntegerProgram) -> str:
    """Who computes: integer instructions, onnxruntime at each run, or nobody after the first."""
    ops = {instr.op for instr in program.instrs}
    if "island" in ops:
        return ISLAND
    return INTEGER if ops - {"host"} else FOLDED


def as_onnx_without_reference(case: NodeCase) -> bool:
    """Whether the executor gives what onnx expects where onnxruntime gives nothing."""
    try:
        program = lower(io.from_proto(case.model, case.name))
        return same_bits(case.expected, Executor(program).run(None, case.feeds))
    except OnnxptqError:
        return False


def same_bits(expected: Sequence[Any], found: Sequence[Any]) -> bool:
    """Whether two lists of arrays have the same types, shapes and bits."""
    pairs = [(as_array(a), np.asarray(b)) for a, b in zip(expected, found, strict=True)]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs
    )


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many cases there are of each kind, and how many differ."""
    found = Counter(outcome.kind for outcome in outcomes)
    run = [outcome for outcome in outcomes if outcome.kind != NOT_RUN]
    return {
        "cases": len(outcomes),
        **{kind: found[kind] for kind in (INTEGER, FOLDED, ISLAND, NOT_RUN)},
        "unlike onnxruntime": sum(not outcome.as_onnxruntime for outcome in run),
        "unlike onnx": sum(not outcome.as_onnx for outcome in run),
    }


def main() -> int:
    """Run all cases and print the counts; 1 if one differs from onnxruntime."""
    made = parser(__doc__, "node_cases")
    made.add_argument("--filter", default="*", help="shell-style pattern of test names")
    options = made.parse_args()
    warnings.simplefilter("ignore")
    outcomes = [try_case(case) for case in cases(options.filter)]
    total = counts(outcomes)
    notable = [
        vars(o) for o in outcomes if o.kind != INTEGER or not (o.as_onnxruntime and o.as_onnx)
    ]
    show("node tests of onnx through the executor", [total])
    show("not in integers, or other bits", notable)
    results = {"counts": total, "integer": [o.name for o in outcomes if o.kind == INTEGER]}
    write_results("node_cases", {**results, "notable": notable}, options.out)
    return int(total["unlike onnxruntime"] > 0)


if __name__ == "__main__":
    sys.exit(main())

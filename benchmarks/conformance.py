"""onnx's own node tests through `quantize`: does what comes out run, and do layers become integer?

    python -m benchmarks.conformance [--filter PATTERN]

Each of onnx.backend.test's node cases whose float model onnxruntime loads is quantized at W8A8 with
its own test data. A second variant turns the second and later inputs of Conv, Gemm, MatMul, Add,
Mul and Concat into initializers, so that there are weights to quantize.
"""

import fnmatch
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from benchmarks.common import parser, show, write_results
from onnxptq import ort, pipeline
from onnxptq.errors import ModelError, OnnxptqError
from onnxptq.graph import io
from onnxptq.runtime.lint import lint

CORE = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "AveragePool",
        "GlobalAveragePool")  # fmt: skip
WITH_CONSTANTS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat")


@dataclass(frozen=True)
class Outcome:
    """What became of one case: "ok", "refused", "invalid" or "traceback", with the reason."""

    name: str
    kind: str
    why: str = ""
    core: bool = False
    integer: bool = False


def cases(pattern: str) -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
    """Name, model and inputs of each node case; cases whose inputs are no arrays get no inputs."""
    for case in load_model_tests(kind="node"):
        if case.model is None or not fnmatch.fnmatchcase(case.name, pattern):
            continue
        inputs = case.data_sets[0][0] if case.data_sets else []
        pairs = zip(case.model.graph.input, inputs, strict=False)
        feeds = {value.name: _array(array) for value, array in pairs if _is_given(array)}
        yield case.name, case.model, feeds


def _is_given(value: Any) -> bool:
    """Optional inputs may be absent."""
    return value is not None


def _array(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.generic) else value


def with_constants(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto | None:
    """The model with the later inputs of its first core node as initializers; None without one."""
    node = model.graph.node[0] if model.graph.node else None
    if node is None or node.op_type not in WITH_CONSTANTS or len(model.graph.node) != 1:
        return None
    fixed = [name for name in node.input[1:] if name in feeds and name != node.input[0]]
    if feeds[node.input[0]].dtype != np.float32:
        return None
    if not fixed:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in fixed:
        copy.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
    kept = [value for value in copy.graph.input if value.name not in fixed]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    return copy


def feeds_of(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """The feeds of the inputs that a variant still has."""
    return {value.name: feeds[value.name] for value in model.graph.input if value.name in feeds}


def has_weights(model: onnx.ModelProto) -> bool:
    """Whether the model's layer is in float32 and has nothing but constants beside its input."""
    node = model.graph.node[0]
    kind = model.graph.input[0].type.tensor_type.elem_type
    constants = {tensor.name for tensor in model.graph.initializer}
    single = len(model.graph.node) == 1 and node.op_type in CORE
    return single and kind == onnx.TensorProto.FLOAT and set(node.input[1:]) <= constants


def refusal(model: onnx.ModelProto, feeds: dict[str, Any]) -> str | None:
    """Why onnxruntime does not load or run a model; None if it does."""
    try:
        ort.session(model.SerializeToString(), threads=1).run(feeds)
    except OnnxptqError as error:
        return str(error)
    return None


def try_case(name: str, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Outcome:
    """Quantize one case and run the result on the case's own inputs."""
    core = [n.name or n.output[0] for n in model.graph.node if n.op_type in CORE]
    try:
        result = pipeline.quantize(model, [feeds], quality="quick", report_samples=0)
    except ModelError as error:
        kind = "quantized already" if "already quantized" in str(error) else "refused"
        return Outcome(name, kind, str(error), bool(core))
    except OnnxptqError as error:
        return Outcome(name, "refused", f"{type(error).__name__}: {error}", bool(core))
    except Exception:
        return Outcome(name, "traceback", traceback.format_exc(limit=-3), bool(core))
    return look(name, result, feeds, bool(core))


def look(name: str, result: pipeline.Quantized, feeds: dict[str, Any], core: bool) -> Outcome:
    """Load the result, run it, and see whether a layer became integer."""
    try:
        ort.session(io.to_bytes(result.model), threads=1).run(feeds)
        found = set(lint(result.model).integer_nodes)
    except OnnxptqError as error:
        return Outcome(name, "invalid", str(error), core)
    except Exception:
        return Outcome(name, "traceback", traceback.format_exc(limit=-3), core)
    integer = any(node.name in found and node.op_type in CORE for node in result.model.graph)
    return Outcome(name, "ok", "", core, integer)


def variants(
    name: str, model: onnx.ModelProto, feeds: dict[str, Any]
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The model as it is, and with its weights as initializers where onnxruntime runs that."""
    yield name, model
    constant = with_constants(model, feeds)
    if constant is not None and refusal(constant, feeds_of(constant, feeds)) is None:
        yield f"{name} (weights constant)", constant


def main() -> int:
    """Run all cases and print the counts; 1 if a traceback or an invalid model came out."""
    made = parser(__doc__, "conformance")
    made.add_argument("--filter", default="*", help="shell-style pattern of test names")
    options = made.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    notable: list[dict[str, str]] = []
    for name, model, feeds in cases(options.filter):
        counts["cases"] += 1
        if refusal(model, feeds) is not None:
            counts["float model not run by onnxruntime"] += 1
            continue
        for label, variant in variants(name, model, feeds):
            outcome = try_case(label, variant, feeds_of(variant, feeds))
            counts[outcome.kind + (" (weights constant)" if label != name else "")] += 1
            wanted = outcome.core and has_weights(variant)
            if wanted:
                layers["integer" if outcome.integer else "float"] += 1
            if outcome.kind != "ok" or (wanted and not outcome.integer):
                why = outcome.why or "no layer became integer"
                notable.append({"case": label, "outcome": outcome.kind, "why": why})
    show(
        "node tests of onnx through quantize", [{"what": k, "count": n} for k, n in counts.items()]
    )
    show("a float32 layer with constant weights, or a pool", [dict(layers)])
    show("not ok, or without an integer layer", notable)
    results = {"counts": dict(counts), "layers": dict(layers), "notable": notable}
    write_results("conformance", results, options.out)
    return int(bool(counts["traceback"] or counts["invalid"]))


if __name__ == "__main__":
    sys.exit(main())

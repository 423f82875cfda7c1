"""onnx's own node tests through `quantize`: does what comes out run, and do layers become integer?

    python benchmarks/conformance.py [--filter PATTERN] [--show]

Each of onnx.backend.test's node cases whose float model onnxruntime loads is quantized at W8A8 with its
own test data. A second variant turns the second and later inputs of Conv, Gemm, MatMul, Add, Mul and
Concat into initializers, so that there are weights to quantize.
"""

import argparse
import fnmatch
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case import collect_testcases

from onnxptq import ort, pipeline
from onnxptq.errors import OnnxptqError
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
    core: str = ""
    integer: bool = False


def cases(pattern: str) -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
    """Name, model and inputs of each node case; cases whose inputs are no arrays get no inputs."""
    for case in collect_testcases():
        if case.kind != "node" or not fnmatch.fnmatchcase(case.name, pattern):
            continue
        model = case.model
        feeds: dict[str, np.ndarray] = {}
        for inputs, _ in case.data_sets or []:
            for value, array in zip(model.graph.input, inputs, strict=False):
                if isinstance(array, np.ndarray):
                    feeds[value.name] = array
            break
        yield case.name, model, feeds


def with_constants(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto | None:
    """The model with the later inputs of its first core node as initializers; None without one."""
    node = model.graph.node[0] if model.graph.node else None
    if node is None or node.op_type not in WITH_CONSTANTS or len(model.graph.node) != 1:
        return None
    fixed = [name for name in node.input[1:] if name in feeds and name != node.input[0]]
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


def loads(model: onnx.ModelProto) -> str | None:
    """Why onnxruntime refuses a model; None if it loads it."""
    try:
        ort.session(model.SerializeToString(), threads=1)
    except OnnxptqError as error:
        return str(error)
    return None


def try_case(name: str, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Outcome:
    """Quantize one case and run the result on the case's own inputs."""
    core = next((n.op_type for n in model.graph.node if n.op_type in CORE), "")
    names = {value.name for value in model.graph.input}
    batch = {key: array for key, array in feeds.items() if key in names}
    try:
        result = pipeline.quantize(model, [batch], report_samples=0)
    except OnnxptqError as error:
        return Outcome(name, "refused", f"{type(error).__name__}: {error}", core)
    except Exception:
        return Outcome(name, "traceback", traceback.format_exc(limit=-3), core)
    try:
        session = ort.session(io.to_bytes(result.model), threads=1)
        session.run(batch)
        found = lint(result.model)
    except OnnxptqError as error:
        return Outcome(name, "invalid", str(error), core)
    except Exception:
        return Outcome(name, "traceback", traceback.format_exc(limit=-3), core)
    return Outcome(name, "ok", "", core, _has_integer(result.model, found))


def _has_integer(model: object, found: object) -> bool:
    del model
    return bool(getattr(found, "integer_nodes", ())) and not getattr(found, "float_nodes", ())


def main() -> int:
    """Run all cases and print the counts; 1 if a traceback or an invalid model came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filter", default="*")
    parser.add_argument("--show", action="store_true", help="print every case that is not ok")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    cores: Counter[tuple[str, bool]] = Counter()
    for name, model, feeds in cases(options.filter):
        counts["cases"] += 1
        refusal = loads(model)
        if refusal is not None:
            counts["float model refused by onnxruntime"] += 1
            continue
        variants = [(name, model)]
        constant = with_constants(model, feeds)
        if constant is not None and loads(constant) is None:
            variants.append((f"{name} (weights constant)", constant))
        for label, variant in variants:
            outcome = try_case(label, variant, feeds)
            counts[outcome.kind + (" (variants)" if variant is not model else "")] += 1
            if variant is not model or outcome.core in ("MaxPool", "AveragePool", "GlobalAveragePool"):
                cores[outcome.core, outcome.integer] += 1
            if options.show and (outcome.kind != "ok" or (outcome.core and not outcome.integer)):
                print(f"{outcome.kind:10s} {outcome.integer!s:6s} {label}: {outcome.why}", flush=True)
    for key, count in sorted(counts.items()):
        print(f"{count:6d}  {key}")
    for (core, integer), count in sorted(cores.items()):
        print(f"{count:6d}  {core}: {'integer' if integer else 'float'}")
    return int(bool(counts["traceback"] or counts["invalid"]))


if __name__ == "__main__":
    sys.exit(main())

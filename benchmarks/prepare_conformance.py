"""Prepare every node test of onnx.backend.test and compare outputs in onnxruntime before and after.

Two variants of each test: as it is, and with every input but the first made an initializer, so that
the folding passes have constants to work on. Prints counts, and each failure with its reason; exits
with 1 if there is one. Takes two minutes, with onnxsim (--simplify) half an hour.

    python benchmarks/prepare_conformance.py [--only SUBSTRING] [--simplify]
"""

import argparse
import sys
import traceback
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.backend.test.loader import load_model_tests

from onnxptq import passes
from onnxptq.errors import OnnxptqError
from onnxptq.graph import io

RTOL, ATOL = 1e-4, 1e-5
"""Folding reorders float32 sums; the tests' numbers are of order 1."""

# Their outputs are random.
RANDOM = ("bernoulli", "random", "multinomial", "training_dropout")


def session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def with_constants(model: onnx.ModelProto, feeds: dict[str, Any]) -> onnx.ModelProto | None:
    """The test with all inputs but the first turned into initializers."""
    ports = list(model.graph.input)[1:]
    if not ports or not all(isinstance(feeds.get(port.name), np.ndarray) for port in ports):
        return None
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for port in ports:
        changed.graph.initializer.append(onnx.numpy_helper.from_array(feeds[port.name], port.name))
    del changed.graph.input[1:]
    return changed


def differs(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) != len(b) or any(differs(x, y) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is not b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    if a.dtype.kind in "OSU":
        return not np.array_equal(a, b)
    tolerance = 1e-2 if a.dtype == np.float16 else RTOL
    return not np.allclose(
        a.astype(np.float64), b.astype(np.float64), tolerance, ATOL, equal_nan=True
    )


def outcome(model: onnx.ModelProto, feeds: dict[str, Any], name: str, seconds: float) -> str:
    """One word on what happened: skipped, equal, refused, or FAILED with a reason."""
    try:
        before = session(model.SerializeToString())
        expected = before.run(None, {k: v for k, v in feeds.items() if k in _inputs(before)})
    except Exception:  # whatever onnxruntime refuses is not ours to prepare
        return "skipped"
    try:
        prepared = passes.prepare(io.from_proto(model, name), simplify_seconds=seconds)
    except OnnxptqError as error:
        return f"refused: {error}"
    except Exception:  # a traceback is what this script looks for
        return f"FAILED with a traceback\n{traceback.format_exc()}"
    if prepared.notes:
        print(f"{name}: note: {prepared.notes}")
    try:
        after = session(io.to_bytes(prepared.model))
        got = after.run(None, {k: v for k, v in feeds.items() if k in _inputs(before)})
    except Exception as error:
        return f"FAILED: onnxruntime refuses the result: {error}"
    if any(marker in name for marker in RANDOM):
        return "equal"
    return "FAILED: outputs differ" if differs(expected, got) else "equal"


def _inputs(loaded: onnxruntime.InferenceSession) -> set[str]:
    return {port.name for port in loaded.get_inputs()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the tests whose name holds this")
    parser.add_argument("--simplify", action="store_true", help="run onnxsim too")
    arguments = parser.parse_args()
    only, seconds = arguments.only, 60.0 if arguments.simplify else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in load_model_tests(kind="node") if only in case.name]
    counts: Counter[str] = Counter()
    for case in cases:
        model, data = case.model, case.data_sets
        if model is None or not data:
            continue
        feeds = dict(zip([port.name for port in model.graph.input], data[0][0], strict=False))
        for variant, proto in (("", model), ("+constants", with_constants(model, feeds))):
            if proto is None:
                continue
            result = outcome(proto, feeds, case.name + variant, seconds)
            counts[f"{variant or 'plain'} {result.split()[0].rstrip(':')}"] += 1
            if result.startswith(("FAILED", "refused")):
                print(f"{case.name}{variant}: {result}", flush=True)
    print(dict(sorted(counts.items())))
    return 1 if any("FAILED" in key for key in counts) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What one onnxruntime version does with a list of files; runs in an environment of its own.

Needs numpy, onnx and onnxruntime only: `python ort_probe.py REQUEST.json ANSWER.json`.
"""

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
MOVES = ("Transpose", "ReorderInput", "ReorderOutput", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
INTEGER = re.compile(r"QLinear\w+|QGemm|(Conv|MatMul)Integer(ToFloat)?|QAttention|NhwcMaxPool")
CODE_TYPES = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
OPSETS = range(19, 31)
IR_VERSIONS = range(9, 16)


def options() -> Any:
    made = onnxruntime.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = 1
    return made


def probe(path: str, feeds: dict[str, Any]) -> dict[str, Any]:
    """Load and run one file; what runs in it, and a digest of its outputs."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            chosen = options()
            chosen.optimized_model_filepath = str(optimized)
            session = onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
            graph = onnx.load(str(optimized)).graph
        arrays = session.run(None, feeds)
    except Exception as error:  # whatever a version throws is the answer
        return {"loads": False, "error": str(error).splitlines()[0]}
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"loads": True, "digest": digest.hexdigest(), **running(graph)}


def running(graph: onnx.GraphProto) -> dict[str, Any]:
    """Operators of the optimised graph: those in float, and those that only have constants."""
    constants = {tensor.name for tensor in graph.initializer}
    codes = {tensor.name for tensor in graph.initializer if tensor.data_type in CODE_TYPES}
    counts: dict[str, int] = {}
    floats: list[str] = []
    unfolded: list[str] = []
    for node in graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        used = [name for name in node.input if name]
        if node.op_type == "Constant" or (used and constants.issuperset(used)):
            unfolded.append(node.op_type)
            constants.update(node.output)
        on_codes = node.op_type != "DequantizeLinear" and bool(codes.intersection(used[:1]))
        if node.op_type == "QuantizeLinear" or INTEGER.fullmatch(node.op_type) or on_codes:
            codes.update(node.output)
        elif node.op_type not in (*CONVERSIONS, *MOVES):
            floats.append(node.op_type)
    return {"operators": counts, "float": floats, "unfolded": unfolded}


def opens(opset: int, ir_version: int) -> bool:
    """Whether a model of one Relu with these versions loads."""
    value = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", value, [1])],
        [onnx.helper.make_tensor_value_info("y", value, [1])],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options(), providers=["CPUExecutionProvider"]
        )
    except Exception:
        return False
    return True


def main(request: Path, answer: Path) -> None:
    files = json.loads(request.read_text(encoding="utf-8"))
    results: dict[str, Any] = {}
    for name, entry in files.items():
        with np.load(entry["feeds"]) as arrays:
            feeds = {key: arrays[key] for key in arrays.files}
        results[name] = probe(entry["model"], feeds)
    content = {
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "highest_opset": max((n for n in OPSETS if opens(n, 10)), default=None),
        "highest_ir": max((n for n in IR_VERSIONS if opens(19, n)), default=None),
        "files": results,
    }
    answer.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

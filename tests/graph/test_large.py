"""Models above 2 GiB, which one protobuf message cannot hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

LAYERS, WIDTH = 9, 8192  # 9 matrices of 256 MiB float32: 2.25 GiB

PROGRAM = """
import resource, sys
from pathlib import Path
from onnxptq import passes
from onnxptq.graph import io, skeleton
source, target = Path(sys.argv[1]), Path(sys.argv[2])
model = io.load(source)
prepared = passes.prepare(model)
io.save(prepared.model, target)
again = io.load(target)
print(io.digest(again) == io.digest(prepared.model))
print(skeleton.size_bytes(again), io.opset(again), len(again.graph), prepared.notes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_large_model(path: Path) -> None:
    """A chain of MatMul, each followed by work for the passes and for onnxsim, at opset 11."""
    nodes, tensors = [], []
    value = "x"
    block = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32).tobytes()
    with path.with_suffix(".data").open("wb") as file:
        for layer in range(LAYERS):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT)
            weight.dims.extend([WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            for key, text in (
                ("location", path.with_suffix(".data").name),
                ("offset", str(file.tell())),
                ("length", str(4 * WIDTH * WIDTH)),
            ):
                weight.external_data.add(key=key, value=text)
            tensors.append(weight)
            for _ in range(4 * WIDTH * WIDTH // len(block)):
                file.write(block)
            nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
            nodes.append(helper.make_node("Identity", [f"m{layer}"], [f"v{layer}"]))
            value = f"v{layer}"
    nodes.append(helper.make_node("Shape", ["x"], ["shape"]))
    nodes.append(helper.make_node("Size", ["x"], ["size"]))
    nodes.append(helper.make_node("Reshape", [value, "shape"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.slow
def test_a_model_above_2_gib_is_loaded_prepared_and_saved(tmp_path: Path) -> None:
    source = tmp_path / "large.onnx"
    write_large_model(source)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "prepared.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    same, facts, peak_mb = done.stdout.splitlines()
    assert same == "True"
    assert facts == f"{LAYERS * 4 * WIDTH * WIDTH} 21 {LAYERS} ()"
    # Mapped files count while they are in memory: source and result, each 2.4 GB, and little more.
    assert int(peak_mb) < 1.15 * 2 * LAYERS * 256

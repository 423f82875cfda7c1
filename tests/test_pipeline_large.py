"""quantize on a model above 2 GiB, which one protobuf message cannot hold."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH = 9, 8192  # 9 matrices of 256 MiB float32: 2.25 GiB
BYTES = LAYERS * 4 * WIDTH * WIDTH
SIDE, CHANNELS = 32, 8  # CHANNELS * SIDE * SIDE == WIDTH

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import onnxptq
from onnxptq import ort
from onnxptq.report.totals import peak_rss_mb
folder, bits = Path(sys.argv[1]), sys.argv[2]
source, data, target = folder / "large.onnx", folder / "data.npz", folder / "quantized.onnx"
result = onnxptq.quantize(source, data, bits=bits, method="minmax,weights-minmax")
result.save(target)
feeds = dict(np.load(data))
expected, found = (ort.session(path).run(feeds)["y"] for path in (source, target))
error = np.square(expected - found).sum() / np.square(expected).sum()
print(json.dumps({
    "float_nodes": [row.node for row in result.report.float_nodes],
    "bytes_float": result.report.bytes_float,
    "bytes_file": target.stat().st_size,
    "sqnr_db": float(-10 * np.log10(error)),
    "peak_mb": peak_rss_mb(),
}))
"""


def write_large_model(folder: Path, rng: np.random.Generator) -> None:
    """Conv, Relu, Flatten, then a chain of MatMul and Relu whose weights are external data."""
    block = (rng.normal(size=1 << 20) * np.sqrt(2 / WIDTH)).astype(np.float32).tobytes()
    kernel = rng.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)
    tensors = [numpy_helper.from_array(kernel, "kernel")]
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["rc"]),
        helper.make_node("Flatten", ["rc"], ["v0"]),
    ]
    with (folder / "weights.data").open("wb") as file:
        for layer in range(LAYERS):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT)
            weight.dims.extend([WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": "weights.data", "offset": str(file.tell())}
            for key, text in {**place, "length": str(4 * WIDTH * WIDTH)}.items():
                weight.external_data.add(key=key, value=text)
            tensors.append(weight)
            for _ in range(4 * WIDTH * WIDTH // len(block)):
                file.write(block)
            last = layer == LAYERS - 1
            product = "y" if last else f"m{layer}"
            nodes.append(helper.make_node("MatMul", [f"v{layer}", f"w{layer}"], [product]))
            if not last:
                nodes.append(helper.make_node("Relu", [product], [f"v{layer + 1}"]))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (folder / "large.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "data.npz", x=rng.normal(size=(2, 3, SIDE, SIDE)).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "least_db"), [("w8a8", 30.0), ("w4a8", 5.0)])
def test_a_model_above_2_gib_is_quantized(
    bits: str, least_db: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    write_large_model(tmp_path, rng)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), bits],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["float_nodes"] == []
    assert facts["bytes_float"] >= BYTES
    assert facts["bytes_file"] < 0.26 * BYTES
    assert facts["sqnr_db"] > least_db
    # The float weights, mapped; onnxruntime's copy of them in its kernels' order; codes, which it
    # unpacks and reorders too while both models are compared.
    assert facts["peak_mb"] < 3 * BYTES / 1e6

"""Three choices of the rewriter, measured: HardSwish, CIFAR shortcuts, weight zero points.

    python -m benchmarks.choices

HardSwish has no integer kernel in onnxruntime. Between two convolutions it can stay in float, or be
HardSigmoid as a window of codes times its input. The shortcut (a strided Slice and a Pad of
channels) can stay that, written on codes, or become a 1x1 Conv with unit codes. Runs are
interleaved.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.common import parser, show, write_results
from onnxptq import ort, pipeline

HEAD = '<ir_version: 10, opset_import: ["": 21]>\n'
SWISH = """g (float[1,64,28,28] x) => (float[1,64,28,28] y) {
  a = Conv (x, w1)  b = HardSwish (a)  c = Conv (b, w2)  d = HardSwish (c)  y = Conv (d, w3)
}"""
SWISH_WEIGHTS = {"w1": (64, 64, 1, 1), "w2": (64, 64, 1, 1), "w3": (64, 64, 1, 1)}
LAYERS = """g (float[1,64,28,28] x) => (float[1,64,28,28] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1)  b = Relu (a)
  c = Conv <pads = [1, 1, 1, 1]> (b, w2)  d = Relu (c)  y = Conv <pads = [1, 1, 1, 1]> (d, w3)
}"""
LAYER_WEIGHTS = {"w1": (64, 64, 3, 3), "w2": (64, 64, 3, 3), "w3": (64, 64, 3, 3)}
SHORTCUT = """g (float[1,16,32,32] x) => (float[1,32,16,16] y)
<int64[2] start = {0, 0}, int64[2] end = {99, 99}, int64[2] axes = {2, 3}, int64[2] step = {2, 2},
 int64[8] pads = {0, 8, 0, 0, 0, 8, 0, 0}> {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1)  r = Relu (a)
  b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, w2)
  %s
  t = Add (b, s)  u = Relu (t)  y = Conv <pads = [1, 1, 1, 1]> (u, w3)
}"""
SLICE_AND_PAD = "c = Slice (r, start, end, axes, step)  s = Pad (c, pads)"
UNIT_CONV = "s = Conv <strides = [2, 2]> (r, unit)"
SHORTCUT_WEIGHTS = {"w1": (16, 16, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 32, 3, 3)}


def build(text: str, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A model with seeded random weights; `unit` copies channels 0..15 to 8..23."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEAD + text)
    arrays = {name: rng.normal(size=shape) / 10 for name, shape in weights.items()}
    unit = np.zeros((32, 16, 1, 1))
    unit[np.arange(16) + 8, np.arange(16)] = 1
    arrays["unit"] = unit
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return proto


def quantized(model: onnx.ModelProto, x: np.ndarray, **options: Any) -> ort.Session:
    """The model at W8A8, loaded for one thread."""
    written = pipeline.quantize(model, {"x": x}, quality="quick", report_samples=0, **options).model
    for node in written.graph:
        _restore_hard_swish(written, node)
    return ort.session(written, threads=1)


def _restore_hard_swish(model: ir.Model, node: ir.Node) -> None:
    """Where the gate stayed in float, use onnxruntime's own HardSwish kernel, the best one."""
    if node.op_type != "HardSigmoid":
        return
    product = next(iter(node.successors()))
    swish = ir.node("HardSwish", [node.inputs[0]], name=f"{product.name}_swish")
    swish.outputs[0].name = f"{product.name}_swish_out"
    swish.outputs[0].type = product.outputs[0].type
    model.graph.insert_after(product, swish)
    product.outputs[0].replace_all_uses_with(swish.outputs[0])
    model.graph.remove([product], safe=True)
    model.graph.remove([node], safe=True)


def medians_us(sessions: dict[str, ort.Session], x: np.ndarray, runs: int) -> dict[str, float]:
    """Median time of each session in microseconds, the runs taking turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs):
        for name, session in sessions.items():
            begun = time.perf_counter()
            session.run({"x": x})
            times[name].append(time.perf_counter() - begun)
    return {name: 1e6 * float(np.median(values)) for name, values in times.items()}


def main() -> int:
    """Measure both choices and write the result file."""
    made = parser(__doc__, "choices")
    made.add_argument("--runs", type=int, default=300)
    options = made.parse_args()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 64, 28, 28)).astype(np.float32) * 3
    swish = build(SWISH, SWISH_WEIGHTS)
    swish_us = medians_us(
        {
            "HardSwish in float": quantized(swish, x, float_patterns=("HardSigmoid", "Mul")),
            "window of codes, then Mul": quantized(swish, x),
        },
        x,
        options.runs,
    )
    x = rng.normal(size=(1, 16, 32, 32)).astype(np.float32)
    shortcut_us = medians_us(
        {
            "Slice and Pad on codes": quantized(
                build(SHORTCUT % SLICE_AND_PAD, SHORTCUT_WEIGHTS), x
            ),
            "1x1 Conv with unit codes": quantized(build(SHORTCUT % UNIT_CONV, SHORTCUT_WEIGHTS), x),
        },
        x,
        options.runs,
    )
    x = rng.normal(size=(1, 64, 28, 28)).astype(np.float32)
    layers = build(LAYERS, LAYER_WEIGHTS)
    weights_us = medians_us(
        {
            "weights without zero points": quantized(layers, x),
            "weights with zero points": quantized(layers, x, method="mse,weights-asymmetric"),
        },
        x,
        options.runs,
    )
    rows = [
        {"form": name, "median_us": us}
        for us_of in (swish_us, shortcut_us, weights_us)
        for name, us in us_of.items()
    ]
    show("forms of the same thing", rows)
    write_results("choices", {"rows": rows}, Path(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

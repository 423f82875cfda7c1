"""Two choices of the rewriter, measured: HardSwish on codes, and the shortcut of CIFAR ResNets.

    python -m benchmarks.choices

HardSwish has no integer kernel in onnxruntime. Between two convolutions it can stay in float, or be
HardSigmoid as a window of codes times its input. The shortcut (a strided Slice and a Pad of
channels) can stay that, written on codes, or become a 1x1 Conv with unit codes. Runs are
interleaved.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.common import parser, say, show, write_results
from onnxptq import ort, passes
from onnxptq.graph import io
from onnxptq.ops.nodes import constant
from onnxptq.quant import QParams
from onnxptq.rewrite.gates import fit_gates
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.weights import fit_scales

HEAD = '<ir_version: 10, opset_import: ["": 21]>\n'
SWISH = """g (float[1,64,28,28] x) => (float[1,64,28,28] y) {
  a = Conv (x, w1)  b = HardSwish (a)  c = Conv (b, w2)  d = HardSwish (c)  y = Conv (d, w3)
}"""
SWISH_WEIGHTS = {"w1": (64, 64, 1, 1), "w2": (64, 64, 1, 1), "w3": (64, 64, 1, 1)}
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


def build(text: str, weights: dict[str, tuple[int, ...]]) -> ir.Model:
    """A prepared model with seeded random weights; `unit` copies channels 0..15 to 8..23."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEAD + text)
    arrays = {name: rng.normal(size=shape) / 10 for name, shape in weights.items()}
    unit = np.zeros((32, 16, 1, 1))
    unit[np.arange(16) + 8, np.arange(16)] = 1
    arrays["unit"] = unit
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return passes.prepare(io.from_proto(proto, "the benchmark's model")).model


def quantized(model: ir.Model, x: np.ndarray, *float_patterns: str) -> ort.Session:
    """The model at W8A8 with minimum and maximum as ranges, loaded for one thread."""
    recipe = place(model, Placing(float_patterns=float_patterns))
    taps = [t.value for t in recipe.activations() if t.value != "x"]
    arrays = {"x": x, **ort.session(ort.with_outputs(model, taps)).run({"x": x}, taps)}
    chosen = {
        t.value: QParams.from_range(arrays[t.value].min(), arrays[t.value].max(), t.params.spec)
        for t in recipe.activations()
    }
    for tensor in recipe.weights():
        rows = constant(model.graph.initializers[tensor.value])
        assert rows is not None
        rows = rows.reshape(rows.shape[0], -1)
        spec = tensor.params.spec
        chosen[tensor.value] = QParams.from_range(rows.min(axis=1), rows.max(axis=1), spec)
    recipe = fit_scales(model, fit_gates(model, recipe.with_params(chosen, "minmax")))
    written = insert_qdq(model, recipe, Storage("int8"))
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
            "HardSwish in float": quantized(swish, x, "HardSigmoid", "Mul"),
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
    rows = [
        {"form": name, "median_us": us}
        for us_of in (swish_us, shortcut_us)
        for name, us in us_of.items()
    ]
    show("forms of the same thing", rows)
    say(f"wrote {write_results('choices', {'rows': rows}, Path(options.out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

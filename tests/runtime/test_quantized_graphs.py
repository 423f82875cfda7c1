"""Quantized graphs as people write them by hand, float parts and all, bit for bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxptq.graph import io
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.ort_versions import IS_OLD

PARAMETERS = """
    float s = {0.05}, uint8 z = {100}, float t = {0.02}, uint8 v = {3}, float p = {0.004},
    int8 u = {0}, int8 m = {-7}, float q = {0.1}, uint16 z16 = {30000}, int8 i = {5}, uint8 o = {0}
"""


@dataclass(frozen=True)
class Graph:
    """A graph whose weights are random codes.

    Attributes:
        name: Of the test.
        inputs: What it reads.
        body: Its nodes; `y` is what it gives.
        weights: Its constants by name: shape and type of random ones, or their values.
        islands: Operators that run in float, Q and DQ aside.
        output: Type of `y`.
    """

    name: str
    inputs: str
    body: str
    weights: Mapping[str, tuple[tuple[int, ...], str] | np.ndarray]
    islands: Sequence[str] = ()
    output: str = "float"

    def model(self) -> ir.Model:
        """The model; constants of the parser's header are the parameters."""
        text = f"""<ir_version: 10, opset_import: ["": 21]>
            one ({self.inputs}) => ({self.output}[?] y) <{PARAMETERS}> {{ {self.body} }}"""
        proto = onnx.parser.parse_model(text)
        rng = np.random.default_rng(0)
        used = {name for node in proto.graph.node for name in node.input}
        kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
        del proto.graph.initializer[:]
        for name, weight in self.weights.items():
            array = _random(rng, *weight) if isinstance(weight, tuple) else weight
            kept.append(numpy_helper.from_array(array, name))
        proto.graph.initializer.extend(kept)
        return io.from_proto(proto, self.name)


def _random(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    dtype = np.dtype(kind)
    if dtype == np.float32:
        return rng.normal(size=shape).astype(dtype)
    if dtype == np.int32:
        return rng.integers(-2000, 2000, shape, dtype)
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)


X = "float[2, 8, 6, 6] x"
IN = "a = QuantizeLinear(x, s, z) r = DequantizeLinear(a, s, z) "
OUT = " b = QuantizeLinear(f, t, v) y = DequantizeLinear(b, t, v)"
CONV = "wr = DequantizeLinear(w, p, u) "
W = {"w": ((12, 8, 3, 3), "int8")}
M = {"w": ((6, 5), "int8")}
ROWS = "float[2, 3, 6] x"

ONES = np.ones(4, np.int64)
PADS = np.array([0, 0, 1, 2, 0, 1, 0, 1], np.int64)
THIRD = np.array(1 / 3, np.float32)
MOVED = "a = QuantizeLinear(c, s, z) y = DequantizeLinear(a, s, z)"

GRAPHS = [
    Graph("conv", X, f"{IN} {CONV} f = Conv(r, wr) {OUT}", W),
    Graph("weights-without-zero", X, f"{IN} wr = DequantizeLinear(w, p) f = Conv(r, wr) {OUT}", W),
    Graph("weight-zero", X, f"{IN} wr = DequantizeLinear(w, p, m) f = Conv(r, wr) {OUT}", W),
    Graph(
        "relu",
        X,
        f"{IN} {CONV} c = Conv(r, wr) f = Relu(c) b = QuantizeLinear(f, t, o) "
        "y = DequantizeLinear(b, t, o)",
        W,
    ),
    Graph("relu-that-cuts", X, f"{IN} {CONV} c = Conv(r, wr) f = Relu(c) {OUT}", W, ["FusedConv"]),
    Graph(
        "float-bias",
        X,
        f"{IN} {CONV} f = Conv(r, wr, bias) {OUT}",
        {**W, "bias": ((12,), "float32")},
    ),
    Graph("no-codes-after", X, f"{IN} {CONV} y = Conv(r, wr)", W, ["Conv"]),
    Graph("float-weights", X, f"{IN} f = Conv(r, w) {OUT}", {"w": ((12, 8, 3, 3), "float32")}),
    Graph(
        "codes-out",
        X,
        f"{IN} {CONV} f = Conv(r, wr) y = QuantizeLinear(f, t, v)",
        W,
        output="uint8",
    ),
    Graph(
        "codes-in",
        "uint8[2, 8, 6, 6] a",
        f"r = DequantizeLinear(a, s, z) {CONV} f = Conv(r, wr) {OUT}",
        W,
    ),
    Graph(
        "axes-of-a-channel",
        X,
        "a = QuantizeLinear <axis = 1> (x, cs, cz) y = DequantizeLinear <axis = 1> (a, cs, cz)",
        {"cs": ((8,), "float32"), "cz": ((8,), "uint8")},
    ),
    Graph("matmul", ROWS, f"{IN} {CONV} f = MatMul(r, wr) {OUT}", M),
    Graph("matmul-to-real", ROWS, f"{IN} {CONV} y = MatMul(r, wr)", M),
    Graph(
        "matmul-plus-bias",
        ROWS,
        f"{IN} {CONV} c = MatMul(r, wr) y = Add(c, bias)",
        {**M, "bias": ((5,), "float32")},
        ["Gemm", "Reshape"],
    ),
    Graph(
        "matmul-bias-codes",
        ROWS,
        f"{IN} {CONV} c = MatMul(r, wr) f = Add(c, bias) {OUT}",
        {**M, "bias": ((5,), "float32")},
    ),
    Graph(
        "transposed-weights",
        ROWS,
        f"{IN} {CONV} wt = Transpose <perm = [1, 0]> (wr) f = MatMul(r, wt) {OUT}",
        {"w": ((5, 6), "int8")},
    ),
    Graph(
        "attention",
        ROWS,
        f"{IN} {CONV} k = MatMul(r, wr) "
        "kq = QuantizeLinear(k, t, v) kr = DequantizeLinear(kq, t, v) "
        "kt = Transpose <perm = [0, 2, 1]> (kr) g = MatMul(kr, kt) gq = QuantizeLinear(g, q, z) "
        "gr = DequantizeLinear(gq, q, z) e = Softmax <axis = -1> (gr) eq = QuantizeLinear(e, p, o) "
        f"er = DequantizeLinear(eq, p, o) f = MatMul(er, kr) {OUT}",
        {"w": ((6, 6), "int8")},
    ),
    Graph(
        "layer-norm",
        ROWS,
        f"{IN} f = LayerNormalization(r, g) {OUT}",
        {"g": ((6,), "float32")},
        ["LayerNormalization"],
    ),
    Graph("mean", X, f"{IN} f = ReduceMean(r) {OUT}", {}, ["ReduceMean"]),
    Graph(
        "difference",
        X,
        f"{IN} d = QuantizeLinear(x, t, v) e = DequantizeLinear(d, t, v) f = Sub(r, e) {OUT}",
        {},
        ["Sub"],
    ),
    Graph("gelu", X, f"{IN} f = Gelu(r) {OUT}", {}),
    Graph("square", X, f"{IN} f = Mul(r, r) {OUT}", {}),
    Graph("twice", X, f"{IN} f = Add(r, r) {OUT}", {}),
    Graph(
        "affine-a-channel",
        X,
        f"{IN} g = Mul(r, gain) f = Add(g, shift) {OUT}",
        {"gain": ((8, 1, 1), "float32"), "shift": ((8, 1, 1), "float32")},
        ["Add", "Mul"],
    ),
    Graph(
        "linear-resize",
        X,
        f'{IN} f = Resize <mode = "linear"> (r, , sc) {OUT}',
        {"sc": np.array([1, 1, 2, 1.5], np.float32)},
        ["Resize"],
    ),
    Graph(
        "upward-conv",
        X,
        f"{IN} {CONV} f = ConvTranspose(r, wr) {OUT}",
        {"w": ((8, 4, 2, 2), "int8")},
        ["ConvTranspose"],
    ),
    Graph(
        "sixteen-bits",
        X,
        f"a = QuantizeLinear(x, p, z16) r = DequantizeLinear(a, p, z16) "
        f"{CONV} f = Conv(r, wr) {OUT}",
        W,
        ["Conv"],
    ),
    Graph(
        "two-pairs",
        X,
        f"{IN} a2 = QuantizeLinear(r, q, v) r2 = DequantizeLinear(a2, q, v) "
        f"{CONV} f = Conv(r2, wr) {OUT}",
        W,
    ),
    Graph(
        "shape-of-the-input",
        "float[n, 8, h, 6] x",
        f"{IN} {CONV} f = Conv(r, wr) b = QuantizeLinear(f, t, v) d = DequantizeLinear(b, t, v) "
        "n1 = Shape <start = 0, end = 1> (x) sh = Concat <axis = 0> (n1, rest) y = Reshape(d, sh)",
        {**W, "rest": np.array([-1, 6], np.int64)},
    ),
    Graph(
        "both-float-and-codes",
        X,
        f"{IN} {CONV} f = Conv(r, wr) b = QuantizeLinear(f, t, v) "
        "d = DequantizeLinear(b, t, v) y = Exp(d)",
        W,
        ["Exp"],
    ),
    Graph(
        "pixels",
        "uint8[2, 8, 6, 6] raw",
        f"c = Cast <to = 1> (raw) x = Mul(c, t) {IN} {CONV} f = Conv(r, wr) {OUT}",
        W,
        ["Cast", "Mul"],
    ),
    Graph(
        "dynamic",
        ROWS,
        "a, as, az = DynamicQuantizeLinear(x) acc = MatMulInteger(a, w, az, u) "
        "c = Cast <to = 1> (acc) k = Mul(as, p) y = Mul(c, k)",
        M,
        ["DynamicQuantizeMatMul"],
    ),
    Graph(
        "choice", X, f"{IN} no = Less(r, q) f = Where(no, r, t) {OUT}", {}, ["Less", "QLinearWhere"]
    ),
    Graph(
        "clip-between", X, f"{IN} {CONV} c = Conv(r, wr) f = Clip(c, s, q) {OUT}", W, ["FusedConv"]
    ),
    Graph(
        "split-and-joined",
        X,
        f"{IN} l, h = Split <axis = 1, num_outputs = 2> (r) "
        f"lq = QuantizeLinear(l, s, z) lr = DequantizeLinear(lq, s, z) "
        f"hq = QuantizeLinear(h, s, z) hr = DequantizeLinear(hq, s, z) "
        f"f = Concat <axis = 1> (hr, lr) {OUT}",
        {},
    ),
    Graph(
        "int8-chain",
        X,
        "a = QuantizeLinear(x, s, i) r = DequantizeLinear(a, s, i) "
        f"{CONV} f = Conv(r, wr) b = QuantizeLinear(f, t, u) y = DequantizeLinear(b, t, u)",
        W,
    ),
    Graph("moved-in", X, f"c = Transpose <perm = [0, 2, 3, 1]> (x) {MOVED}", {}),
    Graph("cut-in", X, f"c = Slice(x, from, to) {MOVED}", {"from": ONES, "to": 5 * ONES}),
    Graph(
        "padded-in", X, f"c = Pad(x, pads, third) {MOVED}", {"pads": PADS, "third": THIRD}, ["Pad"]
    ),
    Graph(
        "padded-out", X, f"{IN} y = Pad(r, pads, third)", {"pads": PADS, "third": THIRD}, ["Pad"]
    ),
    Graph("padded-out-by-0", X, f"{IN} y = Pad(r, pads)", {"pads": PADS}),
    Graph(
        "moved-between", X, f"{IN} g = Transpose(r) f = Tile(g, twice) {OUT}", {"twice": 2 * ONES}
    ),
]


@needs_vnni
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_the_graph_runs_as_in_onnxruntime(graph: Graph):
    found = verify(graph.model())

    assert found.first_difference is None
    assert found.holds
    assert found.elements > 0
    borders = ("QuantizeLinear", "DequantizeLinear")
    ops = [op for island in found.islands for op in island.op_types if op not in borders]
    assert IS_OLD or sorted(ops) == sorted(graph.islands)

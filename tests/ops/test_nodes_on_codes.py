"""Pairs, pools, tables and data movers as others write them, bit for bit."""

import itertools
from typing import Any

import numpy as np
import pytest

from onnxptq.runtime.verify import verify
from tests.ops.fused_nodes import MICROSOFT, Data, Node, codes, i64, s8, scale, u8
from tests.ort_versions import IS_OLD


def pair(op: str, name: str, a: Data | np.ndarray, b: Data | np.ndarray, *scales: float) -> Node:
    """A QLinearAdd or QLinearMul with zero points off the middle."""
    dtype = str(a.dtype)
    zero = [np.array(code, dtype) for code in (3, 101, 17)]
    xs = scales or (0.03, 0.07, 0.05)
    operands = [a, scale(xs[0]), zero[0], b, scale(xs[1]), zero[1], scale(xs[2]), zero[2]]
    return Node(name, op, operands, domain=MICROSOFT, outputs=(dtype,))


X = Data((2, 3, 5, 4))
S = Data((2, 3, 5, 4), "int8")

PAIRS = [
    made
    for op in ("QLinearAdd", "QLinearMul")
    for made in (
        pair(op, "same", X, X),
        pair(op, "s8", S, S),
        pair(op, "broadcast", X, Data((3, 1, 1))),
        pair(op, "both-broadcast", Data((1, 3, 1)), Data((2, 1, 4))),
        pair(op, "one-b", X, Data((1,))),
        pair(op, "one-a", Data((1,)), X),
        pair(op, "one-a-of-rank-4", Data((1, 1, 1, 1)), X),
        pair(op, "one-each", Data((1,)), Data((1, 1))),
        pair(op, "constant", X, codes((3, 1, 1), "uint8")),
        pair(op, "constant-of-one", X, u8(77)),
        pair(op, "constant-a", codes((2, 3, 5, 4), "uint8"), X),
        pair(op, "rows", Data((5, 1)), Data((1, 7))),
        pair(op, "fine", X, X, 0.01, 0.01, 0.37),
        pair(op, "coarse", X, X, 0.39, 0.01, 0.01),
    )
]

EXTREMES = [
    Node(name, op, operands, outputs=(kind,))
    for op in ("Min", "Max")
    for name, kind, operands in (
        ("of-one", "uint8", [X]),
        ("of-two", "uint8", [X, X]),
        ("of-two-s8", "int8", [S, S]),
        ("broadcast", "uint8", [X, Data((3, 1, 1))]),
        ("a-constant", "uint8", [X, u8(90)]),
        ("a-constant-first", "uint8", [u8(90), X]),
        ("constants", "uint8", [X, codes((3, 1, 1), "uint8")]),
        ("a-constant-of-higher-rank", "uint8", [Data((3, 4)), np.full((1, 1, 1), 9, np.uint8)]),
        ("constants-of-higher-rank", "uint8", [Data((3, 4)), codes((2, 1, 1), "uint8")]),
    )
] + [
    Node("both", "Clip", [X, u8(20), u8(200)]),
    Node("upper", "Clip", [X, None, u8(200)]),
    Node("lower", "Clip", [X, u8(20)]),
    Node("none", "Clip", [S], outputs=("int8",)),
    Node("s8", "Clip", [S, s8(-5), s8(7)], outputs=("int8",)),
    Node("crossed", "Clip", [X, u8(200), u8(20)]),
    Node("s8", "Relu", [S], outputs=("int8",)),
]


def pool(name: str, x: Data, **options: Any) -> tuple[Node, ...]:
    """A MaxPool on codes, and a QLinearAveragePool where it takes the options."""
    domain = MICROSOFT if options.get("channels_last") else ""
    most = {k: v for k, v in options.items() if k not in ("count_include_pad", "channels_last")}
    op = "NhwcMaxPool" if domain else "MaxPool"
    largest = Node(name, op, [x], most, domain, (x.dtype,))
    ends = [scale(0.03), np.array(9, x.dtype), scale(0.05), np.array(101, x.dtype)]
    mean = Node(name, "QLinearAveragePool", [x, *ends], options, MICROSOFT, (x.dtype,))
    if "dilations" in options or len(x.shape) == 5:
        return (largest,)
    return (mean,) if "count_include_pad" in options else (largest, mean)


P = Data((2, 3, 9, 8))

POOLS = [
    *pool("plain", P, kernel_shape=[3, 2]),
    *pool("strided", P, kernel_shape=[2, 3], strides=[3, 2]),
    *pool("padded", P, kernel_shape=[3, 3], pads=[1, 0, 2, 1]),
    *pool("s8", Data((2, 3, 9, 8), "int8"), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    *pool("counting-pads", P, kernel_shape=[3, 3], pads=[1, 0, 2, 1], count_include_pad=1),
    *pool("ceiling", P, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
    *pool(
        "ceiling-with-pads", P, kernel_shape=[3, 3], strides=[2, 3], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    *pool("same-upper", P, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    *pool("same-lower", P, kernel_shape=[2, 4], strides=[2, 3], auto_pad="SAME_LOWER"),
    *pool("valid", P, kernel_shape=[2, 4], strides=[2, 3], auto_pad="VALID"),
    *pool("dilated", P, kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 1, 1]),
    *pool("1-D", Data((2, 3, 11)), kernel_shape=[3], strides=[2], pads=[1, 0]),
    *pool("3-D", Data((1, 2, 5, 4, 6)), kernel_shape=[2, 3, 2], strides=[1, 2, 2], pads=[1] * 6),
    *pool(
        "channels-last", Data((2, 9, 8, 3)), kernel_shape=[3, 3], pads=[1, 0, 2, 1], channels_last=1
    ),
    *pool("whole", P, kernel_shape=[9, 8]),
]


def normalised(
    op: str, name: str, x: Data, ends: tuple[float, int, float, int], **options: Any
) -> Node:
    """A node with scale and zero point of input and output."""
    zeros = [np.array(ends[1], x.dtype), np.array(ends[3], x.dtype)]
    operands = [x, scale(ends[0]), zeros[0], scale(ends[2]), zeros[1]]
    return Node(name, op, operands, options, MICROSOFT, (x.dtype,))


UNARY = [
    normalised("QLinearGlobalAveragePool", "2-D", P, (0.04, 9, 0.03, 200)),
    normalised("QLinearGlobalAveragePool", "s8", Data((2, 3, 9, 8), "int8"), (0.04, -9, 0.02, 20)),
    normalised("QLinearGlobalAveragePool", "1-D", Data((2, 3, 11)), (0.04, 9, 0.04, 9)),
    normalised("QLinearGlobalAveragePool", "3-D", Data((1, 3, 2, 3, 4)), (0.5, 255, 0.01, 0)),
    normalised(
        "QLinearGlobalAveragePool",
        "last",
        Data((2, 4, 5, 3)),
        (0.04, 9, 0.03, 200),
        channels_last=1,
    ),
    normalised("QLinearSigmoid", "u8", X, (0.05, 128, 1 / 256, 0)),
    normalised("QLinearSigmoid", "s8", S, (0.05, 0, 1 / 256, -128)),
    normalised("QLinearLeakyRelu", "u8", X, (0.05, 100, 0.04, 30), alpha=0.1),
    normalised("QLinearLeakyRelu", "s8", S, (0.05, 5, 0.04, -30), alpha=0.3),
    normalised("QLinearSoftmax", "last", Data((3, 10)), (0.1, 20, 1 / 256, 0), axis=-1, opset=13),
    normalised(
        "QLinearSoftmax", "middle", Data((2, 10, 3)), (0.1, 20, 1 / 256, 0), axis=1, opset=13
    ),
    normalised("QLinearSoftmax", "old", Data((2, 5, 3)), (0.1, 20, 0.01, 3), axis=1, opset=11),
    normalised(
        "QLinearSoftmax", "s8", Data((3, 10), "int8"), (0.1, 20, 1 / 256, -128), axis=-1, opset=13
    ),
    Node(
        "3",
        "QLinearConcat",
        [scale(0.05), u8(7), X, scale(0.02), u8(9), X, scale(0.05), u8(7), X, scale(0.3), u8(255)],
        {"axis": -1},
        MICROSOFT,
    ),
    Node(
        "equal",
        "QLinearConcat",
        [scale(0.05), u8(7), X, scale(0.05), u8(7), X, scale(0.05), u8(7)],
        {"axis": 1},
        MICROSOFT,
    ),
    Node(
        "s8",
        "QLinearConcat",
        [scale(0.05), s8(7), S, scale(0.02), s8(-9), S, scale(0.05), s8(7)],
        {"axis": 0},
        MICROSOFT,
        ("int8",),
    ),
    Node(
        "constant",
        "QLinearConcat",
        [
            scale(0.05),
            u8(7),
            X,
            scale(0.02),
            u8(9),
            codes((2, 3, 5, 1), "uint8"),
            scale(0.05),
            u8(9),
        ],
        {"axis": 3},
        MICROSOFT,
    ),
    *(
        Node(f"{name}-{kind}", op, [Data((2, 3, 5, 4), kind), axes], options, outputs=(kind,))
        for op in ("ReduceMax", "ReduceMin")
        for kind in ("uint8", "int8")
        for name, axes, options in (
            ("one-axis", i64(1), {}),
            ("from-the-end", i64(-1), {"keepdims": 0}),
            ("axes-apart", i64(0, 2), {}),
            ("pixels", i64(2, 3), {"keepdims": 0}),
            ("all", None, {"keepdims": 0}),
        )
    ),
]

MOVES = [
    Node("reversed", "Transpose", [X]),
    Node("perm", "Transpose", [S], {"perm": [0, 2, 3, 1]}, outputs=("int8",)),
    Node("zeros-and-rest", "Reshape", [X, i64(0, -1, 2)]),
    Node("flat", "Flatten", [X], {"axis": -2}),
    Node("all-ones", "Squeeze", [Data((1, 3, 1, 2))]),
    Node("axes", "Squeeze", [Data((1, 3, 1, 2)), i64(-2)]),
    Node("axes", "Unsqueeze", [Data((3, 2)), i64(0, -1)]),
    Node("expand", "Expand", [Data((3, 1)), i64(2, 1, 4)]),
    Node("tile", "Tile", [Data((3, 2)), i64(2, 3)]),
    Node("backwards", "Slice", [X, i64(-1, 3), i64(-100, 0), i64(2, 3), i64(-2, -1)]),
    Node("open", "Slice", [X, i64(1), i64(2**62), i64(-1)]),
    Node("no-axes", "Slice", [Data((5, 4)), i64(1, 0), i64(4, -1)]),
    Node("matrix", "Gather", [X, np.array([[0, -1], [2, 2]], np.int64)], {"axis": 2}),
    Node("scalar", "Gather", [X, np.array(1, np.int64)], {"axis": -1}),
    Node("int32", "Gather", [X, np.array([1, 0], np.int32)], {"axis": 1}),
    Node("sizes", "Split", [X, i64(1, 3, 1)], {"axis": 2}, outputs=("uint8",) * 3),
    Node("uneven", "Split", [X], {"axis": -2, "num_outputs": 2}, outputs=("uint8",) * 2),
    Node("dcr", "DepthToSpace", [Data((1, 8, 2, 3))], {"blocksize": 2, "mode": "DCR"}),
    Node(
        "crd",
        "DepthToSpace",
        [Data((1, 8, 2, 3), "int8")],
        {"blocksize": 2, "mode": "CRD"},
        outputs=("int8",),
    ),
    Node("codes", "Concat", [X, Data((2, 2, 5, 4))], {"axis": -3}),
    Node("copy", "Identity", [X]),
    Node("code", "Pad", [X, i64(0, 0, 1, 2, 0, 1, 0, 1), u8(99)]),
    Node("default", "Pad", [S, i64(0, 0, 1, 2, 0, 1, 0, 1)], outputs=("int8",)),
    Node("axes", "Pad", [X, i64(1, 2, 0, 1), u8(7), i64(-1, 2)]),
    Node("negative", "Pad", [X, i64(0, 0, -1, 2, 0, -1, -1, 1), u8(7)]),
    Node("edge", "Pad", [X, i64(0, 0, 1, 2, 0, 1, 0, 3)], {"mode": "edge"}),
    Node("reflect", "Pad", [X, i64(0, 0, 1, 2, 0, 1, 0, 3)], {"mode": "reflect"}),
    Node("wrap", "Pad", [X, i64(0, 0, 1, 2, 0, 1, 0, 3)], {"mode": "wrap"}),
]

COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "half_pixel_symmetric",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")

RESIZES = [
    Node(
        f"{coordinates}-{rounding}-{name}",
        "Resize",
        [X, None, *target],
        {
            "coordinate_transformation_mode": coordinates,
            "nearest_mode": rounding,
            "mode": "nearest",
        },
    )
    for coordinates, rounding in itertools.product(COORDINATES, ROUNDINGS)
    for name, target in (
        ("up", [scale(1, 1, 2, 2)]),
        ("odd", [scale(1, 1, 1.7, 2.3)]),
        ("down", [scale(1, 1, 0.6, 0.5)]),
        ("sizes", [None, i64(2, 3, 7, 3)]),
    )
] + [
    Node("axes", "Resize", [X, None, None, i64(9, 2)], {"axes": [2, 3], "nearest_mode": "floor"}),
    Node(
        "not-larger",
        "Resize",
        [X, None, None, i64(9, 6)],
        {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
    ),
    Node(
        "not-smaller",
        "Resize",
        [X, None, None, i64(9, 6)],
        {"axes": [3, 2], "keep_aspect_ratio_policy": "not_smaller"},
    ),
    Node("s8", "Resize", [S, None, scale(1, 1, 3, 2)], outputs=("int8",)),
]


@pytest.mark.parametrize("node", [*PAIRS, *EXTREMES, *POOLS, *UNARY, *MOVES, *RESIZES], ids=str)
def test_the_node_equals_onnxruntime(node: Node):
    found = verify(node.model())

    assert found.first_difference is None
    assert found.holds
    assert IS_OLD or "; ".join(island.why for island in found.islands) == node.island

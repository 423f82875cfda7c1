"""Integer nodes as others write them: the options that the rewriter never uses, bit for bit."""

from typing import Any

import numpy as np
import pytest

from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.ops.fused_nodes import MICROSOFT, Data, Node, codes, int32s, s8, scale, u8

MANY = scale(*(0.01 * (1 + i) for i in range(6)))


def conv(name: str, x: Data, weight: np.ndarray, **options: Any) -> Node:
    """A QLinearConv with scales whose products lie on ties."""
    zero = options.pop("zero", np.zeros((), weight.dtype))
    scales = options.pop("scales", scale(0.02))
    bias = options.pop("bias", None)
    domain = str(options.pop("domain", ""))
    codes_zero = np.array(options.pop("x_zero", 7), x.dtype)
    operands = [x, scale(0.04), codes_zero, weight, scales, zero, scale(0.5), codes_zero, bias]
    return Node(name, "QLinearConv", operands, options, domain, (x.dtype,))


X4 = Data((2, 4, 7, 6))
S4 = Data((2, 4, 7, 6), "int8")

CONVOLUTIONS = [
    conv("per-tensor", X4, codes((6, 4, 3, 3)), bias=int32s((6,))),
    conv("per-channel", X4, codes((6, 4, 3, 3)), scales=MANY, bias=int32s((6,))),
    conv("u8-weights", X4, codes((6, 4, 3, 3), "uint8"), zero=u8(128)),
    conv(
        "zero-a-channel", X4, codes((6, 4, 3, 3), "uint8"), zero=u8(*range(0, 252, 42)), scales=MANY
    ),
    conv("s8-zero-a-channel", X4, codes((6, 4, 3, 3)), zero=s8(-128, 0, 3, 5, 127, 1), scales=MANY),
    conv("s8", S4, codes((6, 4, 3, 3)), bias=int32s((6,)), pads=[1, 1, 1, 1]),
    conv("s8-lowest", S4, codes((6, 4, 3, 3)), x_zero=-128, pads=[1, 1, 1, 1]),
    conv("highest", X4, codes((6, 4, 3, 3)), x_zero=255, pads=[1, 1, 1, 1]),
    conv("lopsided-pads", X4, codes((6, 4, 3, 3)), pads=[2, 0, 1, 3], strides=[2, 1]),
    conv("same-upper", X4, codes((6, 4, 3, 4)), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("same-lower", X4, codes((6, 4, 4, 3)), auto_pad="SAME_LOWER", strides=[2, 2]),
    conv("valid", X4, codes((6, 4, 2, 3)), auto_pad="VALID", strides=[3, 1]),
    conv("dilated", X4, codes((6, 4, 3, 2)), dilations=[2, 3], pads=[1, 1, 1, 1]),
    conv("grouped", X4, codes((6, 2, 3, 3)), group=2, scales=MANY, bias=int32s((6,))),
    conv("depthwise", X4, codes((4, 1, 3, 3)), group=4, pads=[0, 1, 2, 1], strides=[2, 1]),
    conv("two-filters-a-channel", X4, codes((8, 1, 3, 3)), group=4, pads=[1, 1, 1, 1]),
    conv("depthwise-zeros", X4, codes((4, 1, 3, 3), "uint8"), group=4, zero=u8(0, 9, 128, 255)),
    conv("depthwise-dilated", X4, codes((4, 1, 2, 2)), group=4, dilations=[3, 2]),
    conv("1x1", X4, codes((5, 4, 1, 1)), strides=[2, 2]),
    conv("1-D", Data((2, 4, 17)), codes((6, 4, 5)), pads=[1, 3], strides=[2], dilations=[2]),
    conv("1-D-depthwise", Data((2, 4, 17)), codes((4, 1, 5)), pads=[4, 0], group=4),
    conv("3-D", Data((1, 4, 5, 6, 4)), codes((6, 4, 2, 3, 2)), pads=[1, 0, 1, 0, 2, 1]),
    conv("3-D-grouped", Data((1, 4, 5, 6, 4)), codes((6, 2, 2, 3, 2)), group=2, strides=[2, 1, 2]),
    conv(
        "channels-last",
        Data((2, 7, 6, 4)),
        codes((6, 4, 3, 3)),
        domain=MICROSOFT,
        channels_last=1,
        pads=[1, 0, 2, 1],
    ),
    conv(
        "large-bias",
        Data((1, 4, 3, 3)),
        codes((6, 4, 3, 3)),
        bias=np.full(6, 2**31 - 10**6, np.int32),
    ),
]

A = Data((5, 12))


def product(name: str, a: Data, b: Data | np.ndarray, **options: Any) -> Node:
    """A QLinearMatMul."""
    b_scale, y = options.get("scales", scale(0.03)), np.array(3, a.dtype)
    kind = b.dtype
    zero = options.get("zero", np.zeros((), kind))
    operands = [a, scale(0.04), np.array(9, a.dtype), b, b_scale, zero, scale(0.6), y]
    island = str(options.get("island", ""))
    return Node(name, "QLinearMatMul", operands, outputs=(a.dtype,), island=island)


def gemm(name: str, b: np.ndarray, bias: np.ndarray | None, **options: Any) -> Node:
    """A QGemm."""
    real = bool(options.pop("real", False))
    scales = options.pop("scales", scale(0.03))
    zero = options.pop("zero", np.zeros(scales.shape, b.dtype))
    ends = [] if real else [scale(0.6), u8(100)]
    operands = [A, scale(0.04), u8(9), b, scales, zero, bias, *ends]
    kinds = ("float32",) if real else ("uint8",)
    return Node(name, "QGemm", operands, options, MICROSOFT, kinds)


PRODUCTS = [
    product("2-D", A, codes((12, 6))),
    product("columns", A, codes((12, 6)), scales=MANY, zero=s8(0, 1, -128, 127, 5, -6)),
    product("u8-weights", A, codes((12, 6), "uint8"), zero=u8(131)),
    product("s8", Data((5, 12), "int8"), codes((12, 6))),
    product("3-D", Data((2, 3, 12)), codes((12, 6))),
    product("stack", Data((2, 3, 12)), codes((2, 12, 6))),
    product("spread", Data((3, 12)), codes((2, 12, 6))),
    product("computed", A, Data((12, 6)), zero=u8(77)),
    product("computed-s8", A, Data((12, 6), "int8"), zero=s8(-3)),
    product("computed-stacks", Data((3, 1, 4, 12)), Data((2, 12, 6)), zero=u8(255)),
    product("vector", Data((12,)), codes((12, 6))),
    gemm("rows", codes((6, 12)), int32s((6,)), transB=1, scales=MANY),
    gemm("alpha", codes((12, 6)), int32s((6,)), alpha=0.37),
    gemm("no-bias", codes((12, 6)), None),
    gemm("bias-of-one", codes((12, 6)), int32s((1,))),
    gemm("bias-scalar", codes((12, 6)), int32s(())),
    gemm("bias-row", codes((12, 6)), int32s((1, 6))),
    gemm("real", codes((12, 6)), int32s((6,)), real=True, scales=MANY),
    gemm("real-alpha", codes((6, 12)), None, real=True, transB=1, alpha=1.7),
    gemm(
        "zeros", codes((12, 6), "uint8"), int32s((6,)), scales=MANY, zero=u8(1, 2, 3, 128, 254, 255)
    ),
    Node(
        "bias",
        "MatMulIntegerToFloat",
        [
            A,
            codes((12, 6)),
            scale(0.03),
            MANY,
            u8(4),
            s8(1, 2, 3, 4, 5, 6),
            np.linspace(-1, 1, 6, dtype=np.float32),
        ],
        domain=MICROSOFT,
        outputs=("float32",),
    ),
    Node(
        "computed",
        "MatMulIntegerToFloat",
        [A, Data((12, 6)), scale(0.03), scale(0.02), u8(4), u8(128)],
        domain=MICROSOFT,
        outputs=("float32",),
    ),
    Node(
        "plain",
        "MatMulIntegerToFloat",
        [A, codes((12, 6)), scale(0.03), scale(0.02)],
        domain=MICROSOFT,
        outputs=("float32",),
    ),
    Node(
        "constant",
        "MatMulInteger",
        [A, codes((12, 6)), u8(4), s8(1, 2, 3, 4, 5, 6)],
        outputs=("int32",),
    ),
    Node("computed", "MatMulInteger", [A, Data((12, 6)), u8(4), u8(200)], outputs=("int32",)),
    Node("no-zeros", "MatMulInteger", [A, codes((12, 6))], outputs=("int32",)),
    Node(
        "zeros",
        "ConvInteger",
        [X4, codes((6, 4, 3, 3), "uint8"), u8(3), u8(128)],
        {"pads": [1, 1, 0, 0]},
        outputs=("int32",),
    ),
    Node(
        "plain",
        "ConvInteger",
        [X4, codes((6, 4, 3, 3), "uint8")],
        {"strides": [2, 2]},
        outputs=("int32",),
    ),
]


@needs_vnni
@pytest.mark.parametrize("node", CONVOLUTIONS + PRODUCTS, ids=str)
def test_products_equal_onnxruntime(node: Node):
    found = verify(node.model())

    assert found.first_difference is None
    assert found.holds
    assert "; ".join(island.why for island in found.islands) == node.island

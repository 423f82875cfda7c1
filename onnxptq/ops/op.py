"""Op: everything known about one ONNX operator, one record each."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxptq.ops.fused import Lower


class Fusion(enum.Enum):
    """What onnxruntime's CPU provider makes of a float node between DQ and Q.

    Source: selectors of onnxruntime's QDQ transformer, each row checked by
    tests/ops/test_every_op.py.
    """

    QLINEAR = "an integer kernel with scales of its own (QLinearConv, QLinearAdd, ...)"
    CODES = "the same operator on 8-bit codes; input and output must share scale and zero point"
    ON_CODES = "not fused, but the operator has an 8-bit kernel: written between Q and DQ"
    FLOAT = "runs in float"


@dataclass(frozen=True, slots=True)
class QuantRule:
    """Which inputs of a node are what.

    Attributes:
        activations: Positions of the inputs that are quantized as activations; None means all.
        weight: Position of the weight, quantized per channel when it is a constant.
        bias: Position of the bias, stored as int32.
        weight_axis: Output-channel axis of the weight, from the node.
        tied: Output shares the parameters of input 0.
        matmul: Its inputs are what low-bit activations are for (Conv, Gemm, MatMul).
    """

    activations: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    weight_axis: Callable[[ir.Node], int | None] | None = None
    tied: bool = False
    matmul: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One example of the operator for the shared tests: input shape, attributes, constant inputs.

    Attributes:
        shape: Shape of each activation input.
        attributes: ONNX attributes.
        constants: Input position to shape (random values) or value of the other inputs.
        outputs: How many outputs the node has.
    """

    shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    constants: dict[int, Any] = field(default_factory=dict[int, Any])
    outputs: int = 1


def _always(_: ir.Node) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Op:
    """Everything known about one ONNX operator.

    Attributes:
        type: ONNX operator name in the default domain.
        since: Lowest opset handled; older files are raised by onnx's converter.
        rule: Which inputs are activation, weight, bias, and what is tied to what.
        fusion: What onnxruntime makes of it.
        cases: Examples that the shared tests run.
        refuse: Reason why this particular node stays in float, or None if it can be integer.
        lowerings: Nodes that onnxruntime fuses the operator into, by type, and how each becomes
            integer instructions.
        gradient: "file:function" in methods/reconstruction, what it computes as a differentiable
            torch function; None where there is none.
    """

    type: str
    since: int
    rule: QuantRule
    fusion: Fusion
    cases: tuple[Case, ...] = ()
    refuse: Callable[[ir.Node], str | None] = _always
    lowerings: Mapping[str, "Lower"] = field(default_factory=dict[str, "Lower"])
    gradient: str | None = None

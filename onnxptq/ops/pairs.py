"""Two tensors of codes into one: QLinearAdd, QLinearMul, and Min and Max on codes."""

import numpy as np

from onnxptq import requant_pairs
from onnxptq.formulas import Affine, PairFormula, added, swaps
from onnxptq.ops.fused import Fused, NotInteger
from onnxptq.program import Value


def qlinear_add(node: Fused) -> None:
    """QLinearAdd: a, b and y, each with scale and zero point."""
    formula = _formula(node, swapped=False)
    swapped = _formula(node, swapped=True)
    if _differ(node, formula, swapped) and _swaps(node):
        formula = swapped
    _emit(node, "add", formula)


def qlinear_mul(node: Fused) -> None:
    """QLinearMul: a, b and y, each with scale and zero point."""
    _emit(node, "mul", _formula(node, swapped=False))


def _formula(node: Fused, *, swapped: bool) -> PairFormula:
    y = node.output_format(6, 7)
    return PairFormula(
        Affine(node.scale(1), node.number(2)),
        Affine(node.scale(4), node.number(5)),
        Affine(y.scale, y.zero),
        np.dtype(y.dtype),
        swapped,
    )


def _range(value: Value) -> tuple[int, int]:
    return value.lo, value.hi


def _differ(node: Fused, formula: PairFormula, other: PairFormula) -> bool:
    """Whether the order of the operands matters for any codes that can occur."""
    a, b = node.codes(0), node.codes(3)
    first = np.arange(a.lo, a.hi + 1)[:, None]
    second = np.arange(b.lo, b.hi + 1)[None, :]
    return bool((added(first, second, formula) != added(first, second, other)).any())


def _swaps(node: Fused) -> bool:
    """Whether onnxruntime exchanges the operands, which depends on their shapes."""
    shapes = [node.shape(0), node.shape(3)]
    if shapes[0] is None or shapes[1] is None:
        raise NotInteger("its rounding depends on the ranks of its inputs, which are not known")
    for a_side, b_side in zip(reversed(shapes[0]), reversed(shapes[1]), strict=False):
        if a_side is None or b_side is None:
            raise NotInteger("its rounding depends on sizes that are free")
        if a_side != 1 or b_side != 1:
            break
    known = [tuple(side or 1 for side in shape) for shape in shapes if shape is not None]
    return swaps(known[0], known[1])


def _emit(node: Fused, kind: str, formula: PairFormula) -> None:
    a, b = node.codes(0), node.codes(3)
    ends = np.iinfo(formula.dtype)
    target, lo, hi = node.builder.window(node.node.outputs[0], int(ends.min), int(ends.max))
    pair = requant_pairs.find_pair(kind, formula, lo, hi, _range(a), _range(b))
    made = (str(formula.dtype), lo, hi)
    node.emit(kind, (node.id(0), node.id(3)), made, requantize=pair, output=target)


def minimum(node: Fused) -> None:
    """Min on codes; against one constant it is a Clip."""
    _extreme(node, "minimum")


def maximum(node: Fused) -> None:
    """Max on codes; against one constant it is a Clip."""
    _extreme(node, "maximum")


def _extreme(node: Fused, op: str) -> None:
    x = node.codes(0)
    if len(node.node.inputs) == 1:
        node.emit("identity", (node.id(0),))
        return
    if len(node.node.inputs) != 2:
        raise NotInteger("it has more than two inputs")
    other = node.codes(1)
    bound = node.constant(1)
    ends = np.iinfo(x.dtype)
    shape = node.shape(0)
    if bound is not None and bound.size == 1 and shape is not None and bound.ndim <= len(shape):
        limit = int(bound.reshape(-1)[0])
        lo, hi = (int(ends.min), limit) if op == "minimum" else (limit, int(ends.max))
        clip(node, lo, hi)
        return
    pick = min if op == "minimum" else max
    made = (x.dtype, pick(x.lo, other.lo), pick(x.hi, other.hi))
    node.emit(op, (node.id(0), node.id(1)), made)


def clip(node: Fused, lo: int, hi: int) -> None:
    """A Clip to [lo, hi] of the node's first input."""
    x = node.codes(0)
    made = (x.dtype, min(max(x.lo, lo), hi), min(max(x.hi, lo), hi))
    node.emit("clip", (node.id(0),), made, parts={"lo": lo, "hi": hi})


def clip_codes(node: Fused) -> None:
    """Clip on codes with constant bounds."""
    ends = np.iinfo(node.codes(0).dtype)
    clip(node, node.number(1, int(ends.min)), node.number(2, int(ends.max)))


def relu_codes(node: Fused) -> None:
    """Relu on int8 codes, whose zero point is 0."""
    ends = np.iinfo(node.codes(0).dtype)
    clip(node, max(0, int(ends.min)), int(ends.max))

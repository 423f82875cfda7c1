"""HardSigmoid on codes: its parameters follow from those of its input."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxptq.ops.hard_sigmoid import slope_of
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe
from onnxptq.rewrite.place import regions_of

GATE = "HardSigmoid"


@dataclass(frozen=True, slots=True)
class GateCodes:
    """How the codes of a gate's input are to be read as its output.

    Attributes:
        params: Scale alpha * s, the zero point where the gate opens, and the window [0, 1].
        code_hi: The code at which the gate is fully open.
    """

    params: QParams
    code_hi: int


def gate_codes(node: ir.Node, x: QParams) -> GateCodes:
    """Parameters of a HardSigmoid's output, given those of its input.

    The zero point is rounded, which moves the gate by at most half a step of its input.
    """
    alpha, beta = slope_of(node)
    scale = np.float32(np.float64(x.scale) * alpha)
    opens = int(np.rint(float(x.zero_point) - beta / float(scale)))
    full = int(np.rint(float(x.zero_point) + (1 - beta) / float(scale)))
    zero_point = np.asarray(max(opens, x.spec.container_min), np.int32)
    code_lo = np.maximum(x.code_lo, zero_point)
    params = QParams(x.spec, np.asarray(scale), zero_point, code_lo.astype(np.int32))
    return GateCodes(params, max(min(full, int(x.code_hi)), int(code_lo)))


def fit_gates(model: ir.Model, recipe: Recipe) -> Recipe:
    """Widen the input ranges of HardSigmoid nodes to where the gate opens.

    Its output needs a code for 0, so the input needs one for -beta / alpha (HardSwish: -3), even if
    the data never went there.
    """
    regions = regions_of(model, recipe)
    for node in model.graph:
        source = node.inputs[0] if node.op_type == GATE and regions.holds(node) else None
        if source is None:
            continue
        entry = recipe.tensors[str(source.name)]
        alpha, beta = slope_of(node)
        opens = -beta / alpha
        if float(entry.params.lo) > opens + float(entry.params.scale) / 2:
            root = entry.tied_to or entry.value
            hi = float(entry.params.hi)
            recipe = recipe.with_range(root, opens, hi, recipe.tensors[root].set_by)
    return recipe

"""Where a layer's output lands: what follows at once clamps it, and hides errors beyond."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.quant import QParams
from onnxptq.recipe import Recipe
from onnxptq.rewrite.clamps import clamp_of
from onnxptq.rewrite.place import Layout

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Landing:
    """The range that a layer's output keeps to.

    Attributes:
        bounds: Of the Relu or Clip behind the layer; infinite without one.
        codes: Real range of the codes that its output becomes; infinite where it stays real.
    """

    bounds: tuple[float, float] = (-math.inf, math.inf)
    codes: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of(cls, node: ir.Node, recipe: Recipe, layout: Layout) -> "Landing":
        """That of a layer on codes."""
        value = node.outputs[0]
        bounds = -math.inf, math.inf
        for name, clamp in layout.folded.items():
            if clamp.inputs[0] is value:
                found = clamp_of(clamp)
                bounds, value = (found.lo, found.hi), layout.values[name]
                break
        tensor = recipe.tensors.get(str(value.name))
        return cls(bounds) if tensor is None else cls(bounds, _range(tensor.params))

    def wanted(self, real: F32) -> F32:
        """Float outputs as whoever reads them finds them."""
        return np.clip(real, *self.bounds)

    def found(self, real: F32) -> F32:
        """Outputs of the quantized layer as whoever reads them finds them, rounding aside."""
        return np.clip(self.wanted(real), *self.codes)


def _range(params: QParams) -> tuple[float, float]:
    ends = params.dequantize(np.stack([params.code_lo, params.code_hi]))
    return float(ends.min()), float(ends.max())

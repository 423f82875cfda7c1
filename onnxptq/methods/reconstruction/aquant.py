"""aquant: borders between codes learned for each channel, in the place of one half."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.plan import Borders, Plan, Rates


@dataclass(frozen=True)
class AQuant(ByGradients):
    """`qdrop` with borders at which an activation's codes change that are learned.

    Between two codes an activation is rounded up above a border, of which one half is the usual
    one. Learned for each channel of a layer's output, a border that is the same everywhere is the
    layer's bias, and one that is linear in the code is its bias and the scale of its weights;
    behind a sum or a pool a linear border is a QuantizeLinear whose scale is not that of its
    DequantizeLinear. The file is plain, and nothing is slower. All else becomes a table of
    thresholds behind a Conv or Gemm, for activations of at most 4 bits: the executor has a form for
    them, onnxruntime runs them in integers but slowly.

    Attributes:
        border: "constant", "linear" or "quadratic" in the code.
        grain: What has borders of its own: each "channel", "group" of 8 channels, or the "tensor".
        drop: Share of elements that stay in float while learning.
        weight: Of the term of `pd-quant` for the network's outputs; 0 for none.
        temperature: Of the softmax in it.

    Source:
        Li et al. 2022, AQuant (arXiv:2208.11945); the forms are those of methods.md 9.
    """

    name: ClassVar[str] = "aquant"

    border: Literal["constant", "linear", "quadratic"] = "linear"
    grain: Literal["channel", "group", "tensor"] = "channel"
    drop: float = 0.5
    weight: float = 0.0
    temperature: float = 4.0

    def plans(self) -> tuple[Plan, ...]:
        """Codes, steps and borders of all blocks."""
        plan = replace(
            self.plan(),
            steps=True,
            drop=self.drop,
            mix=self.drop,
            prediction=self.weight,
            temperature=self.temperature,
            rates=Rates(scales=3e-4),
        )
        if self.border == "quadratic" or self.grain != "channel":
            return (replace(plan, borders=Borders(self.border, self.grain)),)
        linear = self.border == "linear"
        scales = "bordered" if linear else "none"
        return (replace(plan, biases="bordered", scales=scales, roundings=linear),)

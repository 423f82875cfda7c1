"""adaround: each layer's weights rounded up or down by gradients."""

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.plan import Plan


@dataclass(frozen=True)
class AdaRound(ByGradients):
    """Learn for each weight whether it is rounded up or down, layer by layer.

    A layer is shown its input as the quantized layers before it give it and the float network's
    output, behind the Relu or Clip that follows; its activations are quantized meanwhile. The paper
    takes 10,000 iterations.

    Source:
        Nagel et al. 2020 (arXiv:2004.10568); tuned with quantized activations as in MQBench
        (methods.md 8).
    """

    name: ClassVar[str] = "adaround"

    def plans(self) -> tuple[Plan, ...]:
        """Codes, layer by layer."""
        return (replace(self.plan(), unit="layer"),)

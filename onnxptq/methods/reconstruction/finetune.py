"""finetune: scales, biases and steps of the whole network learned from its outputs."""

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.plan import Plan, Rates


@dataclass(frozen=True)
class FineTune(ByGradients):
    """Learn how the network's outputs come nearest to float, with all codes as they are.

    What is learned is little, and so learns little of the samples by heart: a scale for each
    channel of each weight, biases, and a step for each activation. The difference of the outputs
    is that of `pd-quant`. Only networks with one input and one output.

    Attributes:
        iterations: Of the network.
        temperature: Of the softmax.
        rounding: Learn codes of weights too.

    Source:
        The last step of methods.md 16.2; AE-QDrop (2023) tunes the whole network likewise.
    """

    name: ClassVar[str] = "finetune"
    share: ClassVar[float] = 0.5

    iterations: int = 1000
    temperature: float = 4.0
    rounding: bool = False

    def plans(self) -> tuple[Plan, ...]:
        """The network as one."""
        plan = replace(
            self.plan(),
            unit="network",
            rounding=self.rounding,
            from_codes=True,
            steps=True,
            scales="all",
            biases="all",
            temperature=self.temperature,
            rates=Rates(scales=1e-3, biases=3e-3),
        )
        return (plan,)

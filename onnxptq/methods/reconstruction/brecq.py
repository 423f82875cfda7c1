"""brecq: the weights of each block rounded together by gradients, then activation steps."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.plan import Plan, Rates


@dataclass(frozen=True)
class Brecq(ByGradients):
    """Learn the rounding of each block's weights together, then the steps of its activations.

    The paper takes 20,000 iterations for weights; steps take a quarter.

    Attributes:
        loss: "mse": squared error of the block's output, as the authors' script has it; "fisher":
            each number of it weighted by how much the network's outputs depend on it.

    Source:
        Li et al. 2021 (arXiv:2102.05426); tuned with quantized activations as in MQBench
        (methods.md 7 and 8).
    """

    name: ClassVar[str] = "brecq"

    loss: Literal["mse", "fisher"] = "mse"

    def plans(self) -> tuple[Plan, ...]:
        """Codes of all blocks, then steps of all blocks."""
        rounding = replace(self.plan(), fisher=self.loss == "fisher")
        steps = replace(
            rounding,
            rounding=False,
            from_codes=True,
            steps=True,
            iterations=max(1, self.iterations // 4),
            rates=Rates(steps=4e-4),  # the authors' rate where steps alone are learned
        )
        return rounding, steps

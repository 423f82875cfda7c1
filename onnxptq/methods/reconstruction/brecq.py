"""brecq: the weights of each block rounded together by gradients, then activation steps."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.door import reconstructed
from onnxptq.methods.reconstruction.plan import Plan, Rates, require
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class Brecq:
    """Learn the rounding of each block's weights together, then the steps of its activations.

    Attributes:
        iterations: Of each block; the paper takes 20,000 for weights. Steps take a quarter.
        batch_size: Samples in an iteration.
        loss: "mse": squared error of the block's output, as the authors' script has it; "fisher":
            each number of it weighted by how much the network's outputs depend on it.
        from_codes: Begin with the codes that were chosen before, by `gptq` for one.
        pull: Weight of the term that closes codes; networks with depthwise layers take 0.1.

    Source:
        Li et al. 2021 (arXiv:2102.05426); tuned with quantized activations as in MQBench
        (methods.md 7 and 8).
    """

    name: ClassVar[str] = "brecq"
    runs_model: ClassVar[bool] = True

    iterations: int = 2000
    batch_size: int = 32
    loss: Literal["mse", "fisher"] = "mse"
    from_codes: bool = False
    pull: float = 0.01

    def __post_init__(self) -> None:
        require(self, self.iterations, self.batch_size, pull=self.pull)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes and steps of all blocks.

        Raises:
            CalibrationError: There are no calibration data.
            SpecError: torch is not installed.
        """
        rounding = Plan(
            from_codes=self.from_codes,
            fisher=self.loss == "fisher",
            iterations=self.iterations,
            batch_size=self.batch_size,
            pull=self.pull,
        )
        recipe = reconstructed(recipe, ctx, rounding, to_text(self))
        steps = replace(
            rounding,
            rounding=False,
            from_codes=True,
            steps=True,
            iterations=max(1, self.iterations // 4),
            rates=Rates(steps=4e-4),  # the authors' rate where steps alone are learned
        )
        return reconstructed(recipe, ctx, steps, to_text(self))

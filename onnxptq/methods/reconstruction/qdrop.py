"""qdrop: blocks reconstructed while some of their activations stay unquantized, at random."""

from dataclasses import dataclass
from typing import ClassVar

from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.door import reconstructed
from onnxptq.methods.reconstruction.plan import Plan, require
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class QDrop:
    """Learn each block's codes and activation steps with half of the activations in float.

    Each element of each activation is quantized with probability one half while learning, and each
    element of a block's input comes from the quantized or the float network: the codes found are
    flat in the activations' noise. In the end everything is quantized.

    Attributes:
        iterations: Of each block; the paper takes 20,000.
        batch_size: Samples in an iteration.
        drop: Share of elements that stay in float.
        scales: Learn scales of weights too, as Genie-M does.
        from_codes: Begin with the codes that were chosen before, by `gptq` for one.
        pull: Weight of the term that closes codes; networks with depthwise layers take 0.1.

    Source:
        Wei et al. 2022, QDrop (arXiv:2203.05740); Jeon et al. 2023, Genie (CVPR) for scales.
    """

    name: ClassVar[str] = "qdrop"
    runs_model: ClassVar[bool] = True

    iterations: int = 2000
    batch_size: int = 32
    drop: float = 0.5
    scales: bool = False
    from_codes: bool = False
    pull: float = 0.01

    def __post_init__(self) -> None:
        require(self, self.iterations, self.batch_size, drop=self.drop, pull=self.pull)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes and steps of all blocks.

        Raises:
            CalibrationError: There are no calibration data.
            SpecError: torch is not installed.
        """
        plan = Plan(
            from_codes=self.from_codes,
            steps=True,
            scales="all" if self.scales else "none",
            drop=self.drop,
            mix=self.drop,
            iterations=self.iterations,
            batch_size=self.batch_size,
            pull=self.pull,
        )
        return reconstructed(recipe, ctx, plan, to_text(self))

"""pd_quant: blocks reconstructed so that the network's prediction stays what it was."""

from dataclasses import dataclass
from typing import ClassVar

from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.door import reconstructed
from onnxptq.methods.reconstruction.plan import Correction, Plan, require
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class PdQuant:
    """`qdrop` with a term for how far the network's outputs are from float behind each block.

    For rows of logits that is the KL divergence of the softmax at a temperature, for other heads
    the relative squared error. Inputs of blocks are first moved towards the mean and spread that
    training saw: those of BatchNorms that were folded, else those of the calibration data.

    Attributes:
        iterations: Of each block; the paper takes 20,000.
        batch_size: Samples in an iteration.
        weight: Of the term, 1 / lambda_r.
        temperature: Of the softmax; networks with depthwise layers take 1.
        correction: Steps by which inputs are moved; 0 for none.
        closeness: lambda_c: the smaller, the less they move; ResNets 0.02, MobileNetV2 0.005.
        drop: Share of elements that stay in float while learning.
        from_codes: Begin with the codes that were chosen before, by `gptq` for one.
        pull: Weight of the term that closes codes; networks with depthwise layers take 0.1.

    Source:
        Liu et al. 2022, PD-Quant (arXiv:2212.07048), and the authors' code (methods.md 10).
    """

    name: ClassVar[str] = "pd-quant"
    runs_model: ClassVar[bool] = True

    iterations: int = 2000
    batch_size: int = 32
    weight: float = 10.0
    temperature: float = 4.0
    correction: int = 500
    closeness: float = 0.02
    drop: float = 0.5
    from_codes: bool = False
    pull: float = 0.01

    def __post_init__(self) -> None:
        amounts = {"weight": self.weight, "drop": self.drop, "pull": self.pull}
        require(self, self.iterations, self.batch_size, **amounts)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes and steps of all blocks.

        Raises:
            CalibrationError: There are no calibration data.
            SpecError: torch is not installed.
        """
        plan = Plan(
            from_codes=self.from_codes,
            steps=True,
            prediction=self.weight,
            temperature=self.temperature,
            correction=Correction(self.correction, self.closeness),
            drop=self.drop,
            mix=self.drop,
            iterations=self.iterations,
            batch_size=self.batch_size,
            pull=self.pull,
        )
        return reconstructed(recipe, ctx, plan, to_text(self))

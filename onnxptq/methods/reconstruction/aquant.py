"""aquant: borders between codes learned for each channel, in the place of one half."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.door import reconstructed
from onnxptq.methods.reconstruction.plan import Plan, Rates, require
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class AQuant:
    """`qdrop` with borders at which an activation's codes change that are learned.

    Between two codes an activation is rounded up above a border, of which one half is the usual
    one. Learned for each channel of a layer's output, a border that is the same everywhere is the
    layer's bias, and one that is linear in the code is its bias and the scale of its weights: the
    file is plain, and nothing is slower.

    Attributes:
        border: "constant" or "linear" in the code.
        iterations: Of each block.
        batch_size: Samples in an iteration.
        drop: Share of elements that stay in float while learning.
        from_codes: Begin with the codes that were chosen before, by `gptq` for one.
        pull: Weight of the term that closes codes; networks with depthwise layers take 0.1.

    Source:
        Li et al. 2022, AQuant (arXiv:2208.11945); the forms are those of methods.md 9.
    """

    name: ClassVar[str] = "aquant"
    runs_model: ClassVar[bool] = True

    border: Literal["constant", "linear"] = "linear"
    iterations: int = 2000
    batch_size: int = 32
    drop: float = 0.5
    from_codes: bool = False
    pull: float = 0.01

    def __post_init__(self) -> None:
        require(self, self.iterations, self.batch_size, drop=self.drop, pull=self.pull)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes, steps and borders of all blocks.

        Raises:
            CalibrationError: There are no calibration data.
            SpecError: torch is not installed.
        """
        plan = Plan(
            from_codes=self.from_codes,
            steps=True,
            biases="bordered",
            scales="bordered" if self.border == "linear" else "none",
            drop=self.drop,
            mix=self.drop,
            iterations=self.iterations,
            batch_size=self.batch_size,
            pull=self.pull,
            rates=Rates(scales=1e-3, biases=1e-3),
        )
        return reconstructed(recipe, ctx, plan, to_text(self))

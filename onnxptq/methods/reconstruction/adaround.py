"""adaround: each layer's weights rounded up or down by gradients."""

from dataclasses import dataclass
from typing import ClassVar

from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.door import reconstructed
from onnxptq.methods.reconstruction.plan import Plan, require
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text


@dataclass(frozen=True)
class AdaRound:
    """Learn for each weight whether it is rounded up or down, layer by layer.

    A layer is shown its input as the quantized layers before it give it and the float network's
    output, behind the Relu or Clip that follows; its activations are quantized meanwhile.

    Attributes:
        iterations: Of each layer; the paper takes 10,000.
        batch_size: Samples in an iteration.
        from_codes: Begin with the codes that were chosen before, by `gptq` for one.
        pull: Weight of the term that closes codes.

    Source:
        Nagel et al. 2020 (arXiv:2004.10568); tuned with quantized activations as in MQBench
        (methods.md 8).
    """

    name: ClassVar[str] = "adaround"
    runs_model: ClassVar[bool] = True

    iterations: int = 2000
    batch_size: int = 32
    from_codes: bool = False
    pull: float = 0.01

    def __post_init__(self) -> None:
        require(self, self.iterations, self.batch_size, pull=self.pull)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes of all layers.

        Raises:
            CalibrationError: There are no calibration data.
            SpecError: torch is not installed.
        """
        plan = Plan(
            unit="layer",
            from_codes=self.from_codes,
            iterations=self.iterations,
            batch_size=self.batch_size,
            pull=self.pull,
        )
        return reconstructed(recipe, ctx, plan, to_text(self))

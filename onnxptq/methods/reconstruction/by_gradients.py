"""ByGradients: what all methods share that learn by gradients: their options, and how they run."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from onnxptq.errors import SpecError
from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.door import reconstructed
from onnxptq.methods.reconstruction.plan import Plan
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text

LIMITS = {
    "iterations": (1, 10**6),
    "batch_size": (1, 10**6),
    "judged": (1, 10**6),
    "drop": (0, 1),
    "temperature": (0.01, 1000),
    "rate": (1e-6, 1000),
}
"""Least and most of an option; of any other number 0 and 1000."""


@dataclass(frozen=True)
class ByGradients:
    """A method that learns; each names its plans.

    Attributes:
        iterations: Of each layer, block or network that is learned at a time.
        batch_size: Samples in an iteration.
        from_codes: Begin with the codes that were chosen before, by `gptq` for one.
        pull: Weight of the term that closes codes; networks with depthwise layers take 0.1.
        rate: Factor on all learning rates; 0.05 is about what the papers have.
    """

    name: ClassVar[str]
    runs_model: ClassVar[bool] = True
    judged_on_held_out: ClassVar[bool] = True
    share: ClassVar[float] = 1.0
    """Of --iterations, that this method takes."""

    iterations: int = 2000
    batch_size: int = 32
    from_codes: bool = False
    pull: float = 0.01
    rate: float = 1.0

    def __post_init__(self) -> None:
        for option, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least, most = LIMITS.get(option, (0, 1000))
            if not least <= value <= most:
                text = option.replace("_", "-")
                raise SpecError(f"{self.name}: {text} must be {least} to {most}, not {value:g}")

    def lasting(self, iterations: int) -> Self:
        """The same method where --iterations is so many."""
        return replace(self, iterations=max(1, round(self.share * iterations)))

    def plans(self) -> tuple[Plan, ...]:
        """What is learned, one plan after the other."""
        raise NotImplementedError

    def plan(self) -> Plan:
        """A plan with the options that all methods share."""
        return Plan(
            from_codes=self.from_codes,
            iterations=self.iterations,
            batch_size=self.batch_size,
            pull=self.pull,
            rate=self.rate,
        )

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with what was learned.

        Raises:
            CalibrationError: There are no calibration data.
            SpecError: torch is not installed.
        """
        for plan in self.plans():
            recipe = reconstructed(recipe, ctx, plan, to_text(self))
        return recipe

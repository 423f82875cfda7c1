"""qdrop: blocks reconstructed while some of their activations stay unquantized, at random."""

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.plan import Plan


@dataclass(frozen=True)
class QDrop(ByGradients):
    """Learn each block's codes and activation steps with half of the activations in float.

    Each element of each activation is quantized with probability one half while learning, and each
    element of a block's input comes from the quantized or the float network: the codes found are
    flat in the activations' noise. In the end everything is quantized. The paper takes 20,000
    iterations.

    Attributes:
        drop: Share of elements that stay in float.
        scales: Learn scales of weights too, as Genie-M does.

    Source:
        Wei et al. 2022, QDrop (arXiv:2203.05740); Jeon et al. 2023, Genie (CVPR) for scales.
    """

    name: ClassVar[str] = "qdrop"

    drop: float = 0.5
    scales: bool = False

    def plans(self) -> tuple[Plan, ...]:
        """Codes and steps of all blocks."""
        scales = "all" if self.scales else "none"
        return (replace(self.plan(), steps=True, scales=scales, drop=self.drop, mix=self.drop),)

"""pd_quant: blocks reconstructed so that the network's prediction stays what it was."""

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.plan import Correction, Plan


@dataclass(frozen=True)
class PdQuant(ByGradients):
    """`qdrop` with a term for how far the network's outputs are from float behind each block.

    For rows of logits that is the KL divergence of the softmax at a temperature, for other heads
    the relative squared error. Inputs of blocks are first moved towards the mean and spread that
    training saw: those of BatchNorms that were folded, else those of the calibration data. The
    paper takes 20,000 iterations.

    Attributes:
        weight: Of the term, 1 / lambda_r.
        search: Begin with the steps of activations that a search by the term alone finds.
        judged: Of how many samples of an iteration the term is taken: for each the rest of the
            network is run and derived, which takes several times as long as the block.
        temperature: Of the softmax; networks with depthwise layers take 1.
        correction: Steps by which inputs are moved; 0 for none. The paper takes 500 small ones.
        closeness: lambda_c: the smaller, the less they move; ResNets 0.02, MobileNetV2 0.005.
        drop: Share of elements that stay in float while learning.

    Source:
        Liu et al. 2022, PD-Quant (arXiv:2212.07048), and the authors' code (methods.md 10).
    """

    name: ClassVar[str] = "pd-quant"

    weight: float = 10.0
    search: bool = True
    temperature: float = 4.0
    correction: int = 50
    judged: int = 8
    closeness: float = 0.02
    drop: float = 0.5

    def plans(self) -> tuple[Plan, ...]:
        """Codes and steps of all blocks."""
        plan = replace(
            self.plan(),
            steps=True,
            prediction=self.weight,
            temperature=self.temperature,
            judged=self.judged,
            search=self.search,
            correction=Correction(self.correction, self.closeness),
            drop=self.drop,
            mix=self.drop,
        )
        return (plan,)

"""Suffix: what follows a block, in float, and how far two results are apart at the outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch.nn import functional

from onnxptq.methods.reconstruction.blocks import computed, head_of
from onnxptq.methods.reconstruction.subgraph import Subgraph

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Suffix:
    """The part of a float network that depends on a value.

    Attributes:
        entry: The value's name.
        beside: Other values that it reads: the ends of connections that go around the entry.
        outputs: Outputs of the network that depend on the value, real numbers only; what goes into
            a Softmax at the end in its place.
    """

    entry: str
    beside: tuple[str, ...]
    outputs: tuple[str, ...]
    _graph: Subgraph

    @classmethod
    def of(cls, model: ir.Model, value: ir.Value, device: torch.device) -> "Suffix":
        """That of a value of the main graph.

        Raises:
            NoGradientError: An operator behind it has no torch function.
        """
        heads = [head_of(v) for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT]
        nodes = _behind(model, value, heads)
        made = {id(v) for node in nodes for v in node.outputs}
        read = {str(v.name): v for node in nodes for v in computed(node) if id(v) not in made}
        outputs = [str(v.name) for v in heads if id(v) in made or v is value]
        beside = tuple(name for name in read if name != value.name)
        return cls(str(value.name), beside, tuple(outputs), Subgraph(nodes, device))

    def __call__(self, value: Tensor, beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, by name."""
        made = self._graph({self.entry: value, **beside})
        return {name: made.get(name, value) for name in self.outputs}


def _behind(model: ir.Model, value: ir.Value, heads: Sequence[ir.Value]) -> list[ir.Node]:
    """Nodes that depend on a value, in the graph's order, as far as a head depends on them."""
    dependent = _reached([value])
    needed: set[int] = set()
    pending = [v.producer() for v in heads]
    while pending:
        node = pending.pop()
        if node is None or id(node) in needed or id(node) not in dependent:
            continue
        needed.add(id(node))
        pending.extend(v.producer() for v in computed(node))
    return [node for node in model.graph if id(node) in needed]


def _reached(values: Sequence[ir.Value]) -> set[int]:
    found: set[int] = set()
    pending = list(values)
    while pending:
        for reader in pending.pop().consumers():
            if id(reader) not in found:
                found.add(id(reader))
                pending.extend(reader.outputs)
    return found


def prediction_difference(
    found: Mapping[str, Tensor], real: Mapping[str, Tensor], temperature: float
) -> Tensor:
    """How far outputs are from those of the float network, a mean over samples.

    Rows of two and more numbers are taken for the logits of a classifier: the KL divergence of the
    softmax at a temperature. Of any other output it is the squared error over the mean square.

    Source:
        Liu et al. 2022, PD-Quant (arXiv:2212.07048), equation 5; methods.md 10 for other heads.
    """
    terms = [_difference(found[name], real[name], temperature) for name in found]
    return torch.stack(terms).mean()


def _difference(found: Tensor, real: Tensor, temperature: float) -> Tensor:
    if real.dim() == 2 and real.shape[1] > 1:
        expected = functional.log_softmax(real / temperature, 1)
        given = functional.log_softmax(found / temperature, 1)
        return functional.kl_div(given, expected, reduction="batchmean", log_target=True)
    return (found - real).square().mean() / real.square().mean().clamp_min(1e-12)

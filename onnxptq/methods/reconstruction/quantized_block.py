"""QuantizedBlock: a block as a torch function with all that can be learned about it."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from onnxptq.methods.layerwise import free_bias
from onnxptq.methods.reconstruction.blocks import Block
from onnxptq.methods.reconstruction.grids import MOST_LEVELS, BorderedGrid, Free, Grid, SplitGrid
from onnxptq.methods.reconstruction.plan import Borders, Which
from onnxptq.methods.reconstruction.soft_weights import SoftWeight, Start
from onnxptq.methods.reconstruction.subgraph import Subgraph
from onnxptq.methods.weight_zeros import WHOLE
from onnxptq.ops.nodes import constant
from onnxptq.quant import SMALLEST_SCALE
from onnxptq.recipe import Recipe
from onnxptq.rewrite.borders import channel_axis, function_of
from onnxptq.rewrite.regions import CLAMPS, weight_of

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Learned:
    """What is learned about a block.

    Attributes:
        rounding: Codes of weights; without, they stay what they are.
        from_codes: Begin with the codes that the recipe has, not with the real weights.
        steps: Steps of activations.
        scales: Scales of weights, and of which layers.
        biases: Biases, and of which layers.
        borders: Tables of borders behind layers.
        roundings: Scales that activations behind sums and pools are rounded by.
    """

    rounding: bool
    from_codes: bool
    steps: bool
    scales: Which
    biases: Which
    borders: Borders | None = None
    roundings: bool = False


AS_STORED = Learned(rounding=False, from_codes=True, steps=False, scales="none", biases="none")
"""Nothing is learned: the block as its recipe describes it."""


class QuantizedBlock(nn.Module):
    """A block whose weights' codes are still open, with the grids of its activations.

    Only activations of fewer than 8 bits have a grid: to learn with the others quantized would
    cost time and change nothing.

    Attributes:
        weights: By the name of the weight.
        grids: By the number of the value in `values`.
        biases: By the number of the bias, in the order of layers.
    """

    def __init__(
        self, block: Block, recipe: Recipe, learned: Learned, device: torch.device
    ) -> None:
        super().__init__()
        self.block = block
        self._graph = Subgraph(block.nodes, device)
        self._names = [_name(node) for node in block.layers]
        self._values = _coarse_values(block, recipe)
        self.weights = nn.ModuleList(
            SoftWeight(_start(node, recipe, learned.from_codes), device) for node in block.layers
        )
        channels = _channels_behind(block, recipe)
        split = _split(block, recipe) if learned.roundings else set[str]()
        self.grids = nn.ModuleList(
            _split_grid(name, recipe, device)
            if name in split or name in recipe.rounding_scales
            else _grid(name, recipe, channels.get(name), learned.borders, device)
            for name in self._values
        )
        self._biases = [str(b.name) for node in block.layers if (b := free_bias(node)) is not None]
        self.biases = nn.ParameterList(
            nn.Parameter(self._bias(name, recipe, device)) for name in self._biases
        )
        self._rounding = learned.rounding
        bordered = [_is_bordered(node, set(self._values)) for node in block.layers]
        with_bias = [
            bordered[i] for i, node in enumerate(block.layers) if free_bias(node) is not None
        ]
        for grid in self.grid_list():
            grid.log_scale.requires_grad_(learned.steps)
            if isinstance(grid, SplitGrid):
                grid.log_ratio.requires_grad_(learned.roundings)
        for weight, border in zip(self.soft_weights(), bordered, strict=True):
            weight.openness.requires_grad_(learned.rounding)
            weight.log_scale.requires_grad_(_chosen(learned.scales, border))
        for bias, border in zip(self.biases, with_bias, strict=True):
            bias.requires_grad_(_chosen(learned.biases, border))

    def _bias(self, name: str, recipe: Recipe, device: torch.device) -> Tensor:
        given = recipe.biases.get(name)
        if given is None:
            return self._graph.constant(name).clone()
        return torch.from_numpy(np.array(given, np.float32)).to(device)

    def soft_weights(self) -> list[SoftWeight]:
        """The weights in the order of the layers."""
        return [weight for weight in self.weights if isinstance(weight, SoftWeight)]

    def grid_list(self) -> list[Grid]:
        """The grids of its activations."""
        return list(self._grids().values())

    def coefficients(self) -> list[nn.Parameter]:
        """What borders are learned by."""
        return [grid.coefficients for grid in self.grid_list() if isinstance(grid, BorderedGrid)]

    def ratios(self) -> list[nn.Parameter]:
        """What the scales that activations are rounded by are learned by."""
        return [grid.log_ratio for grid in self.grid_list() if isinstance(grid, SplitGrid)]

    def forward(self, x: Tensor, free: Free | None = None) -> Tensor:
        """The block's exit for its entry.

        Args:
            x: Entry, [N, ...].
            free: Which elements of an activation stay unquantized; None to quantize all.
        """
        constants = {
            name: weight.soft() if self._rounding else weight.hard()
            for name, weight in zip(self._names, self.soft_weights(), strict=True)
        }
        constants |= dict(zip(self._biases, self.biases, strict=True))
        grids = self._grids()

        def at(name: str, value: Tensor) -> Tensor:
            if name not in grids:
                return value
            return grids[name](value, None if free is None else free(value))

        made = self._graph({str(self.block.entry.name): x}, constants, at)
        return made[str(self.block.exit.name)]

    def widest(self, x: Tensor) -> int:
        """Bytes of the largest value that the float block computes for an entry, [N, ...]."""
        made = self._graph({str(self.block.entry.name): x})
        return max(value.numel() * value.element_size() for value in made.values())

    def stored(self, recipe: Recipe, set_by: str) -> Recipe:
        """The recipe with what was learned."""
        steps = {
            name: recipe.tensors[name].params.with_scale(grid.stored())
            for name, grid in self._grids().items()
            if grid.log_scale.requires_grad
        }
        if steps:
            recipe = recipe.with_params(steps, set_by)
        roundings = {**recipe.rounding_scales, **self._learned_roundings()}
        borders = {**recipe.borders, **self._learned_borders()}
        recipe = replace(recipe, borders=borders, rounding_scales=roundings)
        tensors, codes, biases = dict(recipe.tensors), dict(recipe.codes), dict(recipe.biases)
        for name, weight in zip(self._names, self.soft_weights(), strict=True):
            tensor = tensors[name]
            scale = weight.stored_scale().reshape(tensor.params.scale.shape)
            params = tensor.params.with_scale(np.maximum(scale, SMALLEST_SCALE))
            tensors[name] = replace(tensor, params=params, set_by=f"{tensor.set_by},{set_by}")
            codes[name] = weight.codes()
        for name, bias in zip(self._biases, self.biases, strict=True):
            if bias.requires_grad:
                biases[name] = bias.detach().cpu().numpy()
        return replace(recipe, tensors=tensors, codes=codes, biases=biases)

    def _learned_roundings(self) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: np.asarray(grid.rounding_scale())
            for name, grid in self._grids().items()
            if isinstance(grid, SplitGrid) and grid.log_ratio.requires_grad
        }

    def _learned_borders(self) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: grid.borders().detach().cpu().numpy()
            for name, grid in self._grids().items()
            if isinstance(grid, BorderedGrid) and grid.coefficients.requires_grad
        }

    def _grids(self) -> dict[str, Grid]:
        return {
            name: grid
            for name, grid in zip(self._values, self.grids, strict=True)
            if isinstance(grid, Grid)
        }


def _channels_behind(block: Block, recipe: Recipe) -> dict[str, int]:
    """How many channels the layers have whose outputs, behind a Relu or Clip, are these values.

    Only of layers that can have tables of borders, and whose weights have no zero points.
    """
    found: dict[str, int] = {}
    for node in block.layers:
        weight, function = weight_of(node), function_of(node)
        array = None if weight is None else constant(weight)
        if function is None or weight is None or array is None:
            continue
        if not recipe.tensors[str(weight.name)].params.zero_point.any():
            found |= dict.fromkeys(values_behind(node), int(array.shape[channel_axis(function)]))
    return found


def _split(block: Block, recipe: Recipe) -> set[str]:
    """Values behind sums and pools whose codes nobody shares."""
    shared = {tensor.tied_to for tensor in recipe.tensors.values()}
    makers = [node for node in block.nodes if node.op_type in SUMS_AND_POOLS]
    return {name for node in makers for name in values_behind(node)} - shared


SUMS_AND_POOLS = ("Add", "Sum", "Mul", "AveragePool", "GlobalAveragePool")


def _split_grid(name: str, recipe: Recipe, device: torch.device) -> SplitGrid:
    params = recipe.tensors[name].params
    return SplitGrid(params, np.float32(recipe.rounding_scales.get(name, params.scale)), device)


def _grid(
    name: str, recipe: Recipe, channels: int | None, learned: Borders | None, device: torch.device
) -> Grid:
    """The grid of an activation, with borders if it has some or is to learn some."""
    params = recipe.tensors[name].params
    known = recipe.borders.get(name)
    if known is not None:
        return BorderedGrid(params, known, learned, device)
    levels = params.spec.levels - 1
    if learned is None or channels is None or levels > MOST_LEVELS:
        return Grid(params, device)
    half = np.full((channels, levels), 0.5, np.float32)
    return BorderedGrid(params, half, learned, device)


def _chosen(which: Which, bordered: bool) -> bool:
    return which == "all" or (which == "bordered" and bordered)


def _is_bordered(node: ir.Node, coarse: set[str]) -> bool:
    """Whether a layer's output becomes codes of few bits, at once or behind a Relu or Clip.

    Its bias and scales then move the borders between these codes (design.md D5).
    """
    return any(name in coarse for name in values_behind(node))


def values_behind(node: ir.Node) -> list[str]:
    """A layer's output and what a Relu or Clip makes of it, as long as nobody else reads it."""
    value = node.outputs[0]
    found = [str(value.name)]
    while True:
        readers = list(value.consumers())
        if len(readers) != 1 or readers[0].op_type not in CLAMPS or value.is_graph_output():
            return found
        value = readers[0].outputs[0]
        found.append(str(value.name))


def _coarse_values(block: Block, recipe: Recipe) -> list[str]:
    """Activations of the block with a grid of fewer than 8 bits, each tied one left out."""
    made = [str(value.name) for node in block.nodes for value in node.outputs]
    tensors = [recipe.tensors[name] for name in made if name in recipe.tensors]
    return [t.value for t in tensors if t.tied_to is None and t.params.spec.bits < WHOLE]


def _start(node: ir.Node, recipe: Recipe, from_codes: bool) -> Start:
    weight = weight_of(node)
    array = None if weight is None else constant(weight)
    assert weight is not None
    assert array is not None
    name = str(weight.name)
    codes = recipe.codes.get(name) if from_codes else None
    return Start(array, recipe.tensors[name].params, codes, recipe.code_ends(name))


def _name(node: ir.Node) -> str:
    weight = weight_of(node)
    assert weight is not None
    return str(weight.name)

"""gptq: weights rounded together, so that each layer's output stays what it was in float."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.errors import SpecError
from onnxptq.methods.method import Context
from onnxptq.methods.moments import Moments, from_rows, supports, to_rows
from onnxptq.methods.quadratic import Group, Search, rounded
from onnxptq.methods.ready import ready
from onnxptq.ops.nodes import constant
from onnxptq.quant import SMALLEST_SCALE
from onnxptq.recipe import Recipe
from onnxptq.rewrite.place import regions_of
from onnxptq.rewrite.regions import activation_inputs, bias_of, weight_of
from onnxptq.rewrite.weights import fit_scales
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Tried where samples are held out; without any, the real weights are what is rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Codes, steps and bias of a layer's rows: [G, R, K], [G, R], [G, R]."""

    codes: F64
    steps: F64
    bias: F64

    @property
    def rows(self) -> F64:
        return self.codes * self.steps[:, :, None]


@dataclass(frozen=True)
class Gptq:
    """Round each layer's weights against the data, in the order in which the network computes.

    A layer is shown its inputs as the layers before it give them once they are quantized, and the
    outputs of the float network; in front of a residual sum, those outputs less what the other
    branch is off by. The weights that come closest to that (with a pull towards the real ones) are
    rounded with error feedback, the codes polished by coordinate descent, and each channel's step
    and bias chosen anew. A channel for which that does not help on the held-out samples is undone.

    Attributes:
        ridge: Pull towards the real weights, as a share of the inputs' mean variance; None for the
            one that predicts the held-out samples best, layer by layer.
        damping: Added to the inputs' variances before error feedback, as a share of their mean.
        rounds: Times that a layer is rounded anew, from the steps the last round found.
        sweeps: Passes of coordinate descent.

    Source:
        Frantar et al. 2022, GPTQ (arXiv:2210.17323); methods.md 11.6 for the corrected target, 11.7
        for descent, 11.8 for steps and biases.
    """

    name: ClassVar[str] = "gptq"
    runs_model: ClassVar[bool] = True

    ridge: float | None = None
    damping: float = 0.01
    rounds: int = 3
    sweeps: int = 4

    def __post_init__(self) -> None:
        for option in ("ridge", "damping"):
            value = getattr(self, option)
            if value is not None and not 0 < value <= 1e3:
                raise SpecError(f"{self.name}: {option} must be above 0 and at most 1000")
        for option in ("rounds", "sweeps"):
            if not 1 <= getattr(self, option) <= 100:
                raise SpecError(f"{self.name}: {option} must be 1 to 100")

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes, scales and biases of all layers that have a weight to themselves.

        Raises:
            CalibrationError: There are no calibration data.
        """
        data = ctx.samples(self.name)
        recipe = ready(recipe, ctx)
        layers = _layers(ctx.model, recipe)
        done: set[str] = set()
        ctx.progress.start(self.name, len(layers))
        try:
            for node in layers:
                wanted = _Wanted.of(node, recipe, done)
                fit = _moments(node, recipe, ctx, (wanted, data))
                held = None
                if ctx.held_out is not None:
                    held = _moments(node, recipe, ctx, (wanted, ctx.held_out))
                recipe = self._rounded(node, recipe, fit, held)
                recipe = fit_scales(ctx.model, recipe)
                done.add(str(node.name))
                ctx.progress.advance(1)
        finally:
            ctx.progress.finish()
        return recipe

    def _rounded(
        self, node: ir.Node, recipe: Recipe, moments: Moments, held: Moments | None
    ) -> Recipe:
        weight, bias = weight_of(node), _free_bias(node)
        assert weight is not None
        array = constant(weight)
        assert array is not None
        tensor = recipe.tensors[str(weight.name)]
        rows = to_rows(node, array.astype(np.float64))
        shape = rows.shape[:2]
        steps = np.broadcast_to(tensor.params.scale.reshape(-1), (shape[0] * shape[1],))
        steps = steps.reshape(shape).astype(np.float64)
        low = np.broadcast_to(tensor.params.code_lo.reshape(-1), (steps.size,)).reshape(shape)
        high = np.broadcast_to(tensor.params.code_hi.reshape(-1), (steps.size,)).reshape(shape)
        ends = np.stack([low, high], axis=2).astype(np.float64)
        covariances = moments.plain() if bias is None else moments.centred()
        groups = [
            Group(rows[g], covariances[0][g], covariances[1][g], steps[g], ends[g])
            for g in range(shape[0])
        ]
        given = None if bias is None else constant(bias)
        free = tensor.params.spec.axis is not None
        targets = [group.weights for group in groups]
        if self.ridge is not None or held is not None:
            ridges = RIDGES if self.ridge is None else (self.ridge,)
            targets = _best_targets(groups, ridges, (moments, held, given))
        candidates = self._candidates(groups, targets, free_steps=free)
        fits = [_with_bias(fit, moments, given) for fit in candidates]
        best = _choose(fits, moments if held is None else held)
        return _stored(node, recipe, best, to_text(self))

    def _candidates(
        self, groups: list[Group], targets: list[F64], *, free_steps: bool
    ) -> list[tuple[F64, F64]]:
        """Codes and steps of all groups: rounded to nearest, and together towards the targets."""
        search = Search(self.damping, self.rounds, self.sweeps, free_steps)
        pairs = zip(groups, targets, strict=True)
        nearest = [(group.nearest(), group.steps) for group in groups]
        together = [rounded(group, target, search) for group, target in pairs]
        return [
            (np.stack([codes for codes, _ in parts]), np.stack([steps for _, steps in parts]))
            for parts in (nearest, together)
        ]


def _best_targets(
    groups: list[Group],
    ridges: tuple[float, ...],
    judges: tuple[Moments, Moments | None, npt.NDArray[np.generic] | None],
) -> list[F64]:
    """Real weights of each group by the ridge that predicts the held-out outputs best."""
    moments, held, given = judges
    best, least = [group.weights for group in groups], np.inf
    for ridge in ridges:
        targets = [group.target(ridge) for group in groups]
        if held is None:
            return targets
        rows = np.stack(targets)
        bias = moments.bias(rows) if given is not None else np.zeros(rows.shape[:2])
        error = float(held.error(rows, bias).sum())
        if error < least:
            best, least = targets, error
    return best


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a layer should give: its float output, less what the other addend of a sum is off by."""

    output: str
    partner: str | None

    @classmethod
    def of(cls, node: ir.Node, recipe: Recipe, done: set[str]) -> "_Wanted":
        output = node.outputs[0]
        readers = list(output.consumers())
        if len(readers) != 1 or readers[0].op_type != "Add" or output.is_graph_output():
            return cls(str(output.name), None)
        others = [v for v in readers[0].inputs if v is not None and v is not output]
        usable = len(others) == 1 and others[0].name in recipe.tensors
        if not usable or others[0].const_value is not None or not _finished(others[0], done):
            return cls(str(output.name), None)
        return cls(str(output.name), str(others[0].name))


def _finished(value: ir.Value, done: set[str]) -> bool:
    """Whether all layers that a value depends on are rounded."""
    pending, seen = [value.producer()], set[int]()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        if weight_of(node) is not None and str(node.name) not in done:
            return False
        seen.add(id(node))
        pending.extend(node.predecessors())
    return True


def _layers(model: ir.Model, recipe: Recipe) -> list[ir.Node]:
    """Layers on codes whose weight nobody else reads, in the order of the graph."""
    regions = regions_of(model, recipe)
    return [
        node
        for node in model.graph
        if regions.holds(node)
        and supports(node)
        and (weight := weight_of(node)) is not None
        and len(weight.uses()) == 1
        and not recipe.tensors[str(weight.name)].params.zero_point.any()
    ]


def _free_bias(node: ir.Node) -> ir.Value | None:
    """The bias of a layer, if it has one to itself."""
    bias = bias_of(node)
    return bias if bias is not None and len(bias.uses()) == 1 else None


def _moments(node: ir.Node, recipe: Recipe, ctx: Context, source: tuple[_Wanted, Data]) -> Moments:
    """Moments of a layer's inputs as codes and of its wanted outputs."""
    wanted, data = source
    x = str(next(iter(activation_inputs(node))).name)
    partner = [wanted.partner] if wanted.partner else []
    total: Moments | None = None
    for real, coded in _both(ctx, recipe, data, ([wanted.output, *partner], [x, *partner])):
        target = real[wanted.output]
        for name in partner:
            target = target + (real[name] - coded[name])
        found = Moments.of(node, coded[x], target.astype(np.float32))
        total = found if total is None else total + found
    assert total is not None
    return total


def _both(
    ctx: Context, recipe: Recipe, data: Data, names: tuple[list[str], list[str]]
) -> Iterator[tuple[dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.float32]]]]:
    real = ctx.float_values(data, names[0])
    coded = ctx.quantized_values(recipe, data, list(dict.fromkeys(names[1])))
    return zip(real, coded, strict=True)


def _with_bias(
    fit: tuple[F64, F64], moments: Moments, given: npt.NDArray[np.generic] | None
) -> _Fit:
    codes, steps = fit
    if given is None:
        return _Fit(codes, steps, np.zeros(steps.shape))
    return _Fit(codes, steps, moments.bias(codes * steps[:, :, None]))


def _choose(fits: list[_Fit], judge: Moments) -> _Fit:
    """The best fit of each row; the first one where nothing is better."""
    errors = np.stack([judge.error(fit.rows, fit.bias) for fit in fits])
    best = errors.argmin(axis=0)

    def chosen(arrays: list[F64]) -> F64:
        stacked = np.stack(arrays)
        index = best.reshape(1, *best.shape, *[1] * (stacked.ndim - 3))
        return np.take_along_axis(stacked, index, axis=0)[0]

    return _Fit(
        chosen([fit.codes for fit in fits]),
        chosen([fit.steps for fit in fits]),
        chosen([fit.bias for fit in fits]),
    )


def _stored(node: ir.Node, recipe: Recipe, fit: _Fit, method: str) -> Recipe:
    weight, bias = weight_of(node), _free_bias(node)
    assert weight is not None
    array = constant(weight)
    assert array is not None
    name = str(weight.name)
    tensor = recipe.tensors[name]
    params = tensor.params
    if params.spec.axis is not None:
        steps = np.maximum(fit.steps.reshape(-1).astype(np.float32), SMALLEST_SCALE)
        params = params.with_scale(steps.reshape(params.scale.shape))
    changed = replace(tensor, params=params, set_by=f"{tensor.set_by},{method}")
    codes = from_rows(node, fit.codes.astype(np.int8), array)
    recipe = replace(
        recipe,
        tensors={**recipe.tensors, name: changed},
        codes={**recipe.codes, name: codes},
    )
    if bias is None:
        return recipe
    given = constant(bias)
    assert given is not None
    real = fit.bias.reshape(given.shape).astype(np.float32)
    return replace(recipe, biases={**recipe.biases, str(bias.name): real})

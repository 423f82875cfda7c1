"""gptq: weights rounded together, so that each layer's output stays what it was in float."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.errors import SpecError
from onnxptq.methods.layerwise import Pairs, Wanted, each, free_bias, layers_of
from onnxptq.methods.method import Context
from onnxptq.methods.moments import Moments, from_rows, to_rows
from onnxptq.methods.quadratic import Groups, Search, rounded
from onnxptq.methods.ready import ready
from onnxptq.ops.nodes import constant
from onnxptq.quant import SMALLEST_SCALE
from onnxptq.recipe import Recipe
from onnxptq.rewrite.regions import weight_of
from onnxptq.rewrite.weights import fit_scales
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Tried where samples are held out; without any, the real weights are what is rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Codes from the zero point on, steps and bias of a layer's rows: [G, R, K], [G, R] twice."""

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
        for node, done in each(layers_of(ctx.model, recipe), ctx, self.name):
            pairs = Pairs(node, recipe, ctx, Wanted.of(node, recipe, done))
            fit = _moments(node, pairs, data)
            held = None if ctx.held_out is None else _moments(node, pairs, ctx.held_out)
            recipe = fit_scales(ctx.model, self._rounded(node, recipe, fit, held))
        return recipe

    def _rounded(
        self, node: ir.Node, recipe: Recipe, moments: Moments, held: Moments | None
    ) -> Recipe:
        problem = _Problem.of(node, recipe)
        ridge = self.ridge
        if ridge is None and held is not None:
            ridge = problem.best_ridge(moments, held)
        fits = self._fits(problem, moments, ridge)
        judge = moments if held is None else held
        errors = [judge.error(fit.rows, fit.bias) for fit in fits]
        if held is not None:
            # What is worth doing is known now; the held-out samples help to do it.
            fits = self._fits(problem, moments + held, ridge)
        return _stored(node, recipe, _chosen(fits, errors[1] < errors[0]), to_text(self))

    def _fits(self, problem: "_Problem", moments: Moments, ridge: float | None) -> "list[_Fit]":
        """All rows rounded to nearest, and together towards the target; with the best biases."""
        search = Search(self.damping, self.rounds, self.sweeps, problem.free_steps)
        groups = problem.groups(moments)
        target = groups.weights if ridge is None else groups.target(ridge)
        parts = ((groups.nearest(), groups.steps), rounded(groups, target, search))
        return [problem.fit(*part, moments) for part in parts]


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """What is to be rounded: G groups of R rows of a layer's weight.

    Attributes:
        rows: Real weights, [G, R, K].
        steps: Steps that the recipe has, [G, R].
        ends: First and last code, counted from the zero point, [G, R, 2].
        has_bias: Whether a bias can be chosen.
        free_steps: Whether each row has a step of its own.
    """

    rows: F64
    steps: F64
    ends: F64
    has_bias: bool
    free_steps: bool

    @classmethod
    def of(cls, node: ir.Node, recipe: Recipe) -> "_Problem":
        weight = weight_of(node)
        array = None if weight is None else constant(weight)
        assert weight is not None
        assert array is not None
        name = str(weight.name)
        params = recipe.tensors[name].params
        rows, zero = to_rows(node, array.astype(np.float64)), params.zero_point

        def of_rows(values: npt.NDArray[np.generic]) -> F64:
            size = rows.shape[0] * rows.shape[1]
            return (
                np.broadcast_to(values.reshape(-1), (size,)).reshape(rows.shape[:2]).astype(float)
            )

        ends = np.stack([of_rows(end - zero) for end in recipe.code_ends(name)], axis=2)
        has_bias, free = free_bias(node) is not None, params.spec.axis is not None
        return cls(rows, of_rows(params.scale), ends, has_bias, free)

    def groups(self, moments: Moments) -> Groups:
        inputs, cross = moments.centred() if self.has_bias else moments.plain()
        return Groups(self.rows, inputs, cross, self.steps, self.ends)

    def bias(self, rows: F64, moments: Moments) -> F64:
        return moments.bias(rows) if self.has_bias else np.zeros(rows.shape[:2])

    def fit(self, codes: F64, steps: F64, moments: Moments) -> "_Fit":
        return _Fit(codes, steps, self.bias(codes * steps[..., None], moments))

    def best_ridge(self, moments: Moments, held: Moments) -> float | None:
        """The ridge whose target predicts the held-out outputs best; None for the real weights."""
        groups = self.groups(moments)
        least = float(held.error(self.rows, self.bias(self.rows, moments)).sum())
        best: float | None = None
        for ridge in RIDGES:
            rows = groups.target(ridge)
            error = float(held.error(rows, self.bias(rows, moments)).sum())
            if error < least:
                best, least = ridge, error
        return best


def _moments(node: ir.Node, pairs: Pairs, data: Data) -> Moments:
    """Moments of a layer's inputs as codes and of its wanted outputs."""
    return reduce(add, (Moments.of(node, x, target) for x, target in pairs.of(data)))


def _chosen(fits: list[_Fit], second: npt.NDArray[np.bool_]) -> _Fit:
    """The second fit for the rows named, the first one for the others, [G, R]."""
    first, other = fits
    return _Fit(
        np.where(second[:, :, None], other.codes, first.codes),
        np.where(second, other.steps, first.steps),
        np.where(second, other.bias, first.bias),
    )


def _stored(node: ir.Node, recipe: Recipe, fit: _Fit, method: str) -> Recipe:
    weight, bias = weight_of(node), free_bias(node)
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
    codes = from_rows(node, fit.codes.astype(np.int32), array)
    codes = (codes + params.along(params.zero_point, codes.ndim)).astype(np.int8)
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

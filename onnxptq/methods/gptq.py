"""gptq: weights rounded together, so that each layer's output stays what it was in float."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data, Part
from onnxptq.errors import SpecError
from onnxptq.methods.held_out import is_judged_later, output_db
from onnxptq.methods.layerwise import Pairs, Wanted, each, free_bias, layers_of
from onnxptq.methods.method import Context
from onnxptq.methods.moments import Moments, from_rows, to_rows
from onnxptq.methods.quadratic import Groups, Search, rounded
from onnxptq.methods.ready import ready
from onnxptq.methods.weight_zeros import WHOLE
from onnxptq.ops.nodes import constant
from onnxptq.quant import F32, SMALLEST_SCALE
from onnxptq.recipe import Recipe, Step
from onnxptq.rewrite.regions import activation_inputs, weight_of
from onnxptq.rewrite.weights import fit_scales
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

HELPS_DB = 0.1
"""A smaller gain of one layer's other bias is as likely to be luck."""

FITTED = "fitted_held_out_samples"
"""A step's number: how many of the held-out samples its codes were fitted to in the end.

What it seems to bring on these is then more than it brings on others.
"""

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
    Codes are then chosen once more with those samples too, unless a method behind is judged on
    them: ResNet-20's outputs at W4A4 came to 18.2 dB on samples held out that had been learned
    from, and to 17.2 dB on others.

    Attributes:
        ridge: Pull towards the real weights, as a share of the inputs' mean variance; None for the
            one that predicts the held-out samples best, layer by layer.
        damping: Added to the inputs' variances before error feedback, as a share of their mean.
        rounds: Times that a layer is rounded anew, from the steps the last round found.
        sweeps: Passes of coordinate descent.
        samples: Most samples that are learned from; the time grows with them.

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
    samples: int = 256

    def __post_init__(self) -> None:
        for option in ("ridge", "damping"):
            value = getattr(self, option)
            if value is not None and not 0 < value <= 1e3:
                raise SpecError(f"{self.name}: {option} must be above 0 and at most 1000")
        for option in ("rounds", "sweeps"):
            if not 1 <= getattr(self, option) <= 100:
                raise SpecError(f"{self.name}: {option} must be 1 to 100")
        if self.samples < 1:
            raise SpecError(f"{self.name}: samples must be at least 1, not {self.samples}")

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with codes, scales and biases of all layers that have a weight to themselves.

        Raises:
            CalibrationError: There are no calibration data.
        """
        data = ctx.samples(self.name)
        data = Part(data, 0, min(self.samples, len(data)))
        recipe, spared = ready(recipe, ctx), is_judged_later(ctx)
        for node, done in each(layers_of(ctx.model, recipe), ctx, self.name):
            pairs = Pairs(node, recipe, ctx, Wanted.of(node, recipe, done))
            fit = _moments(node, pairs, data)
            held = None if ctx.held_out is None else _moments(node, pairs, ctx.held_out)
            problem = _Problem.of(node, recipe)
            fits = self._rounded(problem, fit, held, spared=spared)
            tried = [_stored(node, recipe, found, to_text(self)) for found in fits]
            tried = [fit_scales(ctx.model, found) for found in tried]
            recipe = tried[0] if len(tried) == 1 else _better(tried[0], tried[1], ctx)
        if spared or ctx.held_out is None:
            return recipe
        return recipe.with_step(Step(self.name, numbers={FITTED: float(len(ctx.held_out))}))

    def _rounded(
        self, problem: "_Problem", moments: Moments, held: Moments | None, *, spared: bool
    ) -> "list[_Fit]":
        """The layer rounded; of several results the network's outputs have to decide.

        Nothing but what is worth doing is learned from held-out samples that are to be spared.
        """
        ridge = self.ridge
        if ridge is None and held is not None:
            ridge = problem.best_ridge(moments, held)
        fits = self._fits(problem, moments, ridge)
        judge = moments if held is None else held
        errors = [judge.error(fit.rows, fit.bias) for fit in fits]
        if held is None:
            return [_chosen(fits, errors[1] < errors[0])]
        if not spared:
            # What is worth doing is known now; the held-out samples help to do it.
            moments = moments + held
            fits = self._fits(problem, moments, ridge)
        found = _chosen(fits, errors[1] < errors[0])
        return [found, problem.alone(found, moments)] if problem.coarse else [found]

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
        given: The bias it has, [G, R]; None where none can be chosen.
        coarse: Whether there is one, and the layer has weights or inputs of few bits.
        free_steps: Whether each row has a step of its own.
    """

    rows: F64
    steps: F64
    ends: F64
    given: F64 | None
    coarse: bool
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
        given = _bias(node, recipe)
        source = recipe.tensors[str(next(iter(activation_inputs(node))).name)]
        bits = min(params.spec.bits, source.params.spec.bits)
        coarse = given is not None and bits < WHOLE
        given = None if given is None else given.reshape(rows.shape[:2]).astype(np.float64)
        return cls(rows, of_rows(params.scale), ends, given, coarse, params.spec.axis is not None)

    def groups(self, moments: Moments) -> Groups:
        inputs, cross = moments.plain() if self.given is None else moments.centred()
        return Groups(self.rows, inputs, cross, self.steps, self.ends)

    def bias(self, rows: F64, moments: Moments) -> F64:
        return np.zeros(rows.shape[:2]) if self.given is None else moments.bias(rows)

    def fit(self, codes: F64, steps: F64, moments: Moments) -> "_Fit":
        return _Fit(codes, steps, self.bias(codes * steps[..., None], moments))

    def alone(self, fit: "_Fit", moments: Moments) -> "_Fit":
        """The same with a bias that makes up for the weights, and leaves the inputs' error alone.

        Where many inputs are clipped, their mean error is large and differs from sample to sample;
        the network's outputs can be further from float with it taken out.
        """
        assert self.given is not None
        mean = moments.input_sum / moments.count
        return replace(fit, bias=self.given + np.einsum("grk,gk->gr", self.rows - fit.rows, mean))

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


def _better(usual: Recipe, other: Recipe, ctx: Context) -> Recipe:
    """The other recipe where it brings the network's outputs clearly nearer to float."""
    usual_db, other_db = (output_db(recipe, ctx) for recipe in (usual, other))
    return other if other_db > usual_db + HELPS_DB else usual


def _bias(node: ir.Node, recipe: Recipe) -> F32 | None:
    """The bias that a layer has to itself, as the recipe has it."""
    bias = free_bias(node)
    return None if bias is None else recipe.biases.get(str(bias.name), constant(bias))


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

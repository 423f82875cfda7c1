"""What a search for widths knows: the open weights, their costs, and how much each width harms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from onnxptq.calibrate.ports import Array
from onnxptq.calibrate.progress import Quiet
from onnxptq.calibrate.source import Data, Part
from onnxptq.calibrate.taps import BATCH
from onnxptq.errors import SpecError
from onnxptq.methods import terminal
from onnxptq.methods.candidates import Grid, Judged, Task, judge
from onnxptq.methods.decisions import Decision, moments_of
from onnxptq.methods.gptq import Gptq
from onnxptq.methods.method import Context, Method
from onnxptq.methods.quadratic import Search
from onnxptq.methods.ready import ready
from onnxptq.methods.resources import Resource, byte_costs
from onnxptq.methods.terminal import Network
from onnxptq.methods.weights import WeightsAsymmetric, WeightsMinMax, WeightsMse, weight_array
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe, Step, TensorQuant
from onnxptq.rewrite.weights import fit_scales
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

WEIGHT_METHODS = (WeightsMse, WeightsMinMax, WeightsAsymmetric)
LAST_STEPS = "mse,weights-mse,provable-scales"
"""What may be applied behind the named methods; the written file says so."""


def narrowed(tensor: TensorQuant, bits: int) -> TensorQuant:
    """A weight at another width, its range open again."""
    spec = replace(tensor.params.spec, bits=bits)
    scale = tensor.params.scale
    params = QParams.unit(spec, None if scale.ndim == 0 else scale.size)
    return replace(tensor, params=params, set_by="")


def with_bits(recipe: Recipe, bits: Mapping[str, int]) -> Recipe:
    """The recipe with these weights at these widths, what was chosen for them forgotten."""
    changed = {name: narrowed(recipe.tensors[name], width) for name, width in bits.items()}
    codes = {name: array for name, array in recipe.codes.items() if name not in bits}
    return replace(recipe, tensors={**recipe.tensors, **changed}, codes=codes)


def recipes_by_width(
    recipe: Recipe, ctx: Context, names: Sequence[str], widths: Sequence[int], own: str
) -> dict[int, Recipe]:
    """For each width a recipe that can be written, in which all open weights have it.

    Their ranges are those that the methods to come would choose. `own` is the text of the method
    that asks: it will be in the file, as will those of the methods behind it.
    """
    quiet = replace(ctx, progress=Quiet())
    chooser = next((m for m in ctx.later if isinstance(m, WEIGHT_METHODS)), WeightsMse())
    label = ",".join([to_text(chooser), *_behind(chooser, ctx.later)])
    whole = ready(recipe, quiet)
    whole = whole.with_step(Step(",".join([own, *map(to_text, ctx.later), LAST_STEPS])))
    found: dict[int, Recipe] = {}
    for bits in widths:
        tried = chooser.apply(with_bits(recipe, dict.fromkeys(names, bits)), quiet)
        tensors = {name: replace(tried.tensors[name], set_by=label) for name in names}
        codes = {name: array for name, array in whole.codes.items() if name not in tensors}
        one = replace(whole, tensors={**whole.tensors, **tensors}, codes=codes)
        found[bits] = fit_scales(ctx.model, one)
    return found


def _behind(chooser: Method, later: Sequence[Method]) -> list[str]:
    """Texts of the methods that come after the one that chooses ranges, and may add their name."""
    if chooser not in later:
        return [to_text(method) for method in later]
    return [to_text(method) for method in later[list(later).index(chooser) + 1 :]]


def bit_costs(
    ctx: Context, recipe: Recipe, open_: Sequence[Decision], widths: Sequence[int], most: float
) -> Resource:
    """The budget of nominal bits a weight, over all quantized weights."""
    sizes = {
        tensor.value: weight_array(ctx.model, tensor.value).size for tensor in recipe.weights()
    }
    total = max(sum(sizes.values()), 1)
    names = [decision.weight for decision in open_]
    closed = [tensor for tensor in recipe.weights() if tensor.value not in set(names)]
    base = sum(sizes[tensor.value] * tensor.params.spec.bits for tensor in closed) / total
    shares = np.array([sizes[name] / total for name in names], np.float64).reshape(-1, 1)
    return Resource("--average-bits", most, base, shares * np.asarray(widths, np.float64))


def file_costs(
    ctx: Context, by_width: Mapping[int, Recipe], open_: Sequence[Decision], most: float
) -> Resource:
    """The budget of bytes of the written file."""
    written = {bits: ctx.written(recipe) for bits, recipe in by_width.items()}
    names = [decision.weight for decision in open_]
    any_recipe = next(iter(by_width.values()))
    fixed = [t.value for t in any_recipe.weights() if t.value not in set(names)]
    return byte_costs(written, names, fixed, most)


def latency_costs(
    ctx: Context, by_width: Mapping[int, Recipe], open_: Sequence[Decision], most: float
) -> Resource:
    """The budget of milliseconds in the executor: the sum of its layers' times.

    Raises:
        SpecError: Nothing can measure them here.
    """
    if ctx.latency_ms is None:
        raise SpecError("--max-latency-ms: there is no executor here to measure layers with")
    # The first round lets whoever measures see all kernels; times of the same kernel are shared.
    for recipe in by_width.values():
        ctx.latency_ms(recipe)
    times = [ctx.latency_ms(recipe) for recipe in by_width.values()]
    costs = np.array(
        [[sum(ms.get(str(n.name), 0.0) for n in one.nodes) for ms in times] for one in open_],
        np.float64,
    ).reshape(len(open_), len(times))
    rest = [sum(ms.values()) - costs[:, i].sum() for i, ms in enumerate(times)]
    return Resource("--max-latency-ms", most, float(np.median(rest)), costs)


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """All that is known about the open weights.

    Attributes:
        open_: The weights whose width is searched.
        widths: The candidates, in rising order.
        judged: Of each weight: its codes at each width, and the movement of its own output.
    """

    open_: tuple[Decision, ...]
    widths: tuple[int, ...]
    judged: tuple[Judged, ...]

    def patch(self, weight: int, width: int) -> dict[str, Array]:
        """The constants of the float model that stand for a weight at a width."""
        found = self.judged[weight].rounded[width]
        return self.open_[weight].stored(found.rows, found.bias)

    def patches(self, chosen: Sequence[int]) -> dict[str, Array]:
        """The constants that stand for all weights at chosen widths."""
        found: dict[str, Array] = {}
        for weight, width in enumerate(chosen):
            found.update(self.patch(weight, width))
        return found

    def terminal(self, network: Network, ctx: Context, widths: Sequence[int]) -> F64:
        """The movement of the network's outputs with one weight at one width, [weights, widths]."""
        tasks = (
            network.task(one.nodes, [self.patch(i, width) for width in widths])
            for i, one in enumerate(self.open_)
        )
        rows = in_parallel(terminal.distances, tasks, ctx, "widths, one layer at a time")
        return np.stack(rows) if rows else np.zeros((0, len(widths)))


def studied(
    open_: tuple[Decision, ...],
    by_width: Mapping[int, Recipe],
    ctx: Context,
    data: Data,
    search: Search | None,
) -> Study:
    """Round every open weight at every width, and compare its layers' outputs."""
    tasks = (
        _task(decision, moments, by_width, search)
        for decision, moments in moments_of(open_, data, ctx)
    )
    found = in_parallel(judge, tasks, ctx, "widths of each layer")
    return Study(open_, tuple(by_width), tuple(found))


def _task(
    decision: Decision, moments: Any, by_width: Mapping[int, Recipe], search: Search | None
) -> Task:
    rows = decision.rows
    params = [recipe.tensors[decision.weight].params for recipe in by_width.values()]
    if search is not None:
        search = replace(search, free_steps=params[0].spec.axis is not None)
    return Task(
        rows=rows,
        moments=moments,
        grids=tuple(Grid.of(one, *rows.shape[:2]) for one in params),
        # gptq leaves weights that layers share, and those with zero points, as they are
        search=search if len(moments) == 1 and not params[0].zero_point.any() else None,
        free_bias=decision.bias is not None,
    )


def in_parallel(function: Any, tasks: Any, ctx: Context, what: str) -> list[Any]:
    """Results in the order of the tasks; joblib's backend is the user's choice, else threads."""
    ctx.progress.start(what, None)
    try:
        pool = Parallel(n_jobs=ctx.jobs, prefer="threads", return_as="list")
        return list(pool(delayed(function)(task) for task in tasks))
    finally:
        ctx.progress.finish()


def first_samples(data: Data, count: int) -> Data:
    """The first samples, in whole batches."""
    known = data.count
    return Part(data, 0, count if known is None else min(count, known))


def search_of(options: Gptq) -> Search:
    """How `gptq` with these options rounds a weight that has a scale for each channel."""
    return Search(options.damping, options.rounds, options.sweeps, free_steps=True)


def network_of(data: Data, ctx: Context) -> Network:
    """The float network with samples to judge it on."""
    return Network(ctx.model, list(data.batches(BATCH)), ctx.jobs)

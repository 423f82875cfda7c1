"""ofm-similarity: a width for each weight, where output feature maps say it does least harm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from onnxptq.errors import SpecError
from onnxptq.methods.decisions import Decision, decisions
from onnxptq.methods.descent import Descent, Point, Widths
from onnxptq.methods.gptq import Gptq
from onnxptq.methods.method import Context
from onnxptq.methods.quadratic import Search
from onnxptq.methods.resources import Resource, choose, require_feasible
from onnxptq.methods.study import (
    Study,
    bit_costs,
    file_costs,
    first_samples,
    latency_costs,
    network_of,
    recipes_by_width,
    search_of,
    studied,
    with_bits,
)
from onnxptq.methods.terminal import Network
from onnxptq.recipe import Recipe
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

TIE = 1e-6
"""Weight of noise to signal beside 1 - cosine: it only decides between equal ones."""
PROBE_BITS = 4
"""Where the network is asked once how much a layer's movement matters to it."""
NO_BUDGET = (
    "ofm-similarity: no budget; give --average-bits, --max-bytes or --max-latency-ms, or in its "
    "text for example ofm-similarity{average-bits=4}"
)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search leaves behind for the caller.

    Attributes:
        study: The weights at all widths.
        values: The harm that was minimized, [weights, widths]; for the greedy form that of each
            weight alone in the widest network.
        bits: The budget of nominal bits.
        by_width: For each width a recipe in which all open weights have it.
        chosen: Index of the width of each weight.
        path: States of the greedy form, in order.
    """

    study: Study
    values: F64
    bits: Resource
    by_width: Mapping[int, Recipe]
    chosen: Widths
    path: tuple[Point, ...] = ()


@dataclass(frozen=True)
class OfmSimilarity:
    """Give each weight the width that harms outputs least within budgets of bits, bytes or time.

    Weights at the network's ends, and those whose width was given by name, keep it. All ranges are
    chosen anew afterwards. The harm of a width is measured with the rounding that the methods
    behind this one apply, and the widths that minimize the sum are found exactly; the greedy form
    measures each step in the network as it is by then.

    Attributes:
        average_bits: Most nominal bits a weight, over all quantized weights.
        max_bytes: Most bytes of the whole quantized file.
        max_latency_ms: Most milliseconds in the executor on one thread, as the sum of its layers.
        form: "local": movement of the layer's own output, from moments of its inputs, without a
            run of the network. "terminal": divergence of the network's scores, or noise of its
            outputs, with only that layer changed. "greedy": the same, step by step from the widest.
        metric: Of the local form: "cosine", ties by noise, or "sqnr": noise to signal.
        omega: Of the local form: "one", or "probe": the network is run once a layer, to see how
            much the layer's movement matters.
        rounding: "gptq" or "nearest"; none for what comes behind.
        widths: Candidates, as in 2/4/8.
        samples: Calibration samples that harm is measured on.
        reverse: Of the greedy form: whether what is left of the budgets is spent at the end.

    Source:
        Chen 2023, Post-Training Quantization by Adjusting Zero Points (NTHU), whose details are
        not public; methods.md 5.3 and 13.
    """

    name: ClassVar[str] = "ofm-similarity"
    runs_model: ClassVar[bool] = True

    average_bits: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None
    form: Literal["local", "terminal", "greedy"] = "local"
    metric: Literal["cosine", "sqnr"] = "cosine"
    omega: Literal["one", "probe"] = "one"
    rounding: Literal["gptq", "nearest"] | None = None
    widths: str = "2/3/4/5/6/7/8"
    samples: int = 64
    reverse: bool = True

    def __post_init__(self) -> None:
        self.candidates()
        if self.samples < 1:
            raise SpecError(f"{self.name}: samples must be at least 1")
        check_budgets(self.average_bits, self.max_bytes, self.max_latency_ms)

    def candidates(self) -> tuple[int, ...]:
        """The widths, in rising order.

        Raises:
            SpecError: The text is malformed.
        """
        parts = self.widths.split("/")
        if not all(part.isdecimal() and 2 <= int(part) <= 8 for part in parts):
            raise SpecError(f"{self.name}: widths must be 2 to 8, as in 2/4/8, not {self.widths!r}")
        return tuple(sorted(set(map(int, parts))))

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with a width for each open weight, whose ranges are then undecided.

        Raises:
            SpecError: There is no budget, or no choice of widths meets it.
            CalibrationError: There are no calibration data.
        """
        if self.average_bits is self.max_bytes is self.max_latency_ms is None:
            raise SpecError(NO_BUDGET)
        open_ = decisions(recipe, ctx)
        names = [decision.weight for decision in open_]
        by_width = self._remembered(
            ctx,
            "recipes",
            lambda: recipes_by_width(recipe, ctx, names, self.candidates(), self._longest_text()),
        )
        resources = self._resources(recipe, ctx, open_, by_width)
        budgets = [one for one in resources if np.isfinite(one.most)]
        require_feasible(budgets)
        data = first_samples(ctx.samples(self.name), self.samples)
        study = self._remembered(
            ctx, "study", lambda: studied(open_, by_width, ctx, data, self.search(ctx))
        )
        if self.form == "greedy":
            chosen, values, path = self._descended(study, budgets, ctx)
        else:
            values, path = self._remembered(ctx, "values", lambda: self.harm(study, ctx)), ()
            chosen = choose(values, budgets)
        assert chosen is not None
        ctx.memo[self.name] = Found(study, values, resources[0], by_width, chosen, path)
        bits = {name: study.widths[at] for name, at in zip(names, chosen, strict=True)}
        return with_bits(recipe, bits)

    def _resources(
        self, recipe: Recipe, ctx: Context, open_: tuple[Decision, ...], by_width: dict[int, Recipe]
    ) -> list[Resource]:
        """Bits always, the others as asked for."""
        average = np.inf if self.average_bits is None else self.average_bits
        found = [bit_costs(ctx, recipe, open_, self.candidates(), average)]
        if self.max_bytes is not None:
            found.append(file_costs(ctx, by_width, open_, self.max_bytes))
        if self.max_latency_ms is not None:
            found.append(latency_costs(ctx, by_width, open_, self.max_latency_ms))
        return found

    def _longest_text(self) -> str:
        """Its text as it may be in the file, whatever number the budget is."""
        return to_text(self if self.max_bytes is None else replace(self, max_bytes=10**12))

    def search(self, ctx: Context) -> Search | None:
        """How weights are rounded: as asked for, else as a method behind this one will."""
        behind = next((method for method in ctx.later if isinstance(method, Gptq)), None)
        if self.rounding == "nearest" or (self.rounding is None and behind is None):
            return None
        return search_of(behind or Gptq())

    def harm(self, study: Study, ctx: Context) -> F64:
        """What is to be minimized, [weights, widths]."""
        if not study.open_:
            return np.zeros((0, len(study.widths)))
        if self.form == "terminal":
            return study.terminal(self._network(ctx), ctx, range(len(study.widths)))
        cosine = np.stack([judged.cosine for judged in study.judged])
        noise = np.stack([judged.noise for judged in study.judged])
        local = noise if self.metric == "sqnr" else cosine + TIE * noise
        if self.omega == "one":
            return local
        probe = int(np.argmin(np.abs(np.array(study.widths) - PROBE_BITS)))
        asked = study.terminal(self._network(ctx), ctx, [probe])[:, 0]
        weights = asked / np.maximum(local[:, probe], 1e-300)
        return weights[:, None] * local

    def _network(self, ctx: Context) -> Network:
        data = first_samples(ctx.samples(self.name), self.samples)
        return network_of(data, ctx)

    def _descended(
        self, study: Study, budgets: Sequence[Resource], ctx: Context
    ) -> tuple[Widths, F64, tuple[Point, ...]]:
        network = self._remembered(ctx, "network", lambda: self._network(ctx))
        known: dict[Widths, float] = self._remembered(ctx, "known", dict)

        def distance(chosen: Widths) -> float:
            if chosen not in known:
                known[chosen] = network.distance(study.patches(chosen))
            return known[chosen]

        ctx.progress.start("descent from the widest", None)
        try:
            descent = Descent(distance, budgets, len(study.widths), ctx.progress.advance)
            chosen = descent.run(len(study.open_))
            if self.reverse:
                chosen = descent.widen()
            if any(one.total(chosen) > one.most * (1 + 1e-9) for one in budgets):
                # Only the solver knows which widths share what they need beside.
                chosen = choose(replace(self, form="local").harm(study, ctx), budgets)
                assert chosen is not None
        finally:
            ctx.progress.finish()
        return chosen, np.zeros((len(study.open_), len(study.widths))), tuple(descent.path)

    def _remembered(self, ctx: Context, part: str, make: Any) -> Any:
        """What was found before in this run with the same options, budgets aside."""
        free = replace(self, average_bits=None, max_bytes=None, max_latency_ms=None)
        key = f"{to_text(free)} {part} {' '.join(map(to_text, ctx.later))}"
        if key not in ctx.memo:
            ctx.memo[key] = make()
        return ctx.memo[key]


def check_budgets(
    average_bits: float | None, max_bytes: int | None, max_latency_ms: float | None
) -> None:
    """Refuse budgets that no file can have.

    Raises:
        SpecError: One is out of range; the message names its flag.
    """
    if average_bits is not None and not 2 <= average_bits <= 8:
        raise SpecError(f"--average-bits {average_bits:g}: it must be 2 to 8")
    if max_bytes is not None and max_bytes < 1:
        raise SpecError(f"--max-bytes {max_bytes}: it must be at least 1")
    if max_latency_ms is not None and not 0 < max_latency_ms < np.inf:
        raise SpecError(f"--max-latency-ms {max_latency_ms:g}: it must be above 0")

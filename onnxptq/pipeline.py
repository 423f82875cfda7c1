"""quantize: from a float model to a quantized one, step by step. Read this first."""

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxptq import methods, ort, passes
from onnxptq.calibrate.model import Remeasure, calibrate
from onnxptq.calibrate.ports import Batch
from onnxptq.calibrate.progress import Progress, Silent
from onnxptq.calibrate.source import Data, split
from onnxptq.calibrate.taps import BATCH
from onnxptq.errors import CalibrationError, ModelError, SpecError
from onnxptq.graph import io
from onnxptq.methods.kept import Folder, Nothing
from onnxptq.methods.method import Context
from onnxptq.methods.ofm_similarity import OfmSimilarity
from onnxptq.methods.pareto import pareto, to_json
from onnxptq.recipe import Recipe
from onnxptq.report.inputs import PREPROCESS_KEY, DataOptions, open_for
from onnxptq.report.layers import layer_rows
from onnxptq.report.pareto_plot import pareto_svg
from onnxptq.report.rows import QuantizeReport
from onnxptq.report.totals import file_bytes, totals
from onnxptq.rewrite.ceilings import fit_ceilings
from onnxptq.rewrite.channels import with_channels
from onnxptq.rewrite.gates import fit_gates
from onnxptq.rewrite.place import fixed_weights, place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.weights import fit_scales
from onnxptq.runtime.layer_times import LayerTimes
from onnxptq.runtime.targets import complaints
from onnxptq.settings import Settings

HELD_OUT, HELD_OUT_MOST = 0.25, 128
"""Share of the samples that methods judge by and do not learn from, and the most that is enough."""
_ALL = 2**62


@dataclass(frozen=True)
class Quantized:
    """What `quantize` returns.

    Attributes:
        model: The quantized model.
        recipe: Every decision that was taken; saved, it reproduces the same bytes.
        report: Sizes, time, and each layer's share of the error.
        notes: What did not go as usual, and what the onnxruntime version asked for cannot do with
            the model; for people to read.
        kept: What an interrupted run would go on from; given back once the model is saved.
    """

    model: ir.Model
    recipe: Recipe
    report: QuantizeReport
    notes: tuple[str, ...] = ()
    kept: Folder | Nothing = field(default_factory=Nothing, repr=False)

    def save(self, path: str | Path) -> None:
        """Write the model; an existing file is replaced only by a complete one."""
        io.save(self.model, Path(path))
        self.kept.clear()


def quantize(
    model: str | Path | onnx.ModelProto,
    data: object = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Quantized:
    """Quantize a float model so that stock onnxruntime runs it in its integer kernels.

    Args:
        model: A float `.onnx` file, or the message itself.
        data: Calibration data in any form of `calibrate.data.open_data`; not needed with a recipe.
        progress: Where to report progress to.
        **options: Fields of `Settings`.

    Raises:
        ModelError: The model cannot be read or is quantized already.
        CalibrationError: The data do not fit, or give no usable range.
        SpecError: An option does not exist or is malformed.
    """
    started = time.perf_counter()
    settings, progress = Settings.of(options), progress or Silent()
    source = _load(model)
    prepared = passes.prepare(source)
    samples: Data | None = None
    kept: Folder | Nothing = Nothing()
    work = Work(source, prepared, settings, progress)
    if settings.recipe is not None:
        recipe = Recipe.load(settings.recipe)
        for name in settings.ignored():
            progress.warn(f"{name} has no effect: the recipe {settings.recipe} has decided that")
    else:
        recipe = place(prepared.model, settings.placing())
        if recipe.activations():
            feeds = _open(source, prepared.model, data, settings)
            samples = feeds.take(settings.report_samples) if settings.report_samples else None
            recipe = _decide(work, recipe, feeds)
            kept = work.kept()
    quantized = work.write(recipe)
    batches = samples.batches(1) if samples else ()
    moved = with_channels(prepared.model, recipe)
    rows = layer_rows(moved, quantized, recipe, batches)
    report = totals(source, moved, quantized, recipe, rows)
    report = replace(report, seconds=time.perf_counter() - started)
    notes = (*prepared.notes, *complaints(quantized, settings.target_ort))
    return Quantized(quantized, recipe, report, notes, kept)


@dataclass(frozen=True)
class Work:
    """One model on its way, and what is wanted of it."""

    source: ir.Model
    prepared: passes.Prepared
    settings: Settings
    progress: Progress

    def kept(self) -> Folder | Nothing:
        """Where long methods put their work by: beside the statistics, if those are kept."""
        stats = self.settings.stats
        return Nothing() if stats is None else Folder(stats.with_name(f"{stats.name}.kept"))

    def write(self, recipe: Recipe) -> ir.Model:
        """The model that will be saved."""
        quantized = insert_qdq(self.prepared.model, recipe, self.settings.layout())
        _remember_preprocess(quantized, self.source, self.settings)
        return quantized


def _decide(work: Work, recipe: Recipe, feeds: Data) -> Recipe:
    """Measure, choose ranges, and make them fit the integer arithmetic."""
    settings, model = work.settings, work.prepared.model
    batches, held_out = None, None
    if methods.run_model(settings.methods()):
        feeds = _readable_again(feeds)
        share = min(HELD_OUT, HELD_OUT_MOST / max(len(feeds), 1))
        batches, held_out = split(feeds, BATCH, share)
    collecting = settings.collecting(work.progress)
    recipe, stats = calibrate(model, recipe, feeds, settings.placing(), collecting)
    context = Context(
        model,
        stats,
        batches,
        held_out,
        norms=work.prepared.norms,
        seed=settings.seed,
        jobs=settings.jobs,
        progress=work.progress,
        asked=settings.method is not None,
        measure=Remeasure(feeds, collecting),
        fixed=fixed_weights(model, recipe, settings.placing()),
        write=work.write,
        kept=work.kept(),
        latency_ms=None if batches is None else LayerTimes(work.write, _one_sample(batches)),
    )
    decided = _within_bytes(work, recipe, context)
    found = context.memo.get(OfmSimilarity.name)
    if settings.pareto is not None and found is not None:
        points = pareto(found, context)
        io.write_atomically(settings.pareto, to_json(points, found).encode())
        io.write_atomically(settings.pareto.with_suffix(".svg"), pareto_svg(points))
    return decided


def _within_bytes(work: Work, recipe: Recipe, context: Context) -> Recipe:
    """All methods; again with a smaller budget where the file came out larger than predicted.

    Raises:
        SpecError: No choice of widths gives a file of so few bytes.
    """
    most = room = work.settings.max_bytes
    smallest = sys.maxsize
    while True:
        try:
            decided = _applied(replace(work.settings, max_bytes=room), recipe, context)
        except SpecError as error:
            if room == most:
                raise
            raise SpecError(
                f"--max-bytes {most} is too small: the smallest file found has {smallest} bytes"
            ) from error
        if most is None or room is None:
            return decided
        smallest = min(smallest, file_bytes(work.write(decided)))
        if smallest <= most:
            return decided
        room -= smallest - most


def _applied(settings: Settings, recipe: Recipe, context: Context) -> Recipe:
    recipe = methods.apply(recipe, settings.methods(), context)
    context = context.following(recipe)
    recipe = methods.apply_defaults(recipe, context)
    for fit in (fit_ceilings, fit_gates, fit_scales):
        recipe = fit(context.model, recipe)
    return methods.apply(recipe, methods.LAST_METHOD, context)


def _one_sample(data: Data) -> Batch:
    """What a latency is measured on."""
    first = next(iter(data.batches(1)))
    return {
        name: array[:1] if data.feed_samples(first) > 1 else array for name, array in first.items()
    }


def _readable_again(data: Data) -> Data:
    """The data themselves, or all of them in memory where they can be read only once."""
    return data if data.digest() and data.count is not None else data.take(_ALL)


def _load(model: object) -> ir.Model:
    name = "the model"
    if isinstance(model, str | Path):
        name, source = str(model), io.load(Path(model))
    elif isinstance(model, onnx.ModelProto):
        source = io.from_proto(model, name)
    else:
        kind = type(model).__name__
        raise ModelError(f"model is a {kind}, expected a path or an onnx.ModelProto")
    found = passes.find_quantized(source)
    for node in found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(
            f"{name}: already quantized (node {node!r}{others}); quantize the float model it was "
            f"made from"
        )
    return source


def _open(source: ir.Model, model: ir.Model, data: object, settings: Settings) -> Data:
    if data is None:
        raise CalibrationError(
            "no calibration data: give --data (in Python data=), or with --recipe a recipe "
            "to take all ranges from"
        )
    inputs = ort.inputs(model)
    options = DataOptions(settings.preprocess, settings.samples)
    return open_for(source, inputs, data, options)


def _remember_preprocess(quantized: ir.Model, source: ir.Model, settings: Settings) -> None:
    text = settings.preprocess or source.metadata_props.get(PREPROCESS_KEY)
    if text:
        quantized.metadata_props[PREPROCESS_KEY] = text

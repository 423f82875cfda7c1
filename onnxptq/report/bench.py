"""Latency of models in onnxruntime and in the executor, measured in turns in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from scipy import stats

from onnxptq import ort
from onnxptq.calibrate.progress import Progress
from onnxptq.errors import SpecError
from onnxptq.graph import io
from onnxptq.passes.quantized import find_quantized
from onnxptq.program import IntegerProgram
from onnxptq.report.bench_feeds import FeedOptions, feeds_for
from onnxptq.report.inputs import PREPROCESS_KEY
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.interleave import F64, Ratio, interleaved, ratio
from onnxptq.runtime.load import OtherLoad
from onnxptq.runtime.lower import lower
from onnxptq.runtime.profile import Profile, profile

Array = npt.NDArray[Any]

ONNXRUNTIME, EXECUTOR = "onnxruntime", "executor"
RATIOS = ("executor/onnxruntime", "executor/float", "onnxruntime/float")
MOST_THREADS = 256
LAYER_RUNS = 20
"""Runs of the table of layers are not in turns with anything, so these are enough."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    Attributes:
        threads: Numbers of threads, each measured.
        runs: Counted runs of each engine, model and number of threads.
        layers: Whether each layer of the executor is measured too.
        feeds: What to feed.
    """

    threads: tuple[int, ...] = (1,)
    runs: int = 30
    layers: bool = False
    feeds: FeedOptions = field(default_factory=FeedOptions)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One model in one engine.

    Attributes:
        model: Its file.
        engine: "onnxruntime" or "executor".
        threads: Threads of a run.
        median_ms: Median time.
        min_ms: The shortest time.
        iqr_ms: Between the first and the third quarter of the times: the noise.
    """

    model: str
    engine: str
    threads: int
    median_ms: float
    min_ms: float
    iqr_ms: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured.

    Attributes:
        rows: One for each model, engine and number of threads.
        ratios: By "executor/onnxruntime:MODEL:THREADS"; also executor/float and onnxruntime/float,
            where the float model was given too.
        profiles: Layers in the executor, by model.
        runs: Counted runs of each row.
        other_cores: Cores that other processes used meanwhile; None where the system does not tell.
    """

    rows: tuple[BenchRow, ...]
    ratios: Mapping[str, Ratio]
    profiles: Mapping[str, Profile]
    runs: int
    other_cores: float | None

    def answer(self) -> dict[str, Any]:
        """For programs."""
        told: dict[str, Any] = {
            "rows": [asdict(row) for row in self.rows],
            "ratios": {key: asdict(value) for key, value in self.ratios.items()},
            "runs": self.runs,
            "other_cores": self.other_cores,
        }
        if self.profiles:
            told["layers"] = [
                {"model": model, **asdict(layer)}
                for model, found in self.profiles.items()
                for layer in found.layers
            ]
            told["machine"] = asdict(next(iter(self.profiles.values())).peak)
        return told


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A file that is measured.

    Attributes:
        name: What it is called in the answer.
        path: The file.
        program: Its integer program; None where the executor has nothing to run.
        network: The model; None for a program.
        is_float: Whether nothing in it is quantized.
    """

    name: str
    path: Path
    program: IntegerProgram | None
    network: ir.Model | None
    is_float: bool

    @property
    def inputs(self) -> tuple[ort.Port, ...]:
        """What it is fed with."""
        if self.network is not None:
            return ort.inputs(self.network)
        assert self.program is not None
        types = [np.dtype(value.dtype) for value in self.program.values]
        return tuple(ort.Port(p.name, types[p.value], p.shape) for p in self.program.inputs)


Key = tuple[str, str, int]
"""Model, engine, threads."""


def parse_threads(text: str) -> tuple[int, ...]:
    """Numbers of threads from a text such as "1,2", each once.

    Raises:
        SpecError: The text has another form.
    """
    words = [word.strip() for word in text.split(",")]
    good = all(w.isascii() and w.isdigit() and 0 < int(w) <= MOST_THREADS for w in words)
    if not good:
        raise SpecError(
            f"--threads {text!r}: expected numbers of threads like 1,2, each 1 to {MOST_THREADS}"
        )
    return tuple(dict.fromkeys(map(int, words)))


def bench_files(paths: Sequence[Path], options: BenchOptions, progress: Progress) -> Bench:
    """Measure models: float and quantized ones in onnxruntime, quantized ones in the executor.

    Args:
        paths: Models, and programs that `verify --program` wrote.
        options: What to measure.
        progress: Told of each turn.

    Raises:
        ModelError: A file is no model, or onnxruntime refuses it.
        ProgramError: A file is no program, or its integer arithmetic could overflow.
        CalibrationError: The data cannot be read or do not fit.
        SpecError: A free size has no value.
    """
    models = open_models(paths)
    feeds = _feeds(models, options.feeds)
    contestants = _contestants(models, feeds, options.threads)
    progress.start("taking turns", options.runs * len(contestants))
    load = OtherLoad()
    try:
        runs = list(contestants.values())
        seconds = interleaved(runs, options.runs, progress.advance)
    finally:
        progress.finish()
    others = load.cores()
    times = dict(zip(contestants, seconds, strict=True))
    profiles: dict[str, Profile] = {}
    for model in models:
        if options.layers and model.program is not None:
            profiles[model.name] = profile(model.program, feeds[model.name], LAYER_RUNS)
    rows = tuple(_row(key, found) for key, found in times.items())
    return Bench(rows, _ratios(models, times), profiles, options.runs, others)


def open_models(paths: Sequence[Path]) -> list[Model]:
    """Read the files; what is quantized is lowered, and each file counts once."""
    unique = list(dict.fromkeys(paths))
    names = [path.name for path in unique]
    models: list[Model] = []
    for path in unique:
        name = path.name if names.count(path.name) == 1 else str(path)
        if path.suffix == ".npz":
            models.append(Model(name, path, IntegerProgram.load(path), None, is_float=False))
            continue
        network = io.load(path)
        is_float = not find_quantized(network)
        program = None if is_float else lower(path)
        # A model that onnxruntime quantizes as it runs has no codes that the executor could take.
        has_codes = program is not None and any(value.is_codes for value in program.values)
        models.append(Model(name, path, program if has_codes else None, network, is_float))
    return models


def _feeds(models: Sequence[Model], options: FeedOptions) -> dict[str, dict[str, Array]]:
    """Inputs by model; a float model takes the preprocessing that its quantized one remembers."""
    named = {port.name for model in models for port in model.inputs}
    for name in options.shapes:
        if name not in named:
            raise SpecError(f"--shape {name}=...: no such input; there are {', '.join(named)}")
    stored = [m.network.metadata_props.get(PREPROCESS_KEY) for m in models if m.network is not None]
    preprocess = options.preprocess or next(filter(None, stored), None)
    known = FeedOptions(options.data, preprocess, options.batch_size, options.shapes)
    return {model.name: feeds_for(model.inputs, known) for model in models}


def _contestants(
    models: Sequence[Model], feeds: Mapping[str, dict[str, Array]], threads: Sequence[int]
) -> dict[Key, Callable[[], object]]:
    found: dict[Key, Callable[[], object]] = {}
    for model in models:
        fed = feeds[model.name]
        for count in threads:
            if model.network is not None:
                # At its default options, of spinning too: interleave.py says why.
                session = ort.session(model.path, threads=count)
                found[model.name, ONNXRUNTIME, count] = partial(session.run, fed)
            if model.program is not None:
                executor = Executor(model.program, threads=count)
                found[model.name, EXECUTOR, count] = partial(executor.run, None, fed)
    return found


def _row(key: Key, seconds: F64) -> BenchRow:
    ms = 1e3 * seconds
    return BenchRow(*key, float(np.median(ms)), float(ms.min()), float(stats.iqr(ms)))


def _ratios(models: Sequence[Model], times: Mapping[Key, F64]) -> dict[str, Ratio]:
    floats = [model for model in models if model.is_float]
    bases = {model.name: float_of(model, floats) for model in models if not model.is_float}
    found: dict[str, Ratio] = {}
    for name, engine, count in times:
        own, theirs = times[name, engine, count], times.get((name, ONNXRUNTIME, count))
        if engine == EXECUTOR and theirs is not None:
            found[f"executor/onnxruntime:{name}:{count}"] = ratio(own, theirs)
        base = bases.get(name)
        if base is not None:
            against = times[base.name, ONNXRUNTIME, count]
            found[f"{engine}/float:{name}:{count}"] = ratio(own, against)
    return {key: found[key] for key in sorted(found, key=_kind)}


def _kind(key: str) -> int:
    return RATIOS.index(key.split(":", 1)[0])


def float_of(model: Model, floats: Sequence[Model]) -> Model | None:
    """The float model that a quantized one was made from.

    It is the one with the same inputs and outputs, and with most names of nodes in common.
    """
    same = [base for base in floats if _ends(base) == _ends(model)]
    mine = _names(model)
    return max(same, key=lambda base: len(_names(base) & mine), default=None)


def _ends(model: Model) -> tuple[list[tuple[str, object]], list[str]]:
    """Names and shapes of inputs, and names of outputs."""
    if model.network is not None:
        outputs = [str(value.name) for value in model.network.graph.outputs]
    else:
        assert model.program is not None
        outputs = [port.name for port in model.program.outputs]
    return [(port.name, port.shape) for port in model.inputs], outputs


def _names(model: Model) -> set[str]:
    if model.network is not None:
        return {str(node.name) for node in model.network.graph}
    assert model.program is not None
    return {instr.node for instr in model.program.instrs}

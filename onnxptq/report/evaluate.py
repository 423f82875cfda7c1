"""Accuracy of a model on data, and its nearness to a float model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxptq import ort
from onnxptq.calibrate.progress import Progress
from onnxptq.calibrate.source import Data
from onnxptq.errors import CalibrationError, ModelError
from onnxptq.graph import io
from onnxptq.report.inputs import DataOptions, open_for
from onnxptq.report.measure import Tally
from onnxptq.report.rows import Evaluation
from onnxptq.runtime.execute import Executor

Array = npt.NDArray[Any]


class Network(Protocol):
    """What can be evaluated: a session of onnxruntime, or the integer executor."""

    inputs: tuple[ort.Port, ...]
    outputs: tuple[ort.Port, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        ...


class IntegerNetwork:
    """The executor behind the face of a session."""

    def __init__(self, model: Path) -> None:
        self._executor = Executor(model, threads=0)
        program = self._executor.program
        dtypes = [np.dtype(value.dtype) for value in program.values]
        self.inputs = tuple(ort.Port(p.name, dtypes[p.value], p.shape) for p in program.inputs)
        self.outputs = tuple(ort.Port(p.name, dtypes[p.value], p.shape) for p in program.outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        names = [port.name for port in self.outputs]
        return dict(zip(names, self._executor.run(names, feeds), strict=True))


ENGINES: dict[str, Callable[[Path], Network]] = {
    "onnxruntime": lambda path: ort.session(io.load(path)),
    "integer": IntegerNetwork,
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and, if wanted, the float model it is compared with; both loaded."""

    model: Network
    reference: ort.Session | None = None

    def __post_init__(self) -> None:
        if self.reference is None:
            return
        expected, found = _inputs(self.reference), _inputs(self.model)
        if list(expected) != list(found) or any(_differ(expected[x], found[x]) for x in found):
            raise ModelError(
                f"the reference has inputs {expected}, the model {found}: "
                "they are not the same network"
            )
        if len(self.model.outputs) != len(self.reference.outputs):
            raise ModelError(
                f"the reference has {len(self.reference.outputs)} outputs, the model "
                f"{len(self.model.outputs)}: they are not the same network"
            )

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array] | None]:
        """Outputs of the model and of the reference, under the model's names."""
        outputs = self.model.run(feeds)
        if self.reference is None:
            return outputs, None
        # By position: tools rename outputs more often than they move them.
        expected = dict(zip(outputs, self.reference.run(feeds).values(), strict=True))
        for name, value in expected.items():
            if value.shape != outputs[name].shape:
                raise ModelError(
                    f"output {name!r} has shape {outputs[name].shape}, that of the reference "
                    f"{value.shape}: they are not the same network"
                )
        return outputs, expected


def _inputs(session: Network) -> dict[str, list[int | str]]:
    """Shape of each input by name, "?" where a side is free."""
    return {
        port.name: [side if isinstance(side, int) else "?" for side in port.shape or ()]
        for port in session.inputs
    }


def _differ(a: list[int | str], b: list[int | str]) -> bool:
    """Whether surely no array fits both shapes; one of unknown rank is empty."""
    if not a or not b:
        return False
    sides = zip(a, b, strict=False)
    return len(a) != len(b) or any(x != y and "?" not in (x, y) for x, y in sides)


def evaluate(pair: Pair, data: Data, batch_size: int, progress: Progress) -> Evaluation:
    """Run all samples once.

    Args:
        pair: The model, and the reference or None.
        data: Samples, with labels or without.
        batch_size: Samples fed at a time, where the model leaves the choice.
        progress: Told of each batch.

    Returns:
        Shares and distances; None for what labels or a reference would be needed for.

    Raises:
        CalibrationError: There is no sample, or it does not fit the model.
        ModelError: onnxruntime refuses a batch, or the two models differ in their outputs.
    """
    tally, seen, labels = Tally(), 0, data.labels
    progress.start("evaluating", data.count)
    try:
        for batch in data.batches(batch_size):
            outputs, expected = pair.run(batch)
            count = data.feed_samples(batch)
            tally.update(outputs, expected, None if labels is None else labels[seen : seen + count])
            seen += count
            progress.advance(count)
    finally:
        progress.finish()
    if not seen:
        raise CalibrationError("the data hold no sample to evaluate on")
    return tally.evaluation(seen)


def evaluate_file(
    model: Path,
    source: str,
    reference: Path | None,
    options: DataOptions,
    progress: Progress,
    *,
    engine: str = "onnxruntime",
) -> Evaluation:
    """`evaluate` for files: loads the models, opens the data with the model's stored preprocessing.

    Args:
        model: The model.
        source: DATA.
        reference: The float model to compare with, which onnxruntime runs; None for none.
        options: How data are read.
        progress: Told of each batch.
        engine: What runs the model, a key of `ENGINES`.

    Raises:
        ModelError: A file is no model, or the two are not the same network.
        CalibrationError: The data cannot be read or do not fit.
        SpecError: The preprocessing text is malformed.
    """
    network = io.load(model)
    loaded = ENGINES[engine](model)
    against = None if reference is None else ort.session(io.load(reference))
    data = open_for(network, loaded.inputs, source, options)
    return evaluate(Pair(loaded, against), data, options.batch_size, progress)

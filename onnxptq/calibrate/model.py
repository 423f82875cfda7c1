"""calibrate: measure every value that needs a range; what has none goes back to float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxptq import ort
from onnxptq.calibrate.progress import Silent
from onnxptq.calibrate.run import CollectOptions, collect
from onnxptq.calibrate.source import Data
from onnxptq.calibrate.stats import Stats, TensorStats
from onnxptq.graph.io import digest
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place


def calibrate(
    model: ir.Model, recipe: Recipe, data: Data, placing: Placing, options: CollectOptions
) -> tuple[Recipe, Stats]:
    """Collect statistics over the data of the values that a recipe stores as codes.

    A value that was NaN or infinite has no range: the nodes around it are left in float, and what
    is then left is measured again.

    Args:
        model: A prepared float model.
        recipe: What `place` decided for it.
        data: Calibration samples, readable more than once if a value turns out not to be finite.
        placing: The user's choices.
        options: Batch size, checkpoint and the like.

    Returns:
        The recipe without ranges, and the statistics of its free activations.

    Raises:
        CalibrationError: The data do not fit the model, or hold NaN.
        SpecError: A choice is malformed.
    """
    unusable: dict[str, str] = {}
    while True:
        values = [tensor.value for tensor in recipe.activations()]
        options = replace(options, model_digest=recipe.model_digest)
        stats = _measure(model, values, data, options)
        found = {
            name: f"value {name!r} was {_kind(stats, name)} during calibration"
            for name in stats
            if _kind(stats, name)
        }
        if not found:
            return recipe, stats
        unusable |= found
        # What was measured for the first placement does not serve the next one.
        options = replace(options, checkpoint=None)
        recipe = place(model, placing, unusable)
        if not recipe.activations():
            return recipe, stats


@dataclass(frozen=True)
class Remeasure:
    """Measures some values of a model anew, once its channels were moved.

    What was asked lately is remembered: several methods may look at the same change.

    Attributes:
        data: All calibration samples, readable more than once.
        options: How they are run through the model.
    """

    data: Data
    options: CollectOptions
    _known: dict[tuple[str, ...], Stats] = field(default_factory=dict[tuple[str, ...], Stats])

    def __call__(
        self, model: ir.Model, values: Sequence[str], channels: Sequence[str] = ()
    ) -> Mapping[str, TensorStats]:
        """Statistics of these values, and of the channels of some of them.

        Raises:
            CalibrationError: The data do not fit the model.
        """
        key = (digest(model), *values, "", *channels)
        if key not in self._known:
            while len(self._known) >= _REMEMBERED:
                self._known.pop(next(iter(self._known)))
            # A method that asks in the middle of its work shows a bar of its own.
            options = replace(
                self.options, checkpoint=None, channels=tuple(channels), progress=Silent()
            )
            self._known[key] = _measure(model, values, self.data, options)
        return self._known[key]


_REMEMBERED = 4
"""A value takes 128 KB, so they are few."""


def _measure(model: ir.Model, values: Sequence[str], data: Data, options: CollectOptions) -> Stats:
    inputs = {value.name for value in model.graph.inputs}
    taps = [value for value in values if value not in inputs]
    session = ort.session(ort.with_outputs(model, taps))
    options = replace(options, allow_nonfinite=True)
    return collect(lambda batch: session.run(batch, taps), data, values, options)


def _kind(stats: Stats, name: str) -> str:
    """What keeps a value from having a range; empty if nothing does."""
    seen = stats[name]
    if seen.nan_count:
        return "NaN"
    return "infinite" if seen.inf_count else "" if seen.count else "empty"

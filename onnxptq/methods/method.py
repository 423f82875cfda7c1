"""Method: a pure function from recipe to recipe, a frozen dataclass; Context: all it may see."""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import onnx_ir as ir

from onnxptq.calibrate import taps
from onnxptq.calibrate.data import Data
from onnxptq.calibrate.model import Remeasure
from onnxptq.calibrate.ports import Array
from onnxptq.calibrate.progress import Progress, Silent
from onnxptq.calibrate.run import CollectOptions
from onnxptq.calibrate.stats import TensorStats
from onnxptq.calibrate.taps import CodedTaps, FloatTaps
from onnxptq.errors import CalibrationError
from onnxptq.methods.kept import Kept, Nothing
from onnxptq.passes import Norm
from onnxptq.recipe import Recipe
from onnxptq.rewrite.channels import moved_values, same_channels, with_channels
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.spec import to_text


@dataclass(frozen=True)
class Context:
    """What a method gets. There is no way from here to the command line or the disk.

    Attributes:
        model: The prepared float model, with channels moved as the recipe that a method is given
            says; not to be changed.
        stats: Statistics by value name, of that model.
        batches: The calibration data.
        held_out: Samples that are not among `batches`, for judging the result; None where there
            are too few.
        norms: Statistics of each folded BatchNorm by the name of the node it was folded into.
        seed: For every random choice.
        jobs: Threads or processes a method may use.
        progress: Where to report to.
        asked: Whether the user has named the methods, and would know why one did nothing.
        measure: Measures values anew where channels were moved; None for `batches` to be used.
        prepared: The prepared float model as it was before; None where `model` is it.
        moved: The recipe whose channels are moved in `model` and `stats`; None for none.
        later: The methods that will be applied behind this one.
        fixed: Weights whose bits the user has chosen by name, and those at the network's ends.
        write: The model that a recipe will be saved as; None for one in the default layout.
        latency_ms: Milliseconds of each node in the executor, by name, for a recipe; None where
            nothing can measure them.
        memo: What a method keeps for when it is applied again, and for the caller, by its name.
        kept: What long methods put by, so that an interrupted run goes on where it was.
    """

    model: ir.Model
    stats: Mapping[str, TensorStats]
    batches: Data | None = None
    held_out: Data | None = None
    norms: Mapping[str, Norm] = field(default_factory=dict[str, Norm])
    seed: int = 0
    jobs: int = 1
    progress: Progress = field(default_factory=Silent)
    asked: bool = True
    measure: Remeasure | None = None
    prepared: ir.Model | None = None
    moved: Recipe | None = None
    later: "tuple[Method, ...]" = ()
    fixed: frozenset[str] = frozenset()
    write: Callable[[Recipe], ir.Model] | None = None
    latency_ms: Callable[[Recipe], dict[str, float]] | None = None
    memo: dict[str, Any] = field(default_factory=dict[str, Any])
    kept: Kept = field(default_factory=Nothing)

    def following(self, recipe: Recipe) -> "Context":
        """The context in which model and statistics have the channels of this recipe.

        Raises:
            SpecError: They cannot be moved.
            CalibrationError: There are no data to measure the changed values with.
        """
        before = self.moved or Recipe(recipe.model_digest)
        if same_channels(before, recipe):
            return self
        original = self.prepared or self.model
        model = with_channels(original, recipe)
        changed = [v for v in moved_values(original, before, recipe) if v in self.stats]
        seen = replace(self, model=model, prepared=original, moved=recipe)
        stats = {name: self.stats[name] for name in self.stats}
        return replace(seen, stats=stats | seen.measured(changed)) if changed else seen

    def measured(
        self, values: Sequence[str], channels: Sequence[str] = ()
    ) -> dict[str, TensorStats]:
        """Statistics of values of the model, and of the channels of some of them.

        Raises:
            CalibrationError: There are no calibration data.
        """
        measure = self.measure
        if measure is None:
            if self.batches is None:
                raise CalibrationError(
                    f"the channels of value {values[0]!r} were moved, and without calibration data "
                    f"its range cannot be measured anew: give --data"
                )
            options = CollectOptions(jobs=self.jobs)
            measure = Remeasure(self.batches, options)
        found = measure(self.model, values, channels)
        return {name: found[name] for name in values}

    def written(self, recipe: Recipe) -> ir.Model:
        """The model that a recipe will be saved as."""
        if self.write is not None:
            return self.write(recipe)
        return insert_qdq(self.prepared or self.model, recipe, Storage())

    def key(self, recipe: Recipe, method: str) -> str | None:
        """Digest of all that a method's work depends on.

        None where nothing is kept (the digest of a recipe with codes takes time and memory), and
        where the data have no digest.
        """
        data = None if self.batches is None else self.batches.digest()
        if not data or isinstance(self.kept, Nothing):
            return None
        held = "" if self.held_out is None else self.held_out.digest()
        later = ",".join(to_text(method) for method in self.later)
        version = importlib.metadata.version("onnxptq")
        parts = (version, recipe.to_json(), method, str(self.seed), data, held, later)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def remark(self, message: str) -> None:
        """Warn of what a method could not do, where the user has asked for it by name."""
        if self.asked:
            self.progress.warn(message)

    def samples(self, method: str) -> Data:
        """The calibration data, for methods that run the model.

        Raises:
            CalibrationError: There are none.
        """
        if self.batches is None:
            raise CalibrationError(
                f"{method} runs the model and needs calibration data: give --data"
            )
        return self.batches

    def float_values(self, data: Data, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Values of the float model by name, batch by batch."""
        return self.float_taps(names).values(data)

    def float_taps(self, names: Sequence[str]) -> FloatTaps:
        """Values of the float model by name, as often as they are needed."""
        return FloatTaps(self.model, names)

    def coded_taps(self, recipe: Recipe, names: Sequence[str]) -> CodedTaps:
        """What the codes of these values stand for in the model that the recipe describes."""
        return CodedTaps(self.prepared or self.model, recipe, names)

    def float_outputs(self, data: Data) -> Iterator[dict[str, Array]]:
        """Outputs of the float model by name, batch by batch."""
        return taps.outputs(self.model, data)

    def quantized_outputs(self, recipe: Recipe, data: Data) -> Iterator[dict[str, Array]]:
        """Outputs of the model that the recipe describes, by name, batch by batch."""
        return taps.quantized_outputs(self.prepared or self.model, recipe, data)


class Method(Protocol):
    """One way to decide something about the recipe; its fields are its options."""

    name: ClassVar[str]

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with this method's decisions."""
        ...

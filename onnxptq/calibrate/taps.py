"""Values of the float and of the quantized model, batch by batch, in constant memory.

Sums of products are exact, as on CPUs with VNNI: what is decided is the same on every CPU.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxptq import ort
from onnxptq.calibrate.ports import Array, Batch
from onnxptq.calibrate.source import Data
from onnxptq.ops.nodes import constant
from onnxptq.recipe import Recipe
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage

BATCH = 8
_UNPACKED = Storage("int8")


class FloatTaps:
    """Values of the float model by name, as often as they are asked for.

    Only what they depend on is run. A name may be an input of the model.

    Raises:
        ModelError: onnxruntime refuses the model, or later a batch.
    """

    def __init__(self, model: ir.Model, names: Sequence[str]) -> None:
        self._model, self._names = model, list(names)
        self._inner = _inner(model, names)
        self._session = ort.session(_only(model, self._inner)) if self._inner else None

    def values(self, data: Data) -> Iterator[dict[str, Array]]:
        """The values for each batch of the data."""
        for batch in _grouped(self._model, data):
            found = {name: batch[name] for name in self._names if name in batch}
            if self._session is not None:
                feeds = {port.name: batch[port.name] for port in self._session.inputs}
                found |= self._session.run(feeds, self._inner)
            yield found


class CodedTaps:
    """Real numbers that the codes of some values stand for, as often as they are asked for.

    The model is the one that the recipe would be written as, run by onnxruntime's integer kernels
    as far as these values need it.

    Args:
        model: The prepared float model.
        recipe: Decisions; every range must have been chosen.
        names: Values that the recipe stores as codes.

    Raises:
        ModelError: onnxruntime refuses the model, or later a batch.
    """

    def __init__(self, model: ir.Model, recipe: Recipe, names: Sequence[str]) -> None:
        written = insert_qdq(model, recipe, _UNPACKED)
        readers = {
            str(node.name).removesuffix("_DequantizeLinear"): node
            for node in written.graph
            if node.op_type == "DequantizeLinear"
        }
        self._model = model
        self._readers = {name: readers[name] for name in names}
        self._taps = {n: str(r.inputs[0].name) for n, r in self._readers.items()}  # type: ignore[union-attr]
        self._session = ort.exact_session(_only(written, list(self._taps.values())))

    def values(self, data: Data) -> Iterator[dict[str, Array]]:
        """The values for each batch of the data."""
        for batch in _grouped(self._model, data):
            feeds = {port.name: batch[port.name] for port in self._session.inputs}
            found = self._session.run(feeds, list(self._taps.values()))
            yield {name: _real(self._readers[name], found[tap]) for name, tap in self._taps.items()}


def _real(reader: ir.Node, codes: Array) -> Array:
    """What a DequantizeLinear with one scale makes of codes."""
    scale, zero_point = constant(reader.inputs[1]), constant(reader.inputs[2])
    assert scale is not None
    assert zero_point is not None
    return (codes.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32) * scale


def _grouped(model: ir.Model, data: Data) -> Iterator[Batch]:
    """Batches of `BATCH` samples, whatever groups the source gives, where the model takes any.

    Sums of products depend on the groups in their last digits, and equal data shall give equal
    bytes.
    """
    free = all(port.shape and not isinstance(port.shape[0], int) for port in ort.inputs(model))
    group: list[Batch] = []
    for batch in data.batches(BATCH):
        whole = sum(map(data.feed_samples, group)) + data.feed_samples(batch) <= BATCH
        if group and not (free and whole and _fit(group[0], batch)):
            yield _merged(group)
            group = []
        group.append(batch)
    if group:
        yield _merged(group)


def _fit(first: Batch, second: Batch) -> bool:
    return all(first[name].shape[1:] == second[name].shape[1:] for name in first)


def _merged(group: list[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    return {name: np.concatenate([batch[name] for batch in group]) for name in group[0]}


def quantized_outputs(model: ir.Model, recipe: Recipe, data: Data) -> Iterator[dict[str, Array]]:
    """What the whole model that the recipe would be written as gives for each batch.

    Raises:
        ModelError: onnxruntime refuses the model or a batch.
    """
    return outputs(insert_qdq(model, recipe, _UNPACKED), data)


def outputs(model: ir.Model, data: Data) -> Iterator[dict[str, Array]]:
    """What a whole model gives for each batch."""
    session = ort.exact_session(model)
    for batch in _grouped(model, data):
        yield session.run(batch)


def _inner(model: ir.Model, names: Sequence[str]) -> list[str]:
    made = {value.name for node in model.graph for value in node.outputs}
    return [name for name in dict.fromkeys(names) if name in made]


def _only(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The part of a model that these values depend on."""
    part = model.clone()
    values = {value.name: value for node in part.graph for value in node.outputs}
    part.graph.outputs.clear()
    part.graph.outputs.extend(values[name] for name in dict.fromkeys(names))
    RemoveUnusedNodesPass()(part)
    # Uses count bodies of If, Loop and Scan too, which read values without naming them as inputs.
    part.graph.inputs[:] = [value for value in part.graph.inputs if value.uses()]
    return part

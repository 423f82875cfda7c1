"""Values of the float and of the quantized model, batch by batch, in constant memory."""

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


def float_values(model: ir.Model, data: Data, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """These values of the float model for each batch of `data`, by name.

    Only what they depend on is run. A name may be an input of the model.

    Raises:
        ModelError: onnxruntime refuses the model or a batch.
    """
    inner = _inner(model, names)
    if not inner:
        for batch in _grouped(model, data):
            yield {name: batch[name] for name in names}
        return
    session = ort.session(_only(model, inner))
    needed = [port.name for port in session.inputs]
    for batch in _grouped(model, data):
        found = session.run({name: batch[name] for name in needed}, inner)
        yield {**{name: batch[name] for name in names if name in batch}, **found}


def quantized_values(
    model: ir.Model, recipe: Recipe, data: Data, names: Sequence[str]
) -> Iterator[dict[str, Array]]:
    """Real numbers that the codes of these values stand for, for each batch of `data`, by name.

    The model is the one that the recipe would be written as, run by onnxruntime's integer kernels
    as far as these values need it.

    Args:
        model: The prepared float model.
        recipe: Decisions; every range must have been chosen.
        data: Batches.
        names: Values that the recipe stores as codes.

    Raises:
        ModelError: onnxruntime refuses the model or a batch.
    """
    written = insert_qdq(model, recipe, _UNPACKED)
    readers = {
        str(node.name).removesuffix("_DequantizeLinear"): node
        for node in written.graph
        if node.op_type == "DequantizeLinear"
    }
    taps = {name: str(readers[name].inputs[0].name) for name in names}  # type: ignore[union-attr]
    session = ort.session(_only(written, list(taps.values())))
    needed = [port.name for port in session.inputs]
    for batch in _grouped(model, data):
        found = session.run({name: batch[name] for name in needed}, list(taps.values()))
        yield {name: _real(readers[name], found[tap]) for name, tap in taps.items()}


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
    session = ort.session(model)
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
    read = {id(value) for node in part.graph for value in node.inputs if value is not None}
    part.graph.inputs[:] = [value for value in part.graph.inputs if id(value) in read]
    return part

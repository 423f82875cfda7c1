"""Layer by layer: what each quantized node's output lost against the float model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import ort
from onnxptq.recipe import Recipe, Role
from onnxptq.report.measure import Closeness
from onnxptq.report.rows import LayerRow
from onnxptq.rewrite.regions import CLAMPS


@dataclass(frozen=True, slots=True)
class _Tap:
    """Where a node's output is compared: its value in the float and in the quantized model."""

    node: ir.Node
    float_name: str
    quantized_name: str


def layer_rows(
    model: ir.Model,
    quantized: ir.Model,
    recipe: Recipe,
    batches: Iterable[Mapping[str, npt.NDArray[Any]]],
) -> tuple[LayerRow, ...]:
    """Run both models on the same batches and compare each quantized node's output.

    The quantized model is read behind its DequantizeLinear nodes, so that onnxruntime keeps its
    integer kernels. Only running sums are kept.

    Args:
        model: The prepared float model, whose names the recipe uses.
        quantized: The same with Q/DQ inserted.
        recipe: Bits and who set them.
        batches: Feeds by input name; few suffice.

    Returns:
        One row for each node that reads or writes a quantized tensor, in graph order.

    Raises:
        ModelError: onnxruntime refuses a model or a batch.
    """
    nodes = [node for node in model.graph if _is_layer(node, recipe)]
    taps = _taps(nodes, quantized, recipe)
    closeness = _compare(model, quantized, taps, batches)
    return tuple(_row(node, recipe, closeness.get(str(node.name))) for node in nodes)


def _is_layer(node: ir.Node, recipe: Recipe) -> bool:
    """Whether the node has a row; a clamp that vanished into its producer shares that one's."""
    if str(node.name) in recipe.float_nodes:
        return False
    first = node.inputs[0] if node.inputs else None
    if node.op_type in CLAMPS and (first is None or first.name not in recipe.tensors):
        return False
    names = [value.name for value in (*node.inputs, *node.outputs) if value is not None]
    return any(name in recipe.tensors for name in names)


def _taps(nodes: Iterable[ir.Node], quantized: ir.Model, recipe: Recipe) -> list[_Tap]:
    """Where each node is compared; a node whose value is gone from the quantized model has none."""
    real = _real_values(quantized)
    taps: list[_Tap] = []
    for node in nodes:
        name = _stored_value(node, recipe)
        if name in real:
            taps.append(_Tap(node, name, real[name]))
    return taps


def _stored_value(node: ir.Node, recipe: Recipe) -> str:
    """The value that stands for the node's output: its own, or that of the clamp behind it."""
    output = node.outputs[0]
    readers = list(output.consumers())
    if output.name not in recipe.tensors and len(readers) == 1 and readers[0].op_type in CLAMPS:
        return str(readers[0].outputs[0].name)
    return str(output.name)


def _real_values(quantized: ir.Model) -> dict[str, str]:
    """Value of the float model to that of the quantized model which holds the same real numbers.

    Behind DequantizeLinear where it is stored as codes: so onnxruntime keeps its integer kernels.
    """
    names = {str(v.name): str(v.name) for node in quantized.graph for v in node.outputs}
    for node in quantized.graph:
        if node.op_type == "DequantizeLinear":
            names[str(node.name).removesuffix("_DequantizeLinear")] = str(node.outputs[0].name)
    return names


def _compare(
    model: ir.Model,
    quantized: ir.Model,
    taps: list[_Tap],
    batches: Iterable[Mapping[str, npt.NDArray[Any]]],
) -> dict[str, Closeness]:
    reference = ort.session(ort.with_outputs(model, [tap.float_name for tap in taps]))
    measured = ort.session(ort.with_outputs(quantized, [tap.quantized_name for tap in taps]))
    sums: dict[str, Closeness] = {}
    for batch in batches:
        expected = reference.run(batch, sorted({tap.float_name for tap in taps}))
        found = measured.run(batch, sorted({tap.quantized_name for tap in taps}))
        for tap in taps:
            before, after = expected[tap.float_name], found[tap.quantized_name]
            if before.shape == after.shape and np.issubdtype(before.dtype, np.floating):
                sums.setdefault(str(tap.node.name), Closeness()).update(before, after)
    return sums


def _row(node: ir.Node, recipe: Recipe, closeness: Closeness | None) -> LayerRow:
    inputs = [value for value in node.inputs if value is not None]
    names = [str(value.name) for value in (*inputs, *node.outputs)]
    decided = [recipe.tensors[name] for name in names if name in recipe.tensors]
    weight = next((t for t in decided if t.role is Role.WEIGHT), None)
    read = recipe.tensors.get(str(inputs[0].name)) if inputs else None
    elements = next((_elements(v) for v in inputs if weight and v.name == weight.value), 0)
    return LayerRow(
        node=str(node.name),
        op=node.op_type,
        w_bits=weight.params.spec.bits if weight else None,
        a_bits=read.params.spec.bits if read and read.role is not Role.WEIGHT else None,
        sqnr_db=closeness.sqnr_db if closeness else None,
        cosine=closeness.cosine if closeness else None,
        set_by="; ".join(dict.fromkeys(t.set_by for t in decided if t.set_by)),
        weight_bytes=(elements * weight.params.spec.bits + 7) // 8 if weight else 0,
        weight_bytes_float=4 * elements,
    )


def _elements(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0

"""Float model and recipe -> the same model with QuantizeLinear and DequantizeLinear (design D2)."""

import json

import onnx_ir as ir

from onnxptq.errors import ModelError, SpecError
from onnxptq.graph import io
from onnxptq.ops.nodes import is_constant
from onnxptq.ops.op import Fusion
from onnxptq.recipe import Recipe
from onnxptq.rewrite.activations import ActivationWriter
from onnxptq.rewrite.borders import declare
from onnxptq.rewrite.channels import with_channels
from onnxptq.rewrite.layers import LayerWriter
from onnxptq.rewrite.place import lay_out, regions_of
from onnxptq.rewrite.regions import record, weight_of
from onnxptq.rewrite.sheet import (
    DIGEST_KEY,
    FLOAT_NODES_KEY,
    GUARD_KEY,
    STEPS_KEY,
    Sheet,
    real_like,
)
from onnxptq.rewrite.storage import Storage

INT2_OPSET, INT2_IR_VERSION = 25, 13  # onnx PR 7446
PER_CHANNEL_OPSET = 13  # DequantizeLinear-13 got its axis
PACKED_OPSET = 21  # INT4 initializers; BitwiseOr came with 18


def insert_qdq(model: ir.Model, recipe: Recipe, storage: Storage) -> ir.Model:
    """Write the recipe's decisions into a copy of the model.

    Args:
        model: The prepared float model that the recipe was made for, no channels moved.
        recipe: Decisions; every range must have been chosen.
        storage: Layout of the weight codes.

    Returns:
        A model that stock onnxruntime runs in its integer kernels wherever the recipe says so.

    Raises:
        SpecError: The recipe is for another model, a range is still missing, or channels cannot be
            moved (see `with_channels`).
        ModelError: The model's opset could not be raised to one that has per-channel codes.
        ProgramError: A bias cannot be stored (see `weights.bias_codes`).
    """
    found = io.digest(model)
    if recipe.model_digest != found:
        raise SpecError(
            f"the recipe was made for another model (digest {recipe.model_digest[:12]}, this one's "
            f"is {found[:12]}); make a new one with onnxptq quantize --save-recipe"
        )
    undecided = recipe.undecided()
    if undecided:
        raise SpecError(f"the recipe has no range for {', '.join(undecided[:3])}; add a method")
    moved = with_channels(model, recipe)
    written = moved if moved is not model else model.clone()
    if recipe.tensors:
        _write(written, recipe, _possible(storage, io.opset(model)))
        _forget_shapes(written)
    _sign(written, recipe)
    return written


def _possible(storage: Storage, opset: int) -> Storage:
    """The layout that an opset can hold; it is below 21 only where onnx's converter failed."""
    if opset < PER_CHANNEL_OPSET:
        raise ModelError(
            f"the model's opset {opset} has no per-channel DequantizeLinear, and onnx's converter "
            f"could not raise it; export the model again at opset 13 or above"
        )
    return storage if opset >= PACKED_OPSET else Storage("int8")


def _write(model: ir.Model, recipe: Recipe, storage: Storage) -> None:
    layout = lay_out(model, regions_of(model, recipe))
    sheet = Sheet(model.graph)
    layers = LayerWriter(sheet, recipe, storage)
    activations = ActivationWriter(sheet, recipe, layout)
    nodes = list(model.graph)
    for node in nodes:
        if layout.regions.holds(node) and weight_of(node) is not None:
            layers.write(node)
    for name, value in layout.values.items():
        activations.write(name, value)
    for node in nodes:
        if node.graph is not None and not layout.regions.holds(node):
            _guard(sheet, activations, node)
    if recipe.borders:
        declare(model)
    sheet.drop_unused_initializers()


def _forget_shapes(model: ir.Model) -> None:
    """Drop the shapes of inner values: every runtime infers them, and they would be stored."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                value.shape = value.type = None


def _guard(sheet: Sheet, activations: ActivationWriter, node: ir.Node) -> None:
    """Keep onnxruntime from fusing a float node that stands between codes.

    It quantizes a float weight between DQ and Q by itself, per tensor and without a word
    (ort_semantics_and_kernels.md B.2). A Max of one input changes nothing and stops it.
    """
    op = record(node)
    if op is None or op.fusion not in (Fusion.QLINEAR, Fusion.CODES):
        return
    computed = [value for value in node.inputs if value is not None and not is_constant(value)]
    if not computed or not all(map(activations.is_dequantized, computed)):
        return
    for output in node.outputs:
        readers = list(output.uses())
        if any(use.node.op_type == "QuantizeLinear" for use in readers):
            kept = real_like(f"{output.name}_kept_float", output)
            guard = ir.node("Max", [output], outputs=[kept], name=f"{output.name}_Max")
            guard.metadata_props[GUARD_KEY] = "keeps the node before it in float"
            for use in readers:
                use.node.replace_input_with(use.idx, kept)
            sheet.insert_after(output, guard)


def _sign(model: ir.Model, recipe: Recipe) -> None:
    """Leave the provenance in the file: of which model, by which methods, what is in float."""
    props = model.metadata_props
    # A model that `strip` made keeps the digest of the float model it stands for.
    props.setdefault(DIGEST_KEY, recipe.model_digest)
    props[STEPS_KEY] = ",".join(step.method for step in recipe.steps)
    props[FLOAT_NODES_KEY] = json.dumps(dict(sorted(recipe.float_nodes.items())))
    initializers = model.graph.initializers.values()
    if any(value.dtype == ir.DataType.INT2 for value in initializers):
        model.graph.opset_imports[""] = max(INT2_OPSET, model.graph.opset_imports[""])
        model.ir_version = max(INT2_IR_VERSION, model.ir_version)

"""prepare: from any float model to the form that calibration and rewriting work on."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from onnxptq.errors import ModelError
from onnxptq.graph import shapes, verify
from onnxptq.graph.text import where
from onnxptq.passes.average_pool_to_conv import AveragePoolToConv
from onnxptq.passes.average_pool_to_global import AveragePoolToGlobal
from onnxptq.passes.clip_from_min_max import ClipFromMinMax
from onnxptq.passes.edit import is_op
from onnxptq.passes.fix_reshape import FixReshape
from onnxptq.passes.fold_affine import FoldAffine
from onnxptq.passes.fold_batch_norm import META_KEY, FoldBatchNorm, is_training
from onnxptq.passes.fold_constants import FoldConstants
from onnxptq.passes.fold_identity import FoldIdentity
from onnxptq.passes.fold_pad import FoldPad
from onnxptq.passes.gemm_form import GemmForm
from onnxptq.passes.hard_sigmoid import HardSigmoidForm
from onnxptq.passes.lift_constants import LiftConstants
from onnxptq.passes.merge_matmul_bias import MergeMatmulBias
from onnxptq.passes.merge_slices import MergeSlices
from onnxptq.passes.multiply_and_add import MultiplyAndAdd
from onnxptq.passes.names import NameNodes, NameValues
from onnxptq.passes.norm import Norm
from onnxptq.passes.opset import raise_opset
from onnxptq.passes.reduce_mean_to_pool import ReduceMeanToPool
from onnxptq.passes.simplify import needs_simplifying, simplify
from onnxptq.passes.sum_to_add import SumToAdd

_FOLDS: tuple[ir.passes.InPlacePass, ...] = (
    FixReshape(),
    FoldIdentity(),
    ClipFromMinMax(),
    SumToAdd(),
    HardSigmoidForm(),
    MergeSlices(),
    FoldPad(),
    FoldBatchNorm(),
    MergeMatmulBias(),
    GemmForm(),
    FoldAffine(),
    FoldIdentity(),
    ReduceMeanToPool(),
    AveragePoolToGlobal(),
    AveragePoolToConv(),
    MultiplyAndAdd(),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be calibrated.

    Attributes:
        model: Opset 21 (or the model's own above that); names unique; constants are initializers.
        norms: The statistics of each folded BatchNormalization, by the name of the node that it
            was folded into.
        notes: What did not go as usual, for people to read.
    """

    model: ir.Model
    norms: Mapping[str, Norm]
    notes: tuple[str, ...]


def prepare(model: ir.Model, *, simplify_seconds: float = 120.0) -> Prepared:
    """Clean a float model without changing what it computes or its inputs and outputs.

    Model-local functions are inlined, constants become initializers, names become unique, the opset
    is raised to 21, shapes are inferred, onnxsim folds what depends on constants only, and our
    passes fold normalization, padding and arithmetic by constants into the layers. Bodies of If,
    Loop and Scan are converted to the new opset and otherwise left alone.

    Args:
        model: The float model; it is not changed.
        simplify_seconds: Time limit for onnxsim, which has a process of its own; 0 leaves it out.

    Raises:
        ModelError: The model is not valid, or its functions cannot be inlined.
    """
    notes: list[str] = []
    model = _inlined(model.clone())
    _name(model)
    model, note = raise_opset(model)
    notes += [note] if note else []
    _name(model)
    shapes.infer(model)
    _fold_constants(model)
    if simplify_seconds > 0 and needs_simplifying(model):
        model, note = simplify(model, simplify_seconds)
        notes += [note] if note else []
        _name(model)
        shapes.infer(model)
    for fold in _FOLDS:
        fold(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    _name(model)
    shapes.infer(model)
    verify.check(model)
    notes += _training_notes(model)
    return Prepared(model, MappingProxyType(_norms(model)), tuple(notes))


def _fold_constants(model: ir.Model) -> None:
    """Fold what is constant; a target of Reshape that became so may make further shapes known."""
    while FoldConstants()(model).modified | FixReshape()(model).modified:
        RemoveUnusedNodesPass()(model)
        shapes.infer(model)


def _inlined(model: ir.Model) -> ir.Model:
    if not model.functions:
        return model
    try:
        InlinePass()(model)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
        cause = error.__cause__ or error
        raise ModelError(f"model-local functions cannot be inlined: {cause}") from error
    return model


def _name(model: ir.Model) -> None:
    for rename in (LiftConstants(), NameNodes(), NameValues()):
        rename(model)


def _training_notes(model: ir.Model) -> list[str]:
    return [
        f"{where(node)} is in training mode: it stays in float. "
        "Export the model in evaluation mode (model.eval() in torch)"
        for node in model.graph
        if is_op(node, "BatchNormalization") and is_training(node)
    ]


def _norms(model: ir.Model) -> dict[str, Norm]:
    return {
        node.name: node.meta[META_KEY]
        for node in model.graph
        if node.name and META_KEY in node.meta
    }

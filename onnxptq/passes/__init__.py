"""Passes: frozen dataclasses that change a model in place, but not what it computes."""

from typing import Any

import onnx_ir as ir

from onnxptq import spec
from onnxptq.graph import shapes, verify
from onnxptq.passes.average_pool_to_conv import AveragePoolToConv
from onnxptq.passes.average_pool_to_global import AveragePoolToGlobal
from onnxptq.passes.clip_from_min_max import ClipFromMinMax
from onnxptq.passes.fix_reshape import FixReshape
from onnxptq.passes.fold_affine import FoldAffine
from onnxptq.passes.fold_batch_norm import FoldBatchNorm
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
from onnxptq.passes.prepare import Prepared, prepare
from onnxptq.passes.quantized import find_quantized
from onnxptq.passes.reduce_mean_to_pool import ReduceMeanToPool
from onnxptq.passes.sum_to_add import SumToAdd

__all__ = ["PASSES", "Norm", "Prepared", "find_quantized", "prepare", "run"]

PASSES: dict[str, type[Any]] = {
    pass_.name: pass_
    for pass_ in (
        NameNodes,
        NameValues,
        LiftConstants,
        FoldConstants,
        FoldIdentity,
        FixReshape,
        ClipFromMinMax,
        SumToAdd,
        MergeSlices,
        FoldBatchNorm,
        MergeMatmulBias,
        GemmForm,
        FoldAffine,
        FoldPad,
        ReduceMeanToPool,
        AveragePoolToGlobal,
        AveragePoolToConv,
        HardSigmoidForm,
        MultiplyAndAdd,
    )
}


def run(model: ir.Model, text: str, *, check: bool = False) -> ir.Model:
    """Run passes by their text, for example "fold-batch-norm,fold-pad", in place.

    Args:
        model: The model to change.
        text: Comma-separated pass names.
        check: Verify the invariants of `graph.verify` after each pass.

    Raises:
        SpecError: A pass is unknown.
        ModelError: An invariant is broken after a pass.
    """
    for step in spec.parse(text, PASSES, "pass"):
        shapes.infer(model)
        step(model)
        if check:
            verify.check(model)
    return shapes.infer(model)

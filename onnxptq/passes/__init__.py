"""Passes: frozen dataclasses that change a model in place, but not what it computes."""

from typing import Any

import onnx_ir as ir

from onnxptq import spec
from onnxptq.graph import shapes, verify
from onnxptq.passes.fold_batch_norm import FoldBatchNorm
from onnxptq.passes.fold_identity import FoldIdentity
from onnxptq.passes.lift_constants import LiftConstants
from onnxptq.passes.names import NameNodes, NameValues
from onnxptq.passes.norm import Norm
from onnxptq.passes.prepare import Prepared, prepare

__all__ = ["PASSES", "Norm", "Prepared", "prepare", "run"]

PASSES: dict[str, type[Any]] = {
    pass_.name: pass_
    for pass_ in (
        NameNodes,
        NameValues,
        LiftConstants,
        FoldIdentity,
        FoldBatchNorm,
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
    return model

"""What each onnxruntime version can do with our files; measured by benchmarks/ort_versions.py."""

import onnx_ir as ir

from onnxptq.graph import io
from onnxptq.rewrite.storage import FLOOR, INT2_FROM, parse_version

NEEDS = {ir.DataType.INT4: (1, 23, 2), ir.DataType.INT2: INT2_FROM}
"""Type of a weight initializer to the first version that folds its Cast."""
NEWER_OPSETS, MAX_POOL_ON_CODES = (1, 24, 4), (1, 29, 0)
"""First versions tested that run Q/DQ above opset 21, and that fuse its MaxPool."""


def complaints(model: ir.Model, target: str | None) -> tuple[str, ...]:
    """Reasons why `target` would not run the file in its integer kernels; empty if it would.

    Raises:
        SpecError: `target` is not a version.
    """
    if target is None:
        return ()
    version = parse_version(target)
    problems: list[str] = []
    if version < FLOOR:
        problems.append(f"onnxruntime {target} is older than {_text(FLOOR)}, the oldest one tested")
    for dtype, first in NEEDS.items():
        if version < first and any(
            value.dtype == dtype for value in model.graph.initializers.values()
        ):
            problems.append(
                f"weights stored as {dtype.name} need onnxruntime {_text(first)}; "
                f"quantize with --target-ort {target}"
            )
    opset = io.opset(model)
    if opset > 21 and version < NEWER_OPSETS:
        problems.append(f"onnxruntime {target} has no QuantizeLinear of the model's opset {opset}")
    elif opset > 21 and version < MAX_POOL_ON_CODES and _has_max_pool(model):
        problems.append(f"onnxruntime {target} runs MaxPool of opset {opset} in float")
    return tuple(problems)


def _has_max_pool(model: ir.Model) -> bool:
    return any(node.op_type == "MaxPool" for node in model.graph)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))

"""What each onnxruntime version can do with our files; measured by benchmarks/ort_versions.py."""

import onnx_ir as ir

from onnxptq.graph import io
from onnxptq.rewrite.storage import FLOOR, parse_version

NEEDS = {ir.DataType.INT4: (1, 23, 2), ir.DataType.INT2: (1, 24, 4)}
"""Type of a weight initializer to the first version that folds its Cast."""


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
    if opset > 21 and version < (1, 24, 4):
        problems.append(f"the model's opset {opset} is newer than onnxruntime {target} opens")
    return tuple(problems)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))

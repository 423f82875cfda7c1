"""onnxptq: post-training quantization of ONNX models for onnxruntime.

Only names are listed here; a module is imported when one of its names is first used, so that
`import onnxptq` stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxptq.errors import (
        CalibrationError,
        ModelError,
        OnnxptqError,
        ProgramError,
        SpecError,
        UnsupportedOpError,
    )
    from onnxptq.pipeline import Quantized, quantize
    from onnxptq.program import IntegerProgram
    from onnxptq.quant import QParams, QuantSpec
    from onnxptq.recipe import Recipe
    from onnxptq.runtime.execute import Executor

__version__ = "0.1.0"
__all__ = [
    "quantize",
    "Quantized",
    "Recipe",
    "QuantSpec",
    "QParams",
    "IntegerProgram",
    "Executor",
    "OnnxptqError",
    "ModelError",
    "UnsupportedOpError",
    "CalibrationError",
    "SpecError",
    "ProgramError",
]

_HOME = {
    "quantize": "pipeline",
    "Quantized": "pipeline",
    "Recipe": "recipe",
    "QuantSpec": "quant",
    "QParams": "quant",
    "IntegerProgram": "program",
    "Executor": "runtime.execute",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'onnxptq' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"onnxptq.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted([*globals(), *__all__])

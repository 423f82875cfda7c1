"""The way from methods, which need no torch to be named and read, to the engine, which does."""

import importlib
from typing import Protocol

from onnxptq.errors import SpecError
from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.plan import Plan
from onnxptq.recipe import Recipe


class _Engine(Protocol):
    def reconstruct(self, recipe: Recipe, ctx: Context, plan: Plan, set_by: str) -> Recipe: ...


def reconstructed(recipe: Recipe, ctx: Context, plan: Plan, set_by: str) -> Recipe:
    """The recipe with each block's weights, steps and biases learned as the plan says.

    Raises:
        SpecError: torch is not installed.
        CalibrationError: There are no calibration data.
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise SpecError(
            f"{set_by.partition('{')[0]} learns by gradients and needs torch, which cannot be "
            f"imported ({error}): pip install 'onnxptq[torch]', or choose --quality fast"
        ) from error
    engine: _Engine = importlib.import_module("onnxptq.methods.reconstruction.engine")  # type: ignore[assignment]
    return engine.reconstruct(recipe, ctx, plan, set_by)

"""How near to float a recipe's outputs are, on samples that no method learned from."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from onnxptq.calibrate.ports import Array
from onnxptq.methods.method import Context
from onnxptq.recipe import Recipe

Outputs = Mapping[str, Array]


def output_db(recipe: Recipe, ctx: Context) -> float:
    """Signal to noise of the quantized model's outputs, in dB; each output counts alike.

    Args:
        recipe: Decisions, complete.
        ctx: Follows the recipe's channels, and gives the samples: those held out, or all where
            there are too few to hold out.
    """
    data = ctx.held_out or ctx.batches
    assert data is not None
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    expected = ctx.float_outputs(data)
    for real, found in zip(expected, ctx.quantized_outputs(recipe, data), strict=True):
        for name in _real_numbers(real):
            wide = real[name].astype(np.float64)
            signal[name] = signal.get(name, 0.0) + float(np.square(wide).sum())
            noise[name] = noise.get(name, 0.0) + float(np.square(wide - found[name]).sum())
    shares = [noise[name] / max(signal[name], 1e-300) for name in signal]
    share = sum(shares) / max(len(shares), 1)
    return -10 * math.log10(max(share, 1e-30)) if math.isfinite(share) else -math.inf


def is_judged_later(ctx: Context) -> bool:
    """Whether a method behind is undone where the held-out samples are no nearer to float by it.

    What has learned from them before would hardly ever be beaten there.
    """
    return any(getattr(method, "judged_on_held_out", False) for method in ctx.later)


def float_distance(expected: Iterable[Outputs], found: Iterable[Outputs]) -> float:
    """Largest difference of an output between two float models, relative to its largest number.

    NaN where one of them gives NaN.
    """
    largest: dict[str, float] = {}
    differs: dict[str, float] = {}
    for real, other in zip(expected, found, strict=True):
        for name in _real_numbers(real):
            size = float(np.abs(real[name]).max(initial=0.0))
            gap = float(np.abs(real[name] - other[name]).max(initial=0.0))
            largest[name] = max(largest.get(name, 0.0), size)
            # numpy's maximum keeps NaN, Python's max may not.
            differs[name] = float(np.maximum(differs.get(name, 0.0), gap))
    shares = [differs[name] / max(largest[name], 1e-30) for name in largest]
    return float(np.max(shares, initial=0.0))


def _real_numbers(outputs: Outputs) -> list[str]:
    return [name for name, array in outputs.items() if np.issubdtype(array.dtype, np.floating)]

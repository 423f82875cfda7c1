"""What the activation methods share: which tensors get a range, and what happens to empty ones."""

from collections.abc import Callable

from onnxptq.calibrate.stats import TensorStats
from onnxptq.errors import CalibrationError
from onnxptq.methods.method import Context
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant

Choose = Callable[[TensorStats, QuantSpec], QParams]


def set_activations(recipe: Recipe, ctx: Context, choose: Choose, set_by: str) -> Recipe:
    """Give every free activation the parameters that `choose` finds in its statistics.

    Constants are covered exactly; an activation that was always 0 gets scale 1 and a warning.

    Raises:
        CalibrationError: A value has no statistics, or a network input was always 0.
    """
    return set_each(recipe, ctx, lambda _: choose, set_by)


def set_each(
    recipe: Recipe, ctx: Context, choose_for: Callable[[str], Choose], set_by: str
) -> Recipe:
    """`set_activations` where the way to choose depends on the value's name.

    Raises:
        CalibrationError: As `set_activations`.
    """
    params: dict[str, QParams] = {}
    for tensor in recipe.activations():
        if tensor.value not in ctx.stats:
            raise CalibrationError(
                f"value {tensor.value!r} was not measured in calibration; "
                f"add it to the values to tap"
            )
        params[tensor.value] = _params(
            tensor, ctx.stats[tensor.value], ctx, choose_for(tensor.value)
        )
    return recipe.with_params(params, set_by)


def _params(tensor: TensorQuant, stats: TensorStats, ctx: Context, choose: Choose) -> QParams:
    spec = tensor.params.spec
    if stats.count and not stats.min == stats.max == 0.0:
        if stats.min == stats.max:
            return QParams.from_range(min(stats.min, 0.0), max(stats.max, 0.0), spec)
        return choose(stats, spec)
    found = "0.0" if stats.count else "empty"
    message = f"value {tensor.value!r} was {found} in all {stats.samples} samples: no range to fit"
    if tensor.role is Role.INPUT:
        raise CalibrationError(
            f"{message}. Check the preprocessing (--preprocess, or this model in zoo.toml)"
        )
    ctx.progress.warn(f"{message}; it gets scale 1")
    return QParams.unit(spec)

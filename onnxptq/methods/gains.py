"""What each method brought, on the samples held out."""

from dataclasses import replace

from onnxptq.calibrate.progress import Quiet
from onnxptq.methods.held_out import output_db
from onnxptq.methods.method import Context
from onnxptq.methods.minmax import MinMax
from onnxptq.methods.ready import ready
from onnxptq.methods.weights import WeightsMinMax
from onnxptq.recipe import Recipe

HELD_OUT_DB = "held_out_db"


class Gains:
    """Follows the outputs' signal to noise on the held-out samples from method to method.

    What is undecided counts as `minmax` and `weights-minmax` would decide it. Where no samples are
    held out, nothing is measured.
    """

    def __init__(self, recipe: Recipe, ctx: Context) -> None:
        self._db = _held_out_db(recipe, ctx)

    def after(self, recipe: Recipe, ctx: Context) -> dict[str, float]:
        """What a method brought, in dB, as numbers for its step.

        Args:
            recipe: With its decisions.
            ctx: The context of any recipe before.
        """
        db = _held_out_db(recipe, ctx)
        if db is None or self._db is None:
            return {}
        gain, self._db = db - self._db, db
        return {HELD_OUT_DB: db, "gain_db": round(gain, 2)}

    def resume(self, recipe: Recipe) -> None:
        """Go on behind a method whose recipe, with the numbers of its step, was kept."""
        self._db = recipe.steps[-1].numbers.get(HELD_OUT_DB)


def _held_out_db(recipe: Recipe, ctx: Context) -> float | None:
    if ctx.held_out is None:
        return None
    ctx = replace(ctx, progress=Quiet()).following(recipe)
    # Rounded here, so that gains are the same whether a recipe was just made or kept.
    return round(output_db(ready(recipe, ctx, (MinMax(), WeightsMinMax())), ctx), 2)

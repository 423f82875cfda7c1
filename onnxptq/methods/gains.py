"""What each method brought, on the samples held out."""

from dataclasses import replace

from onnxptq.calibrate.progress import Quiet
from onnxptq.methods.held_out import output_db
from onnxptq.methods.method import Context
from onnxptq.methods.minmax import MinMax
from onnxptq.methods.ready import ready
from onnxptq.methods.weights import WeightsMinMax
from onnxptq.recipe import Recipe


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
        return {"held_out_db": round(db, 2), "gain_db": round(gain, 2)}


def _held_out_db(recipe: Recipe, ctx: Context) -> float | None:
    if ctx.held_out is None:
        return None
    ctx = replace(ctx, progress=Quiet()).following(recipe)
    return output_db(ready(recipe, ctx, (MinMax(), WeightsMinMax())), ctx)

"""A small network that blocks are learned on, and what methods work with."""

import numpy as np
import onnx_ir as ir

from onnxptq.calibrate.model import calibrate
from onnxptq.calibrate.run import CollectOptions
from onnxptq.calibrate.source import Taken
from onnxptq.methods import apply
from onnxptq.methods.method import Context
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from tests.small_models import from_text

SAMPLES = 32
BODY = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w1, b1) d = Relu(c)
    e = Conv<pads = [1, 1, 1, 1]>(d, w2, b2) f = Add(e, b) h = Relu(f)
    i = Conv<pads = [1, 1, 1, 1]>(h, w3, b3) j = Relu(i)
    k = GlobalAveragePool(j) l = Flatten(k) y = Gemm(l, w4)
"""
TEXT = "g (float[N, 3, 6, 6] x) => (float[N, 5] y) {" + BODY + "}"
WEIGHTS = {
    "w0": (6, 3, 3, 3),
    "b0": (6,),
    "w1": (6, 6, 3, 3),
    "b1": (6,),
    "w2": (6, 6, 3, 3),
    "b2": (6,),
    "w3": (6, 6, 3, 3),
    "b3": (6,),
    "w4": (6, 5),
}


def network(rng: np.random.Generator) -> ir.Model:
    return from_text(TEXT, rng, WEIGHTS)


def data_of(rng: np.random.Generator, name: str, shape: tuple[int, ...] = (3, 6, 6)) -> Taken:
    feeds = [{"x": rng.normal(size=(1, *shape)).astype(np.float32)} for _ in range(SAMPLES)]
    return Taken(feeds, None, SAMPLES, name)


def context(
    model: ir.Model, rng: np.random.Generator, shape: tuple[int, ...] = (3, 6, 6)
) -> tuple[Recipe, Context]:
    """A recipe at W3A3, ranges and rounding chosen, and where methods work on it."""
    placing = Placing(bits="w3a3")
    data = data_of(rng, "calibration", shape)
    recipe, stats = calibrate(model, place(model, placing), data, placing, CollectOptions())
    ctx = Context(model, stats, data, data_of(rng, "held out", shape))
    return apply(recipe, "mse,weights-mse", ctx), ctx

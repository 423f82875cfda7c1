"""provable-scales: read back from the graph that onnxruntime runs, and what it leaves alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxptq import demo_data, methods, ort, quantize
from onnxptq.errors import SpecError
from onnxptq.formulas import global_average_scale, requant_scale
from onnxptq.methods.method import Context
from onnxptq.methods.provable_scales import ProvableScales
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe
from onnxptq.requant import provable
from onnxptq.rewrite.weights import bias_codes, fit_scales
from tests.cpus import needs_vnni
from tests.small_models import array_of, feeds_for, from_text, placed, proto_from_text

Array = npt.NDArray[Any]

NET = """
net (float[N, 3, 12, 12] x) => (float[N, 10] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  b = Conv <pads = [1, 1, 1, 1]> (ar, w1, b1)
  s = Add (b, ar)
  c = Conv <group = 32, strides = [2, 2]> (s, w2)
  cr = Clip (c, zero, six)
  d = Conv (cr, w3, b3)
  g = GlobalAveragePool (d)
  f = Flatten (g)
  h = Gemm <transB = 1> (f, w4, b4)
  hr = Relu (h)
  y = MatMul (hr, w5)
}
"""
NET_WITHOUT_CLIP = NET.replace("Clip (c, zero, six)", "Relu (c)")
WEIGHTS = {
    "w0": (32, 3, 3, 3),
    "b0": (32,),
    "w1": (32, 32, 3, 3),
    "b1": (32,),
    "w2": (32, 1, 3, 3),
    "w3": (48, 32, 1, 1),
    "b3": (48,),
    "w4": (40, 48),
    "b4": (40,),
    "w5": (40, 10),
}

BIASED = """
biased (float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {
  a = Conv (x, w0, b0)
  ar = Relu (a)
  y = Conv (ar, w1)
}
"""

TWO_LAYERS = """
two (float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {
  a = Conv (x, w0, b0)
  ar = Relu (a)
  b = Conv (ar, w0, b0)
  br = Relu (b)
  y = Conv (br, w1)
}
"""


def net(rng: np.random.Generator) -> onnx.ModelProto:
    model = proto_from_text(NET, rng, WEIGHTS)
    for name, number in (("zero", 0.0), ("six", 6.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    return model


def requantizations(model: ir.Model) -> Iterator[tuple[str, Array, int]]:
    """Node, scale [C] and zero point of every layer with codes as output, as onnxruntime has it."""
    graph = ort.optimized(model).graph
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL  # weights: not asked for here
    }
    places = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
    for node in graph.node:
        first = places.get(node.op_type)
        if first is None or len(node.input) <= first or not node.input[first]:
            continue
        x, weight, y = (constants[node.input[i]] for i in (1, 4, first))
        zero_point = int(constants[node.input[first + 1]].reshape(-1)[0])
        yield node.op_type, requant_scale(x, weight, y).reshape(-1), zero_point


def shares(model: ir.Model) -> list[float]:
    """Of each layer with codes as output: how many of its channels are provable."""
    return [
        float(provable(scale, zero, 0, 255).mean()) for _, scale, zero in requantizations(model)
    ]


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w2a8"])
def test_every_channel_of_a_network_is_provable(bits: str, rng: np.random.Generator):
    images = rng.normal(size=(8, 3, 12, 12)).astype(np.float32)

    result = quantize(net(rng), {"x": images}, bits=bits)

    kinds = [kind for kind, _, _ in requantizations(result.model)]
    assert sorted(kinds) == ["QGemm", *["QLinearConv"] * 4]
    assert shares(result.model) == [1.0] * 5


@pytest.mark.parametrize(
    "options", [{}, {"method": "minmax,weights-minmax"}, {"per_channel": False}]
)
def test_every_channel_of_the_demo_is_provable(options: dict[str, Any]):
    images, _, _ = demo_data.load()

    result = quantize(demo_data.model_path(), {demo_data.INPUT_NAME: images[:64]}, **options)

    found = shares(result.model)
    assert len(found) > 1
    assert set(found) == {1.0}


def test_without_it_some_channels_are_not(rng: np.random.Generator):
    """Else the tests above would say nothing."""
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))

    nudged = methods.apply(recipe, "provable-scales", Context(model, {}))

    assert all_provable(nudged)
    assert not all_provable(recipe)


def all_provable(recipe: Recipe) -> bool:
    outputs = {"w0": ("x", "ar"), "w1": ("ar", "b"), "w2": ("s", "cr"), "w3": ("cr", "d")}
    tensors = recipe.tensors
    return all(
        provable(
            requant_scale(
                tensors[x].params.scale, tensors[weight].params.scale, tensors[y].params.scale
            ).reshape(-1),
            int(tensors[y].params.zero_point),
            0,
            255,
        ).all()
        for weight, (x, y) in outputs.items()
    )


def test_scales_move_by_at_most_a_thousandth_and_nothing_else_does(rng: np.random.Generator):
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))

    nudged = methods.apply(recipe, "provable-scales", Context(model, {}))

    moved = 0
    for name, before in recipe.tensors.items():
        after = nudged.tensors[name]
        change = np.abs(after.params.scale / before.params.scale.astype(np.float64) - 1)
        assert float(change.max()) <= (1e-3 + 1e-6 if name in WEIGHTS else 0)
        assert replace(after, params=before.params) == before
        moved += int((change > 0).sum())
    channels = sum(tensor.params.scale.size for tensor in recipe.weights())
    assert 0 < moved < channels / 2
    assert nudged.steps[-1].method == "provable-scales"


def test_a_second_time_changes_nothing(rng: np.random.Generator):
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))
    once = methods.apply(recipe, "provable-scales", Context(model, {}))

    twice = methods.apply(once, "provable-scales", Context(model, {}))

    assert all(twice.tensors[name] is tensor for name, tensor in once.tensors.items())


@needs_vnni
def test_a_weight_of_two_layers_serves_both(rng: np.random.Generator):
    weights = {"w0": (8, 8, 1, 1), "b0": (8,), "w1": (4, 8, 1, 1)}
    images = rng.normal(size=(8, 8, 5, 5)).astype(np.float32)

    result = quantize(proto_from_text(TWO_LAYERS, rng, weights), {"x": images})

    assert shares(result.model) == [1.0] * 3


def test_stored_bias_codes_keep_their_scale(rng: np.random.Generator):
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))
    free = methods.apply(recipe, "provable-scales", Context(model, {}))
    pairs = [("w0", "b0"), ("w1", "b1"), ("w3", "b3")]
    weight, bias = next(pair for pair in pairs if is_changed(recipe, free, pair[0]))
    codes = {bias: np.zeros(array_of(model, bias).shape, np.int32)}

    nudged = methods.apply(replace(recipe, codes=codes), "provable-scales", Context(model, {}))

    assert not is_changed(recipe, nudged, weight)
    assert any(is_changed(recipe, nudged, name) for name, _ in pairs if name != weight)


def test_stored_weight_codes_stay_while_their_scale_is_nudged(rng: np.random.Generator):
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))
    free = methods.apply(recipe, "provable-scales", Context(model, {}))
    name = next(n for n in WEIGHTS if n in free.tensors and is_changed(recipe, free, n))
    codes = {name: recipe.tensors[name].params.quantize(array_of(model, name))}

    nudged = methods.apply(replace(recipe, codes=codes), "provable-scales", Context(model, {}))

    np.testing.assert_array_equal(nudged.codes[name], codes[name])
    np.testing.assert_array_equal(
        nudged.tensors[name].params.scale, free.tensors[name].params.scale
    )


def is_changed(before: Recipe, after: Recipe, name: str) -> bool:
    return after.tensors[name] is not before.tensors[name]


def test_room_for_the_bias_stays(rng: np.random.Generator):
    """Weights far smaller than the bias: their scale is at its lower bound already."""
    weights = {"w0": (64, 8, 1, 1), "b0": (64,), "w1": (4, 64, 1, 1)}
    model = from_text(BIASED, rng, weights)
    small = array_of(model, "w0") * np.float32(1e-8)
    small[::4] = 0
    model.graph.initializers["w0"].const_value = ir.tensor(small, name="w0")
    recipe = placed(model, feeds_for(model, rng))

    nudged = methods.apply(recipe, "provable-scales", Context(model, {}))

    before, after = (r.tensors["w0"].params.scale for r in (recipe, nudged))
    assert (after >= before).all()
    refitted = fit_scales(model, nudged).tensors["w0"].params.scale
    assert (refitted <= after).all()


def test_tiny_weights_are_provable_where_they_reach(rng: np.random.Generator):
    """Codes 10^5 accumulators apart: no form holds for all of int32, but few codes can occur.

    The channels that stay open have hundreds of steps at accumulators that float32 rounds.
    """
    weights = {"w0": (64, 8, 5, 5), "b0": (64,), "w1": (4, 64, 1, 1)}
    model = from_text(BIASED.replace("[N, 4, 5, 5]", "[N, 4, 1, 1]"), rng, weights)
    factors = (10.0 ** rng.uniform(-3, -1.5, (64, 1, 1, 1))).astype(np.float32)
    small = array_of(model, "w0") * factors
    model.graph.initializers["w0"].const_value = ir.tensor(small, name="w0")
    recipe = placed(model, feeds_for(model, rng))

    nudged = methods.apply(recipe, "provable-scales", Context(model, {}))

    before, after = (provable_in_reach(model, r).mean() for r in (recipe, nudged))
    assert before < 0.6
    assert after > 0.85


def provable_in_reach(model: ir.Model, recipe: Recipe) -> Array:
    """Of each channel of w0, on the accumulators that its codes and its bias allow."""
    x, weight, y = (recipe.tensors[name].params for name in ("x", "w0", "ar"))
    codes = weight.quantize(array_of(model, "w0")).astype(np.int64).reshape(64, -1)
    bias = bias_codes(array_of(model, "b0"), x, weight, model.graph.node(0)).codes
    ends = np.array([-x.zero_point, 255 - x.zero_point])
    products = codes[:, :, None] * ends
    low = bias + products.min(axis=2).sum(axis=1)
    high = bias + products.max(axis=2).sum(axis=1)
    scale = requant_scale(x.scale, weight.scale, y.scale)
    return provable(scale, int(y.zero_point), 0, 255, low, high)


def test_no_nudge_changes_nothing(rng: np.random.Generator):
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))

    still = methods.apply(recipe, "provable-scales{nudge=0.0}", Context(model, {}))

    assert all(still.tensors[name] is tensor for name, tensor in recipe.tensors.items())


def test_scales_without_a_usable_product_are_left_alone(rng: np.random.Generator):
    model = from_text(NET_WITHOUT_CLIP, rng, WEIGHTS)
    recipe = placed(model, feeds_for(model, rng))
    x: QParams = recipe.tensors["x"].params
    recipe = recipe.with_params({"x": x.with_scale(np.float32(3e38))}, "test")
    recipe = recipe.with_params(
        {"w0": recipe.tensors["w0"].params.with_scale(np.full(32, 3e38))}, "test"
    )

    nudged = methods.apply(recipe, "provable-scales", Context(model, {}))

    assert not is_changed(recipe, nudged, "w0")


@pytest.mark.parametrize("nudge", [-1e-3, 0.2, float("nan")])
def test_an_absurd_nudge_is_refused(nudge: float):
    with pytest.raises(SpecError, match=r"provable-scales: nudge is .*, it must be 0 to 0\.1"):
        ProvableScales(nudge)


def test_the_scale_behind_a_global_average_is_provable(rng: np.random.Generator):
    body = """n (float[1, 4, 12, 24] x) => (float[1, 4] y) {
      a = GlobalAveragePool (x)
      f = Flatten (a)
      y = MatMul (f, w)
    }"""
    model = from_text(body, rng, {"w": (4, 4)})
    recipe = placed(model, feeds_for(model, rng))
    x, y = recipe.tensors["x"].params, recipe.tensors["a"].params
    while averages_are_provable(x, y):
        y = y.with_scale(x.scale * rng.uniform(0.3, 1))
    recipe = recipe.with_params({"f": y}, "test")  # they are tied

    nudged = methods.apply(recipe, "provable-scales", Context(model, {}))

    after = nudged.tensors["a"]
    assert averages_are_provable(x, after.params)
    assert abs(after.params.scale / y.scale - 1) <= 1.001e-3
    assert nudged.tensors["f"].params.scale == after.params.scale
    assert after.set_by == "test"


def averages_are_provable(x: QParams, y: QParams) -> bool:
    """On all sums of 12 x 24 codes."""
    zero = int(x.zero_point)
    ends = np.array([-288 * zero]), np.array([288 * (255 - zero)])
    scale = global_average_scale(x.scale, y.scale, 288).reshape(1)
    return bool(provable(scale, int(y.zero_point), 0, 255, *ends)[0])

"""Channels divided out by one layer and multiplied in by the next: equal outputs, or a refusal."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.errors import SpecError
from onnxptq.graph import io, verify
from onnxptq.recipe import Recipe
from onnxptq.rewrite.channels import same_channels, with_channels
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.segments import find_segments
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.strip import strip
from tests.small_models import array_of, feeds_for, from_text, placed, sqnr_db, with_ranges

Array = npt.NDArray[Any]
Shapes = dict[str, tuple[int, ...]]

CLOSE = 1e-5
"""Relative to the largest output: a few float32 roundings in sums of up to 300 products."""

HEAD = "net (float[N, 3, 8, 8] x) => (float[N, M, H, W] y) {"
FLAT = "net (float[N, 3, 8, 8] x) => (float[N, M] y) {"

NETS: dict[str, tuple[str, Shapes, tuple[str, ...]]] = {
    "conv, relu, conv": (
        f"""{HEAD}
          a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
          r = Relu (a)
          y = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
        }}""",
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (4, 6, 3, 3), "b1": (4,)},
        ("r",),
    ),
    "depthwise triple": (
        f"""{HEAD}
          a = Conv (x, w0, b0)
          r = Relu (a)
          d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, w1, b1)
          s = Relu (d)
          y = Conv (s, w2)
        }}""",
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (6, 1, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1)},
        ("r", "s"),
    ),
    "groups": (
        f"""{HEAD}
          a = Conv (x, w0)
          r = LeakyRelu <alpha = 0.1> (a)
          g = Conv <group = 2> (r, w1, b1)
          s = PRelu (g, p)
          y = Conv <group = 4> (s, w2)
        }}""",
        {
            "w0": (6, 3, 1, 1), "w1": (8, 3, 1, 1), "b1": (8,), "p": (8, 1, 1),
            "w2": (4, 2, 1, 1),
        },
        ("r", "s"),
    ),
    "pools and moves": (
        f"""{HEAD}
          a = Conv (x, w0, b0)
          m = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], strides = [2, 2]> (a)
          r = Relu (m)
          v = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (r)
          t = Transpose <perm = [0, 1, 3, 2]> (v)
          y = Conv (t, w1)
        }}""",
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (4, 6, 1, 1)},
        ("t",),
    ),
    "two readers and a shape": (
        f"""{HEAD}
          a = Conv (x, w0, b0)
          r = Relu (a)
          b = Conv (r, w1)
          m = MaxPool <kernel_shape = [1, 1]> (r)
          c = Conv (m, w2)
          y = Add (b, c)
        }}""",
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (4, 6, 1, 1), "w2": (4, 6, 1, 1)},
        ("a",),
    ),
    "transposed convolution": (
        f"""{HEAD}
          a = Conv (x, w0, b0)
          r = Relu (a)
          t = ConvTranspose <group = 2, strides = [2, 2]> (r, w1, b1)
          s = Relu (t)
          y = Conv (s, w2)
        }}""",
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (6, 4, 2, 2), "b1": (8,), "w2": (4, 8, 1, 1)},
        ("r", "s"),
    ),
    "gemms and a flatten": (
        f"""{FLAT}
          a = Conv <strides = [2, 2]> (x, w0, b0)
          r = Relu (a)
          f = Flatten (r)
          g = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (f, w1, b1)
          h = Relu (g)
          i = Gemm (h, w2, b2)
          j = Relu (i)
          y = MatMul (j, w3)
        }}""",
        {
            "w0": (6, 3, 2, 2), "b0": (6,), "w1": (10, 96), "b1": (10,), "w2": (10, 7), "b2": (7,),
            "w3": (7, 5),
        },
        ("f", "h", "j"),
    ),
    "global pool and a flatten": (
        f"""{FLAT}
          a = Conv (x, w0, b0)
          r = Relu (a)
          g = GlobalAveragePool (r)
          f = Flatten (g)
          y = Gemm <transB = 1> (f, w1, b1)
        }}""",
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (4, 6), "b1": (4,)},
        ("f",),
    ),
}  # fmt: skip


def net_of(name: str, rng: np.random.Generator) -> tuple[ir.Model, tuple[str, ...]]:
    text, shapes, values = NETS[name]
    return from_text(text, rng, shapes), values


def random_scales(model: ir.Model, rng: np.random.Generator) -> dict[str, Array]:
    found, _ = find_segments(model)
    return {
        segment.name: np.exp(rng.normal(size=segment.channels)).astype(np.float32)
        for segment in found
    }


def assert_equal_outputs(first: ir.Model, second: ir.Model, feeds: dict[str, Array]) -> None:
    expected, found = (ort.session(model).run(feeds)["y"] for model in (first, second))
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE * np.abs(expected).max())


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_the_same_with_any_scales(name: str, rng: np.random.Generator):
    model, values = net_of(name, rng)
    found, _ = find_segments(model)
    scales = {
        value: np.exp(rng.normal(size=segment.channels)).astype(np.float32)
        for value, segment in zip(values, found, strict=True)
    }

    moved = with_channels(model, Recipe("", channel_scales=scales))

    verify.check(moved)
    assert_equal_outputs(model, moved, feeds_for(model, rng))


@pytest.mark.parametrize("name", NETS)
def test_every_value_behind_a_layer_is_divided(name: str, rng: np.random.Generator):
    model, _ = net_of(name, rng)
    scales = random_scales(model, rng)
    makers = {str(s.maker.outputs[0].name): scales[s.name] for s in find_segments(model)[0]}
    feeds = feeds_for(model, rng)

    moved = with_channels(model, Recipe("", channel_scales=scales))

    before, after = (ort.session(ort.with_outputs(m, list(makers))) for m in (model, moved))
    for value, scale in makers.items():
        expected = np.moveaxis(before.run(feeds, [value])[value], 1, -1) / scale
        found = np.moveaxis(after.run(feeds, [value])[value], 1, -1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE * np.abs(expected).max())


def test_a_shift_is_added_and_taken_off_again(rng: np.random.Generator):
    """No Relu in between, and a first layer without bias, which gets one."""
    text = f"{HEAD} a = Conv (x, w0) y = Conv <group = 2> (a, w1, b1) }}"
    model = from_text(text, rng, {"w0": (6, 3, 3, 3), "w1": (4, 3, 3, 3), "b1": (4,)})
    scale = np.exp(rng.normal(size=6)).astype(np.float32)
    shift = rng.normal(size=6).astype(np.float32)
    feeds = feeds_for(model, rng)

    moved = with_channels(
        model, Recipe("", channel_scales={"a": scale}, channel_shifts={"a": shift})
    )

    assert_equal_outputs(model, moved, feeds)
    before, after = (
        ort.session(ort.with_outputs(m, ["a"])).run(feeds)["a"] for m in (model, moved)
    )
    expected = np.moveaxis(before, 1, -1) / scale + shift
    np.testing.assert_allclose(np.moveaxis(after, 1, -1), expected, rtol=0, atol=CLOSE * 10)


def test_what_lies_above_0_is_absorbed_behind_a_relu(rng: np.random.Generator):
    text = f"{FLAT} a = Conv (x, w0, b0) r = Relu (a) f = Flatten (r) y = Gemm (f, w1, b1) }}"
    shapes = {"w0": (6, 3, 8, 8), "b0": (6,), "w1": (6, 4), "b1": (4,)}
    model = from_text(text, rng, shapes)
    bias = model.graph.initializers["b0"]
    bias.const_value = ir.tensor(np.full(6, 50.0, np.float32), name="b0")
    feeds = feeds_for(model, rng)
    lowest = ort.session(ort.with_outputs(model, ["a"])).run(feeds)["a"].min()

    shift = np.full(6, -lowest / 2, np.float32)
    moved = with_channels(model, Recipe("", channel_shifts={"f": shift}))

    assert lowest > 0
    assert_equal_outputs(model, moved, feeds)
    np.testing.assert_allclose(array_of(moved, "b0"), 50 - lowest / 2, rtol=1e-6)


def test_a_bias_that_others_share_is_left_to_them(rng: np.random.Generator):
    text = f"{HEAD} a = Conv (x, w0, b) r = Relu (a) c = Conv (r, w1, b) y = Relu (c) }}"
    model = from_text(text, rng, {"w0": (6, 3, 1, 1), "w1": (6, 6, 1, 1), "b": (6,)})
    scale = np.exp(rng.normal(size=6)).astype(np.float32)

    moved = with_channels(model, Recipe("", channel_scales={"r": scale}))

    assert_equal_outputs(model, moved, feeds_for(model, rng))


def test_the_model_is_not_changed_and_without_entries_not_copied(rng: np.random.Generator):
    model, _ = net_of("depthwise triple", rng)
    before = io.to_bytes(model)

    with_channels(model, Recipe("", channel_scales=random_scales(model, rng)))

    assert io.to_bytes(model) == before
    assert with_channels(model, Recipe("")) is model


def test_recipes_are_compared_by_what_they_move():
    first = Recipe("a", channel_scales={"v": np.ones(2, np.float32)})
    second = Recipe("b", channel_scales={"v": np.ones(2, np.float32)})
    third = Recipe("b", channel_scales={"v": np.full(2, 2, np.float32)})

    assert same_channels(first, second)
    assert not same_channels(first, third)
    assert not same_channels(first, Recipe("a"))


REFUSALS: dict[str, tuple[str, str]] = {
    "a = Conv (x, w) s = Add (a, x) y = Conv (s, w2)": ("s", r"\(Add, .* other input would"),
    "a = Conv (x, w) s = Add (a, x) y = Conv (s, w3) ": ("a", r"\(Add, .* other input would"),
    "y = Conv (x, w)": ("y", "'y' is an output of the model"),
    "a = Conv (x, w) r = Relu (a) b = Conv (r, w2) y = Concat <axis = 1> (r, b)": (
        "r", r"\(Concat, .* other inputs would",
    ),
    "a = Conv (x, w) c = Clip (a, lo, hi) y = Conv (c, w2)": ("c", r"\(Clip, .* do not scale"),
    "a = Conv (x, w) c = Sigmoid (a) y = Conv (c, w2)": ("a", r"\(Sigmoid, .* no Conv, Gemm or"),
    "r = Relu (x) y = Conv (r, w2)": ("r", "no layer makes it"),
    "a = Conv (x, w) b = Conv (a, w2) y = Conv (b, w2)": ("a", "shares its weight 'w2'"),
    "a = Conv (x, w2) b = Conv (a, w2) y = Conv (b, w)": ("a", "shares its weight 'w2'"),
    "a = Conv (x, w) y = Conv (w4, a)": ("a", "no Conv, Gemm or MatMul with a weight of its own"),
    "a = Conv (x, w) t = Transpose <perm = [0, 2, 1, 3]> (a) y = Conv (t, w5)": (
        "a", r"\(Transpose, .* mixes channels",
    ),
    "a = Conv (x, w) t = DepthToSpace <blocksize = 2> (a) y = Conv (t, w6)": (
        "a", r"\(DepthToSpace, .* passes no factor on",
    ),
    "a = Conv (x, w) y = MatMul (a, w7)": ("a", "along the last of several axes"),
}  # fmt: skip

REFUSAL_WEIGHTS: Shapes = {
    "w": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1), "w4": (1, 4, 8, 8),
    "w5": (4, 8, 1, 1), "w6": (4, 1, 1, 1), "w7": (8, 4),
}  # fmt: skip


def refusal_net(body: str, rng: np.random.Generator) -> ir.Model:
    limits = "lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> ()"
    text = f"net (float[2, 4, 8, 8] x) => (float[A, B, C, D] y) {{ {limits} {body} }}"
    used = {name: shape for name, shape in REFUSAL_WEIGHTS.items() if f"{name})" in body}
    used |= {"w4": REFUSAL_WEIGHTS["w4"]} if "w4" in body else {}
    used |= {"w2": REFUSAL_WEIGHTS["w2"]} if "w2" in body else {}
    return from_text(text, rng, used)


@pytest.mark.parametrize("body", REFUSALS)
def test_what_cannot_be_exact_is_refused(body: str, rng: np.random.Generator):
    value, message = REFUSALS[body]
    model = refusal_net(body, rng)
    recipe = Recipe("", channel_scales={value: np.ones(4, np.float32)})

    with pytest.raises(SpecError, match=rf"value '{value}': its channels cannot .*{message}"):
        with_channels(model, recipe)
    assert value not in {str(v.name) for s in find_segments(model)[0] for v in s.values}


SHIFT_REFUSALS: dict[str, tuple[float, str]] = {
    "a = Conv (x, w) r = Relu (a) y = Conv (r, w2)": (1.0, r"shifted up: .*\(Relu, "),
    "a = Conv (x, w) r = LeakyRelu (a) y = Conv (r, w2)": (1.0, r"shifted up: .*\(LeakyRelu, "),
    "a = Conv (x, w) y = Conv <pads = [1, 1, 1, 1]> (a, w2)": (-1.0, r"\(Conv, .* pads with zeros"),
    "a = Conv (x, w) y = Conv <auto_pad = \"SAME_UPPER\"> (a, w2)": (-1.0, "pads with zeros"),
    "a = Conv (x, w) p = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (a)"
    " y = Conv (p, w2)": (-1.0, r"\(AveragePool, .* pads with zeros"),
    "a = Conv (x, w) y = ConvTranspose (a, w2)": (-1.0, r"\(ConvTranspose, .* pads with zeros"),
}  # fmt: skip


@pytest.mark.parametrize("body", SHIFT_REFUSALS)
def test_a_shift_that_cannot_be_exact_is_refused_but_a_scale_is_not(
    body: str, rng: np.random.Generator
):
    number, message = SHIFT_REFUSALS[body]
    model = refusal_net(body, rng)
    shift = {"a": np.full(4, number, np.float32)}

    with pytest.raises(SpecError, match=rf"value 'a': its channels cannot be {message}|{message}"):
        with_channels(model, Recipe("", channel_shifts=shift))
    with_channels(model, Recipe("", channel_scales={"a": np.full(4, 2, np.float32)}))


def test_a_layer_without_bias_is_not_shifted(rng: np.random.Generator):
    text = "net (float[N, 4] x) => (float[N, 3] y) { a = MatMul (x, w) y = Gemm (a, w1, b) }"
    model = from_text(text, rng, {"w": (4, 5), "w1": (5, 3), "b": (3,)})

    with pytest.raises(SpecError, match=r"value 'a': .*\(MatMul, opset 21\) has no bias"):
        with_channels(model, Recipe("", channel_shifts={"a": np.ones(5, np.float32)}))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"r": [1.0, -1.0, 1, 1, 1, 1]}, "channel scale -1 is not above 0"),
        ({"r": [1.0, 0.0, 1, 1, 1, 1]}, "channel scale 0 is not above 0"),
        ({"r": [1.0, np.inf, 1, 1, 1, 1]}, "expected 6 finite numbers"),
        ({"r": [1.0] * 5}, r"shape \[5\], expected 6 finite numbers, one a channel"),
        ({"q": [1.0] * 6}, "value 'q': the model has none of that name"),
        ({"r": [1.0] * 6, "a": [1.0] * 6}, "value 'r': .* by the entry 'a' already"),
    ],
)
def test_malformed_entries_are_refused(
    scales: dict[str, list[float]], message: str, rng: np.random.Generator
):
    model, _ = net_of("conv, relu, conv", rng)
    given = {name: np.asarray(numbers, np.float32) for name, numbers in scales.items()}

    with pytest.raises(SpecError, match=message):
        with_channels(model, Recipe("", channel_scales=given))


def test_a_written_model_has_its_channels_moved_and_comes_back_so(rng: np.random.Generator):
    text, shapes, _ = NETS["depthwise triple"]
    model = from_text(text.replace("M, H, W", "4, 8, 8"), rng, shapes)
    feeds = feeds_for(model, rng, batch=16)
    scales = random_scales(model, rng)
    bare = Recipe("", channel_scales=scales)
    moved = with_channels(model, bare)
    recipe = with_ranges(moved, placed(model, feeds), feeds)
    recipe = Recipe(recipe.model_digest, recipe.tensors, recipe.float_nodes, channel_scales=scales)

    written = insert_qdq(model, recipe, Storage("packed"))

    expected = ort.session(model).run(feeds)["y"]
    assert sqnr_db(expected, ort.session(written).run(feeds)["y"]) > 25
    stripped, found = strip(written)
    assert found.channel_scales == {}
    assert io.to_bytes(insert_qdq(stripped, found, Storage("packed"))) == io.to_bytes(written)
    assert sqnr_db(array_of(moved, "w1"), array_of(stripped, "w1")) > 25


def test_channels_of_another_model_are_refused_before_they_are_moved(rng: np.random.Generator):
    model, _ = net_of("depthwise triple", rng)
    recipe = Recipe("0" * 64, channel_scales={"none": np.ones(6, np.float32)})

    with pytest.raises(SpecError, match="the recipe was made for another model"):
        insert_qdq(model, recipe, Storage("int8"))

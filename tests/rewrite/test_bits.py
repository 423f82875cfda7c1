"""How many bits each tensor gets, where paths part and meet, and what is tied to what."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.errors import SpecError
from onnxptq.rewrite.options import Placing, Widths
from onnxptq.rewrite.place import place
from tests.small_models import from_text

BRANCHES = """
branches (float[N, 4, 8, 8] x) => (float[N, 3, 8, 8] y, float[N, 2, 8, 8] z) {
  a = Conv (x, w1)
  ar = Relu (a)
  b = Conv (x, w2)
  br = Relu (b)
  s = Add (ar, br)
  c = Conv (s, w3)
  cr = Relu (c)
  y = Conv (cr, w4)
  z = Conv (cr, w5)
}
"""
BRANCH_WEIGHTS = {
    "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1), "w4": (3, 4, 1, 1),
    "w5": (2, 4, 1, 1),
}  # fmt: skip


def bits_of(model: ir.Model, placing: Placing) -> dict[str, int]:
    recipe = place(model, placing)
    return {name: tensor.params.spec.bits for name, tensor in recipe.tensors.items()}


def ties_of(model: ir.Model) -> dict[str, str | None]:
    return {t.value: t.tied_to for t in place(model, Placing()).tensors.values()}


@pytest.fixture
def branches(rng: np.random.Generator) -> ir.Model:
    return from_text(BRANCHES, rng, BRANCH_WEIGHTS)


def test_every_first_and_every_last_layer_keeps_8_bits(branches: ir.Model):
    assert bits_of(branches, Placing(bits="w4a4")) == {
        "x": 8, "w1": 8, "w2": 8, "ar": 8, "br": 8, "s": 4, "w3": 4, "cr": 8, "w4": 8, "w5": 8,
        "y": 8, "z": 8,
    }  # fmt: skip


def test_without_exceptions_all_that_layers_read_is_low(branches: ir.Model):
    assert bits_of(branches, Placing(bits="w4a4", keep_first_last=False)) == {
        "x": 4, "w1": 4, "w2": 4, "ar": 8, "br": 8, "s": 4, "w3": 4, "cr": 4, "w4": 4, "w5": 4,
        "y": 8, "z": 8,
    }  # fmt: skip


def test_the_second_input_is_what_the_first_layers_make(branches: ir.Model):
    found = bits_of(branches, Placing(bits="w4a4", second_input_8=True))

    assert found["s"] == 8
    assert found["w3"] == 4


def test_a_single_layer_is_first_and_last(rng: np.random.Generator):
    model = from_text("one (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", rng,
                      {"w": (4, 3)})  # fmt: skip

    assert bits_of(model, Placing(bits="w2a2")) == {"x": 8, "w": 8}
    assert bits_of(model, Placing(bits="w2a2", keep_first_last=False)) == {"x": 2, "w": 2}


@pytest.mark.parametrize(
    ("layer_bits", "expected"),
    [
        (("w3=w2",), {"w3": 2, "s": 8}),
        (("s=a3",), {"w3": 8, "s": 3}),
        (("Conv=w5a6",), {"w1": 5, "w3": 5, "w5": 5, "x": 8, "s": 6, "cr": 6}),
        (("x=a6",), {"x": 6}),
        (("w*=w4", "w3=w7"), {"w1": 4, "w3": 7, "w5": 4}),
        (("w3=w7", "w*=w4"), {"w3": 4}),
    ],
)
def test_what_is_asked_for_by_name_wins_and_the_last_entry_wins(
    layer_bits: tuple[str, ...], expected: dict[str, int], branches: ir.Model
):
    found = bits_of(branches, Placing(layer_bits=layer_bits))

    assert {name: found[name] for name in expected} == expected


def test_an_activation_gets_what_its_most_demanding_reader_asks_for(branches: ir.Model):
    by_output = {str(node.outputs[0].name): str(node.name) for node in branches.graph}
    entries = (f"{by_output['y']}=a3", f"{by_output['z']}=a5")

    assert bits_of(branches, Placing(layer_bits=entries))["cr"] == 5


@pytest.mark.parametrize(
    ("text", "widths"),
    [("w8a8", Widths(8, 8)), ("w2", Widths(2, None)), ("a3", Widths(None, 3))],
)
def test_widths_are_read(text: str, widths: Widths):
    assert Widths.parse(text) == widths


@pytest.mark.parametrize("text", ["", "8", "a4w4", "w4 a4", "W4A4", "w4a4x", "w-4"])
def test_what_is_no_width_is_refused(text: str):
    with pytest.raises(SpecError, match="expected a text like w8a8, w4a8, w4 or a4"):
        Widths.parse(text)


@pytest.mark.parametrize("text", ["w1", "a9", "w0a8", "w16a16"])
def test_widths_out_of_range_are_refused(text: str):
    with pytest.raises(SpecError, match="a tensor takes 2 to 8 bits"):
        Widths.parse(text)


def test_a_part_that_is_left_out_is_8():
    assert Placing(bits="w4").widths() == Widths(4, 8)
    assert Placing(bits="a4").widths() == Widths(8, 4)


def test_an_add_is_tied_to_nothing(branches: ir.Model):
    assert set(ties_of(branches).values()) == {None}


def test_what_data_movers_and_pools_make_shares_parameters_with_what_they_read(
    rng: np.random.Generator,
):
    model = from_text(
        """moves (float[N, 4, 8, 8] x) => (float[N, 3, 8] y) {
          a = Conv (x, w1)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
          t = Transpose <perm = [0, 1, 3, 2]> (p)
          shape = Constant <value_ints = [0, 4, 16]> ()
          r = Reshape (t, shape)
          y = Conv (r, w2)
        }""".replace("float[N, 3, 8] y", "float[N, 3, 16] y"),
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1)},
    )

    ties = ties_of(model)

    assert len({ties[name] or name for name in ("a", "p", "t", "r")}) == 1
    assert ties["x"] is ties["y"] is None


CONCAT = """
fire (float[1, 4, 6, 6] x) => (float[1, 3, 6, 6] y) {{
  a = Conv (x, w1)
  ar = Relu (a)
  b = Conv (x, w2)
  br = Relu (b)
  c = Concat <axis = 1> (ar, br)
  d = Conv (c, w3)
  {last}
}}
"""
CONCAT_WEIGHTS = {
    "w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1), "w3": (3, 7, 1, 1), "w4": (3, 3, 1, 1),
    "w5": (3, 4, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("last", "tied"),
    [
        ("y = Conv (d, w4)", {"ar": "c", "br": "c"}),
        ("e = Conv (br, w4)\n y = Add (d, e)", {"ar": "c", "br": None}),
        ("e = Conv (ar, w5)\n f = Conv (br, w4)\n g = Add (e, f)\n y = Add (d, g)",
         {"ar": None, "br": None}),
    ],
)  # fmt: skip
def test_a_concat_input_that_others_read_keeps_its_own_scale(
    last: str, tied: dict[str, str | None], rng: np.random.Generator
):
    model = from_text(CONCAT.format(last=last), rng, CONCAT_WEIGHTS)

    ties = ties_of(model)

    assert {name: ties[name] for name in ("ar", "br")} == tied
    assert ties["c"] is None


def test_concats_behind_each_other_share_one_scale_where_nobody_else_reads(
    rng: np.random.Generator,
):
    model = from_text(
        """dense (float[1, 4, 6, 6] x) => (float[1, 3, 6, 6] y) {
          a = Conv (x, w)
          b = Conv (x, w)
          c = Concat <axis = 1> (a, b)
          d = Conv (x, w)
          e = Concat <axis = 1> (c, d)
          y = Conv (e, w3)
        }""",
        rng,
        {"w": (4, 4, 1, 1), "w3": (3, 12, 1, 1)},
    )

    ties = ties_of(model)

    assert len({ties[name] or name for name in "abcde"}) == 1

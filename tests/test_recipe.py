"""Recipes survive text exactly, say what is wrong with a file, and never change in place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxptq.errors import SpecError
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import FORMAT, Recipe, Role, Step, TensorQuant

F32 = npt.NDArray[np.float32]

SCALES = hnp.arrays(
    np.float32,
    st.integers(1, 6),
    elements=st.floats(2.0**-149, 2.0**127, width=32, allow_subnormal=True),
)


def tensor(
    name: str, role: Role = Role.ACTIVATION, tied_to: str | None = None, **spec: Any
) -> TensorQuant:
    choices: dict[str, Any] = {"bits": 8, "signed": role is Role.WEIGHT, **spec}
    return TensorQuant(name, role, QParams.unit(QuantSpec(**choices)), tied_to)


def recipe_of(*tensors: TensorQuant) -> Recipe:
    return Recipe("digest", {entry.value: entry for entry in tensors})


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        model_digest="0123",
        tensors={
            "x": tensor("x", Role.INPUT),
            "p": tensor("p", tied_to="x"),
            "w": tensor("w", Role.WEIGHT, bits=4),
        },
        float_nodes={"Exp_0": "onnxruntime has no integer kernel for Exp"},
        codes={"w": np.array([[-8, 7], [0, 1]], np.int8)},
        biases={"b": np.array([0.1, -2.5], np.float32)},
        channel_scales={"p": np.array([0.1, 4.0], np.float32)},
        channel_shifts={"p": np.array([0.0, -0.3], np.float32)},
        steps=(Step("minmax", 3, 1.5, {"tensors": 2.0}),),
    )


def test_a_recipe_is_the_same_after_a_round_through_text(recipe: Recipe):
    found = Recipe.from_json(recipe.to_json())

    assert found.to_json() == recipe.to_json()
    assert found.model_digest == "0123"
    assert found.float_nodes == recipe.float_nodes
    assert {name: (t.role, t.tied_to, t.params.spec) for name, t in found.tensors.items()} == {
        name: (t.role, t.tied_to, t.params.spec) for name, t in recipe.tensors.items()
    }
    np.testing.assert_array_equal(found.codes["w"], recipe.codes["w"])
    assert found.codes["w"].dtype == np.int8
    np.testing.assert_array_equal(found.biases["b"], recipe.biases["b"])
    np.testing.assert_array_equal(found.channel_scales["p"], recipe.channel_scales["p"])
    np.testing.assert_array_equal(found.channel_shifts["p"], recipe.channel_shifts["p"])


@given(scale=SCALES)
def test_scales_are_exact_after_a_round_through_text(scale: F32):
    spec = QuantSpec(8, signed=True, axis=0)
    zero = np.zeros(scale.shape, np.int32)
    entry = TensorQuant("w", Role.WEIGHT, QParams(spec, scale, zero, zero - 127), None, "by hand")

    found = Recipe.from_json(recipe_of(entry).to_json()).tensors["w"].params.scale

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), scale.view(np.int32))


@given(bias=hnp.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32)))
def test_biases_are_exact_after_a_round_through_text(bias: F32):
    found = Recipe.from_json(Recipe("digest", biases={"b": bias}).to_json()).biases["b"]

    np.testing.assert_array_equal(found, bias)


@pytest.mark.parametrize("field", ["channel_scales", "channel_shifts"])
@given(numbers=hnp.arrays(np.float32, st.integers(1, 6), elements=st.floats(width=32)))
def test_channels_are_exact_after_a_round_through_text(field: str, numbers: F32):
    recipe = Recipe("digest", **{field: {"v": numbers}})  # type: ignore[arg-type]

    found = getattr(Recipe.from_json(recipe.to_json()), field)["v"]

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers)


def test_a_file_from_before_there_were_channels_is_read(recipe: Recipe):
    data = json.loads(recipe.to_json())
    del data["channel_scales"], data["channel_shifts"]

    found = Recipe.from_json(json.dumps(data))

    assert (dict(found.channel_scales), dict(found.channel_shifts)) == ({}, {})


def test_a_recipe_that_moves_no_channels_says_nothing_of_it():
    assert "channel" not in Recipe("digest").to_json()


@given(
    zero_point=hnp.arrays(np.int32, st.integers(1, 5), elements=st.integers(0, 255)),
    code_lo=st.integers(0, 255),
)
def test_zero_points_and_windows_are_exact_after_a_round_through_text(
    zero_point: npt.NDArray[np.int32], code_lo: int
):
    spec = QuantSpec(8, signed=False, axis=1)
    scale = np.ones(zero_point.shape, np.float32)
    params = QParams(spec, scale, zero_point, np.full_like(zero_point, code_lo))

    entry = TensorQuant("x", Role.ACTIVATION, params)
    found = Recipe.from_json(recipe_of(entry).to_json()).tensors["x"].params

    np.testing.assert_array_equal(found.zero_point, zero_point)
    np.testing.assert_array_equal(found.code_lo, params.code_lo)


def test_equal_decisions_in_another_order_give_equal_text():
    x, y = tensor("x"), tensor("y")

    assert recipe_of(x, y).to_json() == recipe_of(y, x).to_json()


def test_each_entry_has_a_line_of_its_own(recipe: Recipe):
    lines = recipe.to_json().splitlines()

    assert sum(line.startswith('    "') for line in lines) == 3 + 1 + 1 + 1 + 1 + 1


def test_time_is_left_out_of_the_text(recipe: Recipe):
    assert "seconds" not in recipe.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"net\.json: not a recipe \(JSONDecodeError"),
        ("{", r"net\.json: not a recipe \(JSONDecodeError"),
        ("[]", r"net\.json: not a recipe"),
        ("{}", rf"net\.json: not a recipe \(format is None, not '{FORMAT}'\)"),
        ('{"format": "onnxptq.recipe/9"}', "format is 'onnxptq.recipe/9'"),
        (json.dumps({"format": FORMAT}), r"not a recipe \(KeyError: 'model_digest'\)"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "net.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SpecError, match=message):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bits", 9),
        ("bits", None),
        ("role", "wait"),
        ("scale", "large"),
        ("zero_point", "none"),
        ("code_lo", [1, 2, 3]),
    ],
)
def test_a_malformed_entry_is_refused(key: str, value: object, recipe: Recipe):
    data = json.loads(recipe.to_json())
    data["tensors"]["x"][key] = value

    with pytest.raises(SpecError, match=r"recipe: not a recipe|bits is 9"):
        Recipe.from_json(json.dumps(data))


@pytest.mark.parametrize("key", ["bits", "signed", "role", "scale", "zero_point", "code_lo"])
def test_a_missing_part_is_named(key: str, recipe: Recipe):
    data = json.loads(recipe.to_json())
    del data["tensors"]["x"][key]

    with pytest.raises(SpecError, match=rf"recipe: not a recipe \(KeyError: '{key}'\)"):
        Recipe.from_json(json.dumps(data))


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path):
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(SpecError, match=r"none\.json: cannot read the recipe"):
        Recipe.load(tmp_path / "none.json")
    with pytest.raises(SpecError, match=r"binary\.json: cannot read the recipe"):
        Recipe.load(binary)


def test_a_new_range_reaches_what_is_tied_and_leaves_the_old_recipe_alone(recipe: Recipe):
    before = recipe.to_json()

    changed = recipe.with_range("x", -1.0, 1.0, "by hand")

    assert changed.tensors["p"].params is changed.tensors["x"].params
    assert changed.tensors["p"].set_by == "by hand"
    assert changed.tensors["w"] is recipe.tensors["w"]
    assert recipe.to_json() == before


def test_a_value_that_is_not_in_the_recipe_is_refused(recipe: Recipe):
    unit = QParams.unit(QuantSpec(8, signed=False))

    with pytest.raises(SpecError, match="value 'q' is not quantized in this recipe"):
        recipe.with_params({"q": unit}, "by hand")


def test_a_recipe_knows_what_is_free_and_what_is_undecided(recipe: Recipe):
    assert [t.value for t in recipe.activations()] == ["x"]
    assert [t.value for t in recipe.weights()] == ["w"]
    assert recipe.undecided() == ("p", "w", "x")
    assert recipe.with_range("x", -1.0, 1.0, "by hand").undecided() == ("w",)


def test_steps_are_remembered_in_order(recipe: Recipe):
    assert [s.method for s in recipe.with_step(Step("mse")).steps] == ["minmax", "mse"]

"""Every choice is checked before any work begins, and says what is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxptq.errors import SpecError
from onnxptq.methods import QUALITIES
from onnxptq.rewrite.options import Widths
from onnxptq.settings import Settings


def test_the_default_is_eight_bits_with_the_default_methods():
    settings = Settings()

    assert settings.placing().widths() == Widths(8, 8)
    assert settings.methods() == QUALITIES["fast"]
    assert settings.layout().kind == "packed"


def test_texts_stand_for_paths_and_for_lists_of_one():
    settings = Settings.of(
        {"recipe": "a.json", "stats": "b.npz", "float_patterns": "Conv", "layer_bits": ["w=w4"]}
    )

    assert settings.recipe == Path("a.json")
    assert settings.stats == Path("b.npz")
    assert settings.float_patterns == ("Conv",)
    assert settings.layer_bits == ("w=w4",)


def test_numbers_of_numpy_are_numbers():
    assert Settings.of({"samples": np.int64(7)}).samples == 7


def test_none_is_taken_where_the_field_may_be_none():
    settings = Settings.of({"recipe": None, "samples": None, "method": None})

    assert settings == Settings()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bits": 8}, "bits is 8; expected a text"),
        ({"bits": None}, "bits is None; expected a text"),
        ({"method": 3}, "method is 3; expected a text"),
        ({"recipe": 3}, "recipe is 3; expected a path"),
        ({"samples": 2.5}, r"samples is 2\.5; expected a whole number"),
        ({"samples": True}, "samples is True; expected a whole number"),
        ({"samples": "8"}, "samples is '8'; expected a whole number"),
        ({"keep_first_last": 1}, "keep_first_last is 1; expected True or False"),
        ({"float_patterns": (1,)}, r"float_patterns is \(1,\); expected a list of texts"),
        ({"layer_bits": None}, "layer_bits is None; expected a list of texts"),
        ({"jobs": 0}, "jobs is 0; at least 1 is needed"),
        ({"batch_size": 0}, "batch_size is 0; at least 1 is needed"),
        ({"report_samples": -1}, "report_samples is -1; at least 0 is needed"),
        ({"bits": "w1a8"}, "2 to 8 bits, not 1"),
        ({"layer_bits": ("conv=x4",)}, "expected a text like w8a8"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(option: dict[str, Any], message: str):
    with pytest.raises(SpecError, match=message):
        Settings.of(option)


@pytest.mark.parametrize(
    ("name", "nearest"), [("bit", "bits"), ("float_pattern", "float_patterns"), ("sead", "seed")]
)
def test_an_unknown_option_is_refused_with_the_nearest(name: str, nearest: str):
    with pytest.raises(SpecError, match=rf"unknown option of quantize '{name}'.*mean {nearest}\?"):
        Settings.of({name: 1})


def test_what_a_recipe_has_decided_is_known_to_be_ignored():
    changed = {"bits": "w4a8", "method": "minmax", "storage": "int8"}

    assert Settings.of({"recipe": "r.json", **changed}).ignored() == ("bits", "method")
    assert Settings.of(changed).ignored() == ()


@pytest.mark.parametrize(
    ("bits", "learned"),
    [("w8a8", "qdrop"), ("w4a4", "qdrop"), ("w4a3", "aquant"), ("w2", "aquant")],
)
def test_the_best_methods_depend_on_the_fewest_bits(bits: str, learned: str):
    assert f",{learned}" in Settings(bits=bits, quality="best").methods()


def test_bits_of_single_layers_count_for_the_best_methods():
    settings = Settings(bits="w8a8", layer_bits=("conv2=w2",), quality="best")

    assert ",aquant" in settings.methods()


def test_iterations_are_those_of_all_methods_that_learn():
    settings = Settings(method="mse,weights-mse,qdrop{scales=true},finetune", iterations=8)

    assert settings.methods() == (
        "mse,weights-mse,qdrop{iterations=8,scales=true},finetune{iterations=4}"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 7}, "--iterations needs a method that learns by gradients"),
        ({"iterations": 0, "quality": "best"}, "iterations is 0; at least 1 is needed"),
    ],
)
def test_iterations_that_nobody_takes_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(SpecError, match=message):
        Settings(**options)

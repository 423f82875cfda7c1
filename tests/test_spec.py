"""One spelling for methods and passes, and errors that say what was meant."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq.errors import SpecError
from onnxptq.methods import METHODS
from onnxptq.spec import parse, to_text, unknown


@dataclass(frozen=True)
class Clip:
    name: ClassVar[str] = "clip"
    law: Literal["gauss", "laplace"] = "gauss"
    percent: float = 99.9
    bins: int = 128
    both_ends: bool = False
    limit: int | None = None
    label: str = "a"


@dataclass(frozen=True)
class Round:
    name: ClassVar[str] = "round-off"


TABLE: dict[str, type[Any]] = {"clip": Clip, "round-off": Round}

CLIPS = st.builds(
    Clip,
    law=st.sampled_from(["gauss", "laplace"]),
    percent=st.floats(allow_nan=False, allow_infinity=False),
    bins=st.integers(),
    both_ends=st.booleans(),
    limit=st.none() | st.integers(),
    label=st.text("abcXYZ019.:/-", min_size=1),
)


@given(items=st.lists(CLIPS | st.just(Round())))
def test_what_is_written_is_read_again(items: list[Clip | Round]):
    text = ",".join(map(to_text, items))

    assert parse(text, TABLE, "method") == tuple(items)


def test_defaults_are_left_out_of_the_text():
    assert to_text(Clip()) == "clip"
    assert to_text(Clip(both_ends=True, bins=7)) == "clip{bins=7,both-ends=true}"


@pytest.mark.parametrize("text", ["clip,round-off", " clip , round-off ", "clip{},round-off{ }"])
def test_spaces_and_empty_braces_do_not_matter(text: str):
    assert parse(text, TABLE, "method") == (Clip(), Round())


def test_no_text_is_no_item():
    assert parse("", TABLE, "method") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clap", r"unknown method 'clap': it must be one of clip, round-off; did you mean clip\?"),
        ("xyz", r"unknown method 'xyz': it must be one of clip, round-off$"),
        ("clip{bin=3}", r"unknown option of clip 'bin': .*did you mean bins\?"),
        ("clip{bins}", r"unknown option of clip 'bins'"),
        ("round-off{bins=3}", "unknown option of round-off 'bins'"),
        ("clip{bins=3.5}", r"clip\{bins=3\.5\}: bins must be a whole number, not '3\.5'"),
        ("clip{percent=high}", "percent must be a number, not 'high'"),
        ("clip{both-ends=yes}", "both-ends must be false or true, not 'yes'"),
        ("clip{law=gaus}", r"law must be gauss or laplace, not 'gaus'; did you mean gauss\?"),
        ("clip round-off", "expected a comma before 'round-off'"),
        ("clip{bins=3", "expected a comma before '{bins=3'"),
        ("clip,,round-off", "expected a method, as name{option=value}, at ',round-off'"),
        (",clip", "expected a method, as name{option=value}, at ',clip'"),
        ("7", "expected a method"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str):
    with pytest.raises(SpecError, match=message):
        parse(text, TABLE, "method")


def test_none_is_none_where_the_field_may_be_none():
    assert parse("clip{limit=none}", TABLE, "method") == (Clip(),)
    assert parse("clip{limit=4}", TABLE, "method") == (Clip(limit=4),)


def test_an_unknown_name_lists_the_known_ones_in_order():
    assert str(unknown("pass", "fold", ["z", "fold-pad", "a"])) == (
        "unknown pass 'fold': it must be one of a, fold-pad, z; did you mean fold-pad?"
    )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_spelling_that_is_read_again(name: str):
    method = METHODS[name]()

    assert parse(to_text(method), METHODS, "method") == (method,)

"""Text and frozen dataclasses: "aciq{clip=laplace},minmax" <-> (Aciq(clip="laplace"), MinMax()).

One spelling serves command line, recipes, logs and reports. An unknown name or option is refused
with the known ones.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from onnxptq.errors import SpecError

_ITEM = re.compile(r"\s*(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*")


def unknown(what: str, name: str, known: Iterable[str]) -> SpecError:
    """The one "unknown name" error: what was asked for, what exists, what was meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return SpecError(f"unknown {what} {name!r}: it must be one of {', '.join(names)}{hint}")


def parse(text: str, table: Mapping[str, type[Any]], what: str) -> tuple[Any, ...]:
    """Read a comma-separated list of `name{option=value,...}` into the table's dataclasses.

    Args:
        text: The list, for example "minmax,mse{p=2.4}".
        table: Name to frozen dataclass.
        what: What the names are, for the error message ("method", "pass").

    Raises:
        SpecError: A name or an option is unknown, or a value does not fit its field's type.
    """
    instances: list[Any] = []
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None:
            raise SpecError(
                f"{text!r}: expected a {what}, as name{{option=value}}, at {text[position:]!r}"
            )
        name = match["name"]
        if name not in table:
            raise unknown(what, name, table)
        instances.append(_build(table[name], name, match["options"] or ""))
        position = match.end()
        if position < len(text):
            if text[position] != ",":
                raise SpecError(f"{text!r}: expected a comma before {text[position:]!r}")
            position += 1
            if not text[position:].strip():
                raise SpecError(f"{text!r}: expected a {what} behind the last comma")
    return tuple(instances)


def to_text(instance: Any) -> str:
    """The text from which `parse` makes an equal instance; defaults are left out."""
    options: list[str] = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value != field.default:
            options.append(f"{field.name.replace('_', '-')}={_value_text(value)}")
    return instance.name + ("{" + ",".join(options) + "}" if options else "")


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _build(cls: type[Any], name: str, options: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for option in filter(None, (part.strip() for part in options.split(","))):
        key, equals, text = (part.strip() for part in option.partition("="))
        attribute = key.replace("-", "_")
        if attribute not in fields or not equals:
            raise unknown(f"option of {name}", key, (known.replace("_", "-") for known in fields))
        values[attribute] = convert(text, hints[attribute], f"{name}{{{option}}}: {key}")
    return cls(**values)


def convert(text: str, hint: Any, where: str) -> Any:
    """Turn option text into the type of its field: bool, int, float, str, Literal, or None.

    Raises:
        SpecError: The text does not fit; the message starts with `where`.
    """
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _choose(text, [str(choice) for choice in typing.get_args(hint)], where)
    if origin in (typing.Union, types.UnionType):
        if text == "none":
            return None
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return convert(text, inner[0], where)
    if hint is bool:
        return _choose(text, ["false", "true"], where) == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise SpecError(f"{where} must be {kind}, not {text!r}") from None
    return text


def _choose(text: str, choices: list[str], where: str) -> str:
    if text in choices:
        return text
    close = difflib.get_close_matches(text, choices, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise SpecError(
        f"{where} must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}{hint}"
    )

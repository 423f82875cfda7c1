"""What the user may say about placement: bit widths and float nodes, by name or type pattern."""

import difflib
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxptq.errors import SpecError

_WIDTHS = re.compile(r"(?:w(?P<weight>\d+))?(?:a(?P<activation>\d+))?")


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits of weights and of activations; None leaves one of them as it was."""

    weight: int | None
    activation: int | None

    @classmethod
    def parse(cls, text: str) -> "Widths":
        """Read "w4a8", "w4" or "a8".

        Raises:
            SpecError: Not of that form, or a width is not 2 to 8.
        """
        match = _WIDTHS.fullmatch(text)
        if match is None or not text:
            raise SpecError(f"bits {text!r}: expected a text like w8a8, w4a8, w4 or a4")
        widths = [None if group is None else int(group) for group in match.groups()]
        for bits in widths:
            if bits is not None and not 2 <= bits <= 8:
                raise SpecError(f"bits {text!r}: a tensor takes 2 to 8 bits, not {bits}")
        return cls(*widths)


@dataclass(frozen=True, slots=True)
class Placing:
    """Choices that `place` follows.

    Attributes:
        bits: Widths of all layers, for example "w8a8".
        layer_bits: "PATTERN=w4a8" entries; the last one that matches a node, its operator type,
            one of its values or its weight wins over `bits` and over the first-and-last rule.
        float_patterns: Nodes or operator types that stay in float.
        keep_first_last: 8 bits for network input, first and last weights, and the last layer's
        input. second_input_8: 8 bits for the first layer's output as well (the convention of
        BRECQ).
        per_channel: One weight scale per output channel; False for one per tensor.
    """

    bits: str = "w8a8"
    layer_bits: tuple[str, ...] = ()
    float_patterns: tuple[str, ...] = ()
    keep_first_last: bool = True
    second_input_8: bool = False
    per_channel: bool = True

    def widths(self) -> Widths:
        """The default widths; a part that `bits` leaves out is 8.

        Raises:
            SpecError: `bits` is malformed.
        """
        widths = Widths.parse(self.bits)
        return Widths(widths.weight or 8, widths.activation or 8)

    def fewest_bits(self) -> int:
        """The fewest that any weight or activation may have.

        Raises:
            SpecError: `bits` or an entry of `layer_bits` is malformed.
        """
        every = [self.widths(), *(widths for _, widths in self.overrides())]
        return min(bits for w in every for bits in (w.weight, w.activation) if bits is not None)

    def overrides(self) -> tuple[tuple[str, Widths], ...]:
        """`layer_bits` taken apart.

        Raises:
            SpecError: An entry has no "=" or bad widths.
        """
        entries: list[tuple[str, Widths]] = []
        for entry in self.layer_bits:
            pattern, equals, bits = entry.rpartition("=")
            if not equals or not pattern:
                raise SpecError(f"layer bits {entry!r}: expected PATTERN=w4a8")
            entries.append((pattern, Widths.parse(bits)))
        return tuple(entries)


def matches(pattern: str, names: Iterable[str | None]) -> bool:
    """Whether a shell-style pattern matches one of the names (case matters)."""
    return any(name is not None and fnmatch.fnmatchcase(name, pattern) for name in names)


def check_patterns(model: ir.Model, placing: Placing) -> None:
    """Refuse a pattern that matches nothing: a typo would silently change the result.

    Raises:
        SpecError: A pattern names no node, operator type, value or weight of the model.
    """
    nodes = list(model.graph)
    names = {str(node.name) for node in nodes} | {node.op_type for node in nodes}
    values = {str(value.name) for node in nodes for value in (*node.inputs, *node.outputs) if value}
    for pattern in placing.float_patterns:
        if not matches(pattern, names):
            raise SpecError(
                f"float pattern {pattern!r} matches no node name and no operator type"
                + _nearest(pattern, names)
            )
    for pattern, _ in placing.overrides():
        if not matches(pattern, names | values):
            raise SpecError(
                f"layer bits pattern {pattern!r} matches no node, operator type or value"
                + _nearest(pattern, names | values)
            )


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """What the user may have meant, or how to see what there is."""
    close = difflib.get_close_matches(pattern, sorted(names), n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return "; onnxptq lint shows the names, and * stands for any text"

"""Segments: what lies between one layer and the next ones, where a factor a channel passes through.

Such a factor can be divided out by the layer that makes a value and multiplied in by those that
read it: the network computes the same.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.graph.text import where
from onnxptq.ops.nodes import (
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_constant,
    rank,
    string_attribute,
)
from onnxptq.passes.affine import LINEAR
from onnxptq.passes.edit import is_op, static_dims

RECTIFIERS = ("Relu", "LeakyRelu", "PRelu")
"""The identity above 0, and positively homogeneous."""

_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_PASSING = ("Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_MEASURES = ("Shape", "Size")
"""They read how large a value is, not what it holds."""

_WHY = {
    "Clip": "its bounds do not scale along",
    "Add": "its other input would have to be scaled too",
    "Concat": "its other inputs would have to be scaled too",
}


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer that reads a segment.

    Attributes:
        layer: Conv, ConvTranspose, Gemm or MatMul with a weight of its own.
        repeat: How many inputs of the layer one channel is: more than 1 behind a Flatten.
    """

    layer: ir.Node
    repeat: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The values between layers that must be scaled together, and those layers.

    Attributes:
        maker: The layer that makes the first value.
        channels: How many it makes.
        values: All values, from the maker's output on.
        passed: The nodes in between, in the same order; none of them has weights.
        readers: The layers that read one of the values.
    """

    maker: ir.Node
    channels: int
    values: tuple[ir.Value, ...]
    passed: tuple[ir.Node, ...]
    readers: tuple[Reader, ...]

    @property
    def name(self) -> str:
        """Name of the first value that a layer reads, under which a recipe has the segment."""
        layers = {id(reader.layer) for reader in self.readers}
        read = (v for v in self.values if any(id(use.node) in layers for use in v.uses()))
        return str(next(read).name)

    @property
    def rectified(self) -> bool:
        """Whether negative values do not pass as they are."""
        return any(node.op_type in RECTIFIERS for node in self.passed)


def segment_of(value: ir.Value) -> Segment:
    """The segment that a value belongs to.

    Raises:
        SpecError: A factor a channel cannot be taken out and put back exactly; says why.
    """
    search = _Search(str(value.name))
    return search.down(search.maker(value))


def find_segments(model: ir.Model) -> tuple[list[Segment], list[str]]:
    """All segments in the order of their makers, and why there is none behind the other layers."""
    found: list[Segment] = []
    reasons: list[str] = []
    for node in model.graph:
        if not _is_layer(node):
            continue
        try:
            found.append(segment_of(node.outputs[0]))
        except SpecError as error:
            reasons.append(str(error))
    return found, reasons


class _Search:
    """One walk through the graph, from a value that somebody asked for."""

    def __init__(self, asked: str) -> None:
        self._asked = asked

    def _refuse(self, reason: str) -> NoReturn:
        raise SpecError(f"value {self._asked!r}: its channels cannot be scaled: {reason}")

    def maker(self, value: ir.Value) -> ir.Node:
        while True:
            node = value.producer()
            if node is None:
                self._refuse("no layer makes it")
            if _is_layer(node):
                return node
            self._check(node)
            source = node.inputs[0]
            assert source is not None
            value = source

    def down(self, maker: ir.Node) -> Segment:
        self._require_own_weight(maker)
        output = maker.outputs[0]
        if is_op(maker, "MatMul") and rank(output) != 2:
            self._refuse(f"{where(maker)} has its channels on the last of several axes")
        channels = _outputs(maker)
        values: list[ir.Value] = []
        passed: list[ir.Node] = []
        readers: list[Reader] = []
        pending = [(output, 1)]
        while pending:
            value, repeat = pending.pop(0)
            values.append(value)
            for node, position in self._uses(value, maker):
                if _is_layer(node):
                    readers.append(self._reader(node, position, channels * repeat, repeat))
                else:
                    passed.append(node)
                    pending.append((node.outputs[0], self._passes(node, position, repeat)))
        if not readers:
            self._refuse("no layer reads it")
        return Segment(maker, channels, tuple(values), tuple(passed), tuple(readers))

    def _uses(self, value: ir.Value, maker: ir.Node) -> Iterator[tuple[ir.Node, int]]:
        if value.is_graph_output():
            self._refuse(f"{value.name!r} is an output of the model")
        for use in value.uses():
            if use.node.graph is not maker.graph:
                self._refuse(f"{where(use.node)} reads {value.name!r} inside of a body")
            if not is_op(use.node, *_MEASURES):
                yield use.node, use.idx

    def _require_own_weight(self, layer: ir.Node) -> None:
        weight = layer.inputs[1]
        assert weight is not None
        if len(weight.uses()) != 1 or weight.is_graph_output():
            self._refuse(f"{where(layer)} shares its weight {weight.name!r}")

    def _reader(self, layer: ir.Node, position: int, inputs: int, repeat: int) -> Reader:
        self._require_own_weight(layer)
        if is_op(layer, "MatMul") and rank(layer.inputs[0]) != 2:
            self._refuse(f"{where(layer)} reads its inputs along the last of several axes")
        if is_op(layer, "Gemm") and int_attribute(layer, "transA", 0):
            self._refuse(f"{where(layer)} transposes its input")
        if position != 0 or _inputs(layer) != inputs:
            self._refuse(f"{where(layer)} reads it otherwise than channel by channel")
        return Reader(layer, repeat)

    def _passes(self, node: ir.Node, position: int, repeat: int) -> int:
        """How often each channel is repeated behind a node that has no weights."""
        check = self._check(node)
        after = check(node, repeat) if position == 0 else None
        if after is None or any(value.uses() for value in node.outputs[1:]):
            self._refuse(f"{where(node)} mixes channels, or its shapes are not known")
        return after

    def _check(self, node: ir.Node) -> "_Repeat":
        check = _PASSES.get(node.op_type) if is_op(node, node.op_type) else None
        if check is None:
            why = _WHY.get(node.op_type, "it is no Conv, Gemm or MatMul with a weight of its own")
            self._refuse(f"{where(node)} passes no factor on: {why}")
        return check


def _is_layer(node: ir.Node) -> bool:
    """Whether a node is y = W x + b with constants W and b."""
    if not is_op(node, *LINEAR) or not is_constant(node.inputs[1]):
        return False
    two_dimensional = is_op(node, "Conv", "ConvTranspose") or rank(node.inputs[1]) == 2
    bias = input_at(node, 2)
    return two_dimensional and (bias is None or _is_bias(bias, _outputs(node)))


def _is_bias(value: ir.Value, channels: int) -> bool:
    array = constant(value)
    shapes = ((), (1,), (channels,), (1, 1), (1, channels))
    return array is not None and array.shape in shapes


def _sides(layer: ir.Node) -> tuple[int, int]:
    """Inputs and outputs of a layer's weight, [K, M]."""
    array = constant(layer.inputs[1])
    assert array is not None
    first, second = array.shape[:2]
    groups = int_attribute(layer, "group", 1)
    if is_op(layer, "Conv"):
        return second * groups, first
    if is_op(layer, "ConvTranspose"):
        return first, second * groups
    is_transposed = is_op(layer, "Gemm") and int_attribute(layer, "transB", 0)
    return (second, first) if is_transposed else (first, second)


def _inputs(layer: ir.Node) -> int:
    return _sides(layer)[0]


def _outputs(layer: ir.Node) -> int:
    return _sides(layer)[1]


def _as_it_is(_: ir.Node, repeat: int) -> int:
    return repeat


def _reshaped(node: ir.Node, repeat: int) -> int | None:
    """A channel is a run of a sample's numbers; the new axis 1 must cut at the ends of runs."""
    before, after = static_dims(node.inputs[0], 1), static_dims(node.outputs[0], 1)
    if before is None or after is None or math.prod(before) != math.prod(after):
        return None
    run, step = repeat * math.prod(before[1:]), math.prod(after[1:])
    return None if step == 0 or run % step else run // step


def _transposed(node: ir.Node, repeat: int) -> int | None:
    return repeat if ints_attribute(node, "perm", ())[:2] == (0, 1) else None


def _sliced(node: ir.Node, repeat: int) -> int | None:
    starts, axes = constant(input_at(node, 1)), constant(input_at(node, 3))
    dimensions = rank(node.inputs[0])
    computed = axes is None and input_at(node, 3) is not None
    if starts is None or dimensions is None or computed:
        return None
    cut = np.arange(starts.size) if axes is None else axes % dimensions
    return None if 1 in cut else repeat


def _padded(node: ir.Node, repeat: int) -> int | None:
    """Zeros stay zeros, and what is copied from inside is scaled along."""
    pads, fill = constant(input_at(node, 1)), constant(input_at(node, 2))
    dimensions = rank(node.inputs[0])
    if pads is None or dimensions is None or input_at(node, 3) is not None:
        return None
    by_number = string_attribute(node, "mode", "constant") == "constant"
    given = input_at(node, 2) is not None and by_number
    if given and (fill is None or fill.any()):
        return None
    return None if pads.reshape(2, dimensions)[:, :2].any() else repeat


def _resized(node: ir.Node, repeat: int) -> int | None:
    """Interpolated between neighbours, unless numbers from outside come in."""
    mode = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
    source = node.inputs[0]
    before = None if source is None else source.shape
    after = node.outputs[0].shape
    if before is None or after is None or mode == "tf_crop_and_resize":
        return None
    return repeat if isinstance(before[1], int) and before[1] == after[1] else None


_Repeat = Callable[[ir.Node, int], int | None]
_PASSES: dict[str, _Repeat] = {
    **dict.fromkeys((*RECTIFIERS, *_PASSING), _as_it_is),
    **dict.fromkeys(_RESHAPES, _reshaped),
    "Transpose": _transposed,
    "Slice": _sliced,
    "Pad": _padded,
    "Resize": _resized,
}

"""hard-sigmoid: HardSwish, and Add-Clip-Divide written out, become HardSigmoid and Mul."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxptq.passes.edit import feeds_only, input_at, is_op, new_node, remove, scalar, take_over

_SAME = 1e-6
"""Relative: 1/6 is written as 0.1666667 by some exporters."""


@dataclass(frozen=True)
class HardSigmoidForm(ir.passes.InPlacePass):
    """Write every piecewise linear gate as HardSigmoid, which can run on 8-bit codes.

    `Clip(x + b, 0, c) / c` is HardSigmoid(alpha = 1/c, beta = b/c); `x * Clip(x + 3, 0, 6) / 6` and
    HardSwish are x times it. Mul has an integer kernel, HardSwish and Div have none.
    """

    name: ClassVar[str] = "hard-sigmoid"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        modified = False
        for node in list(model.graph):
            if node.graph is None:
                continue
            if is_op(node, "HardSwish"):
                _split_hard_swish(node)
                modified = True
            elif is_op(node, "Clip"):
                gate = _gate(node)
                if gate is not None:
                    _write(gate)
                    modified = True
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True, slots=True)
class _Gate:
    """Clip(source + shift, 0, top), times `factor` where there is one, divided by top in `last`."""

    clip: ir.Node
    source: ir.Value
    shift: float
    top: float
    factor: ir.Value | None
    last: ir.Node


def _split_hard_swish(node: ir.Node) -> None:
    source, name = node.inputs[0], node.name or "hard_swish"
    slope = {"alpha": 1 / 6, "beta": 0.5}  # ONNX HardSwish-14
    gate = new_node(node, "HardSigmoid", [source], f"{name}_gate", slope)
    gate.outputs[0].shape = node.outputs[0].shape
    product = new_node(node, "Mul", [source, gate.outputs[0]], name)
    take_over(product.outputs[0], node.outputs[0])
    remove(node)


def _gate(clip: ir.Node) -> _Gate | None:
    source = clip.inputs[0]
    lo, top = scalar(input_at(clip, 1)), scalar(input_at(clip, 2))
    if source is None or lo != 0 or top is None or top <= 0 or source.dtype != ir.DataType.FLOAT:
        return None
    source, shift = _shifted(source, clip)
    reader = _only_reader(clip.outputs[0])
    if reader is None:
        return None
    if _divides(reader, clip.outputs[0], top):
        return _Gate(clip, source, shift, top, None, reader)
    if not is_op(reader, "Mul"):
        return None
    factor = next((v for v in reader.inputs if v is not None and v is not clip.outputs[0]), None)
    last = _only_reader(reader.outputs[0])
    if factor is None or last is None or not _divides(last, reader.outputs[0], top):
        return None
    return _Gate(clip, source, shift, top, factor, last)


def _shifted(value: ir.Value, reader: ir.Node) -> tuple[ir.Value, float]:
    """The x and b of x + b; b is 0 where there is no such sum."""
    add = value.producer()
    if add is not None and is_op(add, "Add") and feeds_only(value, reader):
        for source, other in (add.inputs, add.inputs[::-1]):
            shift = scalar(other)
            if source is not None and shift is not None and source.dtype == ir.DataType.FLOAT:
                return source, shift
    return value, 0.0


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _divides(node: ir.Node, value: ir.Value, top: float) -> bool:
    """Whether a node divides `value` by `top`, or multiplies it by 1 / top."""
    if is_op(node, "Div") and node.inputs[0] is value:
        number = scalar(node.inputs[1])
        return number is not None and abs(number - top) <= _SAME * top
    if is_op(node, "Mul"):
        numbers = [scalar(v) for v in node.inputs if v is not value]
        return any(n is not None and abs(n * top - 1) <= _SAME for n in numbers)
    return False


def _write(gate: _Gate) -> None:
    name = gate.clip.name or "clip"
    slope = {"alpha": 1 / gate.top, "beta": gate.shift / gate.top}
    new = new_node(gate.last, "HardSigmoid", [gate.source], name, slope)
    new.outputs[0].shape = gate.clip.outputs[0].shape
    if gate.factor is not None:
        new = new_node(gate.last, "Mul", [gate.factor, new.outputs[0]], gate.last.name or "mul")
    take_over(new.outputs[0], gate.last.outputs[0])
    shifted = gate.clip.inputs[0]
    add = None if shifted is None or shifted is gate.source else shifted.producer()
    remove(gate.last)
    for node in list(gate.clip.outputs[0].consumers()):
        remove(node)
    remove(gate.clip)
    if add is not None:
        remove(add)

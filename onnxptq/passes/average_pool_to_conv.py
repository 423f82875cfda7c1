"""average-pool-to-conv: an AveragePool without an integer kernel becomes a depthwise Conv."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    graph_of,
    is_op,
    new_constant,
    new_node,
    rank,
    remove,
    static_dims,
    take_over,
)


@dataclass(frozen=True)
class AveragePoolToConv(ir.passes.InPlacePass):
    """Write 3-D and dilated pools as a Conv whose weights are all 1 / window.

    onnxruntime's integer AveragePool is 1-D and 2-D and takes no dilations; its integer Conv takes
    both. A window that leaves out its padding divides by another number at the border, which no
    Conv does: it stays. Equal weights lose nothing by quantization, at any number of bits.
    """

    name: ClassVar[str] = "average-pool-to-conv"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        pools = [node for node in model.graph if is_op(node, "AveragePool")]
        modified = [_replace(node) for node in pools if _has_no_kernel(node)]
        return ir.passes.PassResult(model, modified=any(modified))


def _has_no_kernel(node: ir.Node) -> bool:
    return rank(node.inputs[0]) == 5 or any(n != 1 for n in _ints(node, "dilations", 1))


def _replace(node: ir.Node) -> bool:
    source, channels = node.inputs[0], _channels(node)
    if source is None or channels is None or source.dtype != ir.DataType.FLOAT:
        return False
    pads = _pads(node)
    if pads is None or _is_rounded_up(node, pads):
        return False
    window = _ints(node, "kernel_shape", 1)
    name = node.name or "pool"
    array = np.full((channels, 1, *window), 1 / np.prod(window), np.float32)
    attributes = {
        "kernel_shape": window,
        "strides": _ints(node, "strides", 1),
        "dilations": _ints(node, "dilations", 1),
        "pads": pads,
        "group": channels,
    }
    weight = new_constant(graph_of(node), f"{name}_weight", array)
    conv = new_node(node, "Conv", [source, weight], name, attributes)
    take_over(conv.outputs[0], node.outputs[0])
    remove(node)
    return True


def _channels(node: ir.Node) -> int | None:
    source = node.inputs[0]
    shape = None if source is None else source.shape
    channels = None if shape is None or len(shape) < 3 else shape[1]
    return channels if isinstance(channels, int) and channels > 0 else None


def _ints(node: ir.Node, name: str, default: int) -> list[int]:
    """A number for each spatial axis."""
    axes = len(node.attributes.get_ints("kernel_shape", ()) or ())
    return list(node.attributes.get_ints(name) or [default] * axes)


def _pads(node: ir.Node) -> list[int] | None:
    """Begins, then ends; None where a Conv cannot pad as this pool does."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    none = [0] * (2 * len(_ints(node, "kernel_shape", 1)))
    if auto not in ("NOTSET", "VALID"):
        return None
    pads = none if auto == "VALID" else list(node.attributes.get_ints("pads") or none)
    counts = bool(node.attributes.get_int("count_include_pad", 0))
    return pads if counts or not any(pads) else None


def _is_rounded_up(node: ir.Node, pads: list[int]) -> bool:
    """Whether ceil_mode may add a window that reaches beyond the padding."""
    if not node.attributes.get_int("ceil_mode", 0):
        return False
    image = static_dims(node.inputs[0], 2)
    if image is None:
        return True
    window, step = _ints(node, "kernel_shape", 1), _ints(node, "strides", 1)
    gaps = _ints(node, "dilations", 1)
    begins, ends = pads[: len(window)], pads[len(window) :]
    axes = zip(image, window, step, gaps, begins, ends, strict=True)
    return any((n + b + e - d * (k - 1) - 1) % s for n, k, s, d, b, e in axes)

"""fold-pad: a Pad becomes the padding of the Conv or pool that reads it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import bypass, constant, feeds_only, input_at, ints, is_op, rank


@dataclass(frozen=True)
class FoldPad(ir.passes.InPlacePass):
    """Fold a constant Pad of the spatial axes into the node behind it, where nothing changes.

    Zeros fold into Conv, and into AveragePool that counts them; into MaxPool only where its input
    cannot be negative, since MaxPool pads with minus infinity. Minus infinity folds into MaxPool.
    """

    name: ClassVar[str] = "fold-pad"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        pads = [node for node in model.graph if is_op(node, "Pad")]
        modified = [_fold(node) for node in pads]
        return ir.passes.PassResult(model, modified=any(modified))


def _fold(node: ir.Node) -> bool:
    source, padded = node.inputs[0], node.outputs[0]
    spatial, number = _spatial_pads(node), _number(node)
    readers = [use.node for use in padded.uses()]
    if source is None or spatial is None or number is None or len(readers) != 1:
        return False
    reader = readers[0]
    # A reader inside a body (of If, Loop, Scan) is left alone.
    if not feeds_only(padded, reader) or reader.graph is not node.graph:
        return False
    if not _accepts(reader, spatial, number, source):
        return False
    own = reader.attributes.get_ints("pads") or [0] * len(spatial)
    total = [a + b for a, b in zip(own, spatial, strict=True)]
    reader.attributes.pop("auto_pad", None)
    reader.attributes.add(ir.AttrInt64s("pads", total))
    if reader.op_type == "AveragePool":
        reader.attributes.add(ir.AttrInt64("count_include_pad", 1))
    return bypass(node, source)


def _spatial_pads(node: ir.Node) -> list[int] | None:
    """Pads of the spatial axes, begins then ends, or None if another axis is padded or cropped."""
    dimensions, pads = rank(node.inputs[0]), ints(input_at(node, 1))
    if dimensions is None or dimensions < 3 or pads is None or min(pads, default=0) < 0:
        return None
    if node.attributes.get_string("mode", "constant") != "constant":
        return None
    axes = list(range(dimensions))
    if input_at(node, 3) is not None:
        given = ints(node.inputs[3])
        if given is None:
            return None
        axes = [axis % dimensions for axis in given]
    if len(pads) != 2 * len(axes):
        return None
    full = np.zeros((2, dimensions), np.int64)
    full[:, axes] = np.reshape(pads, (2, -1))
    return None if full[:, :2].any() else [int(n) for n in full[:, 2:].reshape(-1)]


def _number(node: ir.Node) -> float | None:
    if input_at(node, 2) is None:
        return 0.0
    array = constant(node.inputs[2])
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _accepts(reader: ir.Node, pads: list[int], number: float, source: ir.Value) -> bool:
    if reader.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if is_op(reader, "Conv"):
        return number == 0
    return _is_simple_pool(reader) and _pool_accepts(reader, pads, number, source)


def _is_simple_pool(reader: ir.Node) -> bool:
    if not is_op(reader, "AveragePool", "MaxPool") or reader.attributes.get_int("ceil_mode", 0):
        return False
    dilations = reader.attributes.get_ints("dilations", ())
    return len(reader.outputs) == 1 and all(n == 1 for n in dilations)


def _pool_accepts(reader: ir.Node, pads: list[int], number: float, source: ir.Value) -> bool:
    kernel = reader.attributes.get_ints("kernel_shape", ())
    own = reader.attributes.get_ints("pads") or [0] * len(pads)
    # onnxruntime refuses a pool whose padding reaches its kernel; then every window holds an input.
    if any(a + b >= k for a, b, k in zip(own, pads, [*kernel, *kernel], strict=True)):
        return False
    if is_op(reader, "AveragePool"):
        counts = bool(reader.attributes.get_int("count_include_pad", 0))
        return number == 0 and (counts or not any(own))
    lowest = number <= float(np.finfo(np.float32).min)
    return lowest or (number == 0 and not any(own) and _not_negative(source))


def _not_negative(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or not is_op(producer, "Relu", "Sigmoid", "HardSigmoid", "Softmax", "Clip"):
        return False
    if producer.op_type != "Clip":
        return True
    low = constant(input_at(producer, 1))
    return low is not None and float(low.reshape(-1)[0]) >= 0

"""Data movers: what onnxruntime runs on codes as they are, and so do we."""

import numpy as np

from onnxptq.ops.fused import Fused, Lower, NotInteger
from onnxptq.ops.nodes import int_attribute, ints_attribute, string_attribute
from onnxptq.program import ABSENT, Attribute

MOVERS = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that move elements of any type."""


def plain(op: str, *lists: str, **defaults: int) -> Lower:
    """A mover that passes its inputs on as they are.

    Args:
        op: The instruction.
        lists: Attributes of old opsets that later became inputs, in the order of these inputs.
        defaults: Attributes that are integers, with the value they have where they are left out.
    """

    def lower(node: Fused) -> None:
        inputs = [node.id(i) for i in range(len(node.node.inputs))]
        for name in lists[len(inputs) - 1 :]:
            given = ints_attribute(node.node, name, ())
            if given:
                inputs.append(node.builder.constant(np.array(given, np.int64)))
            elif len(inputs) < len(lists):
                inputs.append(ABSENT)
        attrs = {name: int_attribute(node.node, name, value) for name, value in defaults.items()}
        node.emit(op, tuple(inputs), parts=attrs)

    return lower


def emit_move(node: Fused, op: str, attrs: dict[str, Attribute]) -> None:
    """Add a mover that keeps all inputs of its node."""
    node.emit(op, tuple(node.id(i) for i in range(len(node.node.inputs))), parts=attrs)


def transpose(node: Fused) -> None:
    """Transpose; without `perm` the axes are reversed, which needs the rank."""
    perm = ints_attribute(node.node, "perm", ())
    if not perm:
        shape = node.shape(0)
        if shape is None:
            raise NotInteger("the rank of its input is not known")
        perm = tuple(reversed(range(len(shape))))
    emit_move(node, "transpose", {"perm": perm})


def pad(node: Fused) -> None:
    """Pad: the value is a code; between real numbers only 0 is, all of whose bytes are alike."""
    if not node.value(0).is_codes and node.present(2) and any(node.array(2).tobytes()):
        raise NotInteger("it pads with a real number that is not 0")
    mode = string_attribute(node.node, "mode", "constant")
    inputs = (node.id(0), node.id(1), -1, node.id(3))
    node.emit("pad", inputs, parts={"value": node.number(2), "mode": mode}, made=_padded(node))


def _padded(node: Fused) -> tuple[str, int, int]:
    x, value = node.value(0), node.number(2)
    return x.dtype, min(x.lo, value), max(x.hi, value)


def gather(node: Fused) -> None:
    """Gather with constant indices."""
    node.array(1)
    emit_move(node, "gather", {"axis": int_attribute(node.node, "axis", 0)})


def depth_to_space(node: Fused) -> None:
    """DepthToSpace in either order."""
    mode = string_attribute(node.node, "mode", "DCR")
    blocksize = int_attribute(node.node, "blocksize", 1)
    emit_move(node, "depth_to_space", {"blocksize": blocksize, "mode": mode})


def resize(node: Fused) -> None:
    """Resize that picks the nearest element."""
    mode = string_attribute(node.node, "mode", "nearest")
    coordinates = string_attribute(node.node, "coordinate_transformation_mode", "half_pixel")
    if mode != "nearest" or coordinates == "tf_crop_and_resize":
        raise NotInteger(f"Resize ({mode}, {coordinates}) computes new values")
    if int_attribute(node.node, "antialias", 0):
        raise NotInteger("Resize with antialias computes new values")
    attrs: dict[str, Attribute] = {
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": string_attribute(node.node, "nearest_mode", "round_prefer_floor"),
        "axes": ints_attribute(node.node, "axes", ()),
        "keep_aspect_ratio_policy": string_attribute(
            node.node, "keep_aspect_ratio_policy", "stretch"
        ),
    }
    scales, sizes = node.id(2), node.id(3)
    node.emit("resize", (node.id(0), -1, scales, sizes), parts=attrs)

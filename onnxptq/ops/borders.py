"""Counting the thresholds that accumulators reach, as files with learned borders write it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.ops.nodes import constant, input_at, int_attribute
from onnxptq.quant import I32

UINT8_MAX = 255
COUNTED = 2
"""The axis behind the channels on which thresholds are counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Counting:
    """Nodes that turn accumulators into codes.

    Attributes:
        table: Thresholds, [C, levels] or [1, levels].
        lowest: Code of an accumulator that reaches none.
        nodes: All of them, in order; the last one gives the codes, uint8.
    """

    table: I32
    lowest: int
    nodes: tuple[ir.Node, ...]


def counting(acc: ir.Value, channels: int, rank: int) -> Counting | None:
    """The counting that alone reads accumulators, [N, C, ...]; None if there is none.

    Args:
        acc: The accumulators.
        channels: C.
        rank: How many axes they have.
    """
    chain = _chain(acc)
    types = [node.op_type for node in chain]
    if types[:4] != ["Unsqueeze", "GreaterOrEqual", "Cast", "ReduceSum"] or types[-1] != "Cast":
        return None
    unsqueeze, compare, cast, total, *others, last = chain
    axes = [constant(input_at(node, 1)) for node in (unsqueeze, total)]
    table, lowest = constant(input_at(compare, 1)), 0
    if [node.op_type for node in others] == ["Add"]:
        offset = constant(input_at(others[0], 1))
        if offset is None or offset.size != 1:
            return None
        lowest = int(offset.reshape(-1)[0])
    elif others:
        return None
    fits = (
        all(axis is not None and axis.reshape(-1).tolist() == [COUNTED] for axis in axes)
        and int_attribute(total, "keepdims", 1) == 0
        and int_attribute(cast, "to", 0) == ir.DataType.INT32
        and int_attribute(last, "to", 0) == ir.DataType.UINT8
    )
    if not fits or table is None or not _is_per_channel(table, channels, rank):
        return None
    if not 0 <= lowest <= UINT8_MAX - table.shape[1]:
        return None
    return Counting(table.reshape(table.shape[:2]), lowest, tuple(chain))


def _is_per_channel(table: npt.NDArray[Any], channels: int, rank: int) -> bool:
    """Whether it is int32 [C or 1, levels, 1, ...], as broadcasting against accumulators has it."""
    return (
        table.dtype == np.int32
        and table.ndim == rank
        and table.shape[0] in (1, channels)
        and all(side == 1 for side in table.shape[2:])
    )


def _chain(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value and one another alone, up to the one that gives uint8."""
    found: list[ir.Node] = []
    while len(found) < 6 and not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].idx != 0:
            break
        node = uses[0].node
        found.append(node)
        if node.op_type == "Cast" and int_attribute(node, "to", 0) == ir.DataType.UINT8:
            break
        value = node.outputs[0]
    return found

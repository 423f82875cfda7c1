"""Nodes that onnxruntime runs on codes, written directly: QOperator form and operators on codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxptq.graph import io

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"
OPSET = 21


@dataclass(frozen=True)
class Data:
    """An input that is fed: its shape and type."""

    shape: tuple[int, ...]
    dtype: str = "uint8"


Operand = Data | Array | None


@dataclass(frozen=True, eq=False)
class Node:
    """One node: its operands in order, where constants are arrays and absent ones None.

    Attributes:
        name: Of the test.
        op: Operator.
        operands: Inputs.
        attributes: ONNX attributes.
        domain: Of the operator.
        outputs: Types of the outputs.
        opset: Of the model.
        island: Why it is not an integer instruction; empty where it is one.
    """

    name: str
    op: str
    operands: Sequence[Operand]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    domain: str = ""
    outputs: Sequence[str] = ("uint8",)
    opset: int = OPSET
    island: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def model(self) -> ir.Model:
        """A model of this node alone; its inputs are x0, x1, ..."""
        names, inputs, constants = list[str](), list[Any](), list[onnx.TensorProto]()
        for position, operand in enumerate(self.operands):
            names.append("" if operand is None else f"x{position}")
            if isinstance(operand, Data):
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(operand.dtype))
                inputs.append(helper.make_tensor_value_info(names[-1], kind, operand.shape))
            elif operand is not None:
                constants.append(numpy_helper.from_array(operand, names[-1]))
        outputs = [
            helper.make_tensor_value_info(
                f"y{i}", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None
            )
            for i, kind in enumerate(self.outputs)
        ]
        node = helper.make_node(
            self.op,
            names,
            [value.name for value in outputs],
            name="node",
            domain=self.domain,
            **self.attributes,
        )
        graph = helper.make_graph([node], "node", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return io.from_proto(proto, self.name)


def scale(*values: float) -> Array:
    """Scales: one as a scalar, several as a vector."""
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def u8(*values: int) -> Array:
    """uint8 codes, likewise."""
    return np.array(values[0] if len(values) == 1 else values, np.uint8)


def s8(*values: int) -> Array:
    """int8 codes, likewise."""
    return np.array(values[0] if len(values) == 1 else values, np.int8)


def i64(*values: int) -> Array:
    """A list of int64."""
    return np.array(values, np.int64)


def codes(shape: tuple[int, ...], dtype: str = "int8", seed: int = 0) -> Array:
    """Random codes over the whole of a type."""
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(ends.min, ends.max, shape, np.dtype(dtype), endpoint=True)


def int32s(shape: tuple[int, ...], size: int = 3000, seed: int = 1) -> Array:
    """Random biases."""
    return np.random.default_rng(seed).integers(-size, size, shape, np.int32)

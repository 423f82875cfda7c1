"""A model's digest: equal for models that compute the same with the same names."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir


def digest(model: ir.Model) -> str:
    """The model's SHA-256, in hex, over everything that matters to a recipe.

    Nodes with their names, values, initializers, attributes, types of inputs and outputs, opsets
    and functions count; producer, documentation, metadata and derived shapes do not. Where a file
    keeps its tensors (inside, outside, raw or as numbers) makes no difference.
    """
    hasher = _Hasher()
    for domain, version in sorted(model.graph.opset_imports.items()):
        hasher.add("opset", domain, version)
    hasher.graph(model.graph)
    for identifier, function in sorted(model.functions.items()):
        hasher.add("function", *identifier, *(a.name for a in function.attributes.values()))
        for domain, version in sorted(function.opset_imports.items()):
            hasher.add("opset", domain, version)
        hasher.body(function.inputs, function, function.outputs)
    return hasher.hexdigest()


class _Hasher:
    """Feeds fields to SHA-256, each with its length, so that no two sequences collide."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def hexdigest(self) -> str:
        return self._sha.hexdigest()

    def add(self, *fields: object) -> None:
        for field in fields:
            data = field if isinstance(field, bytes) else str(field).encode()
            self._sha.update(len(data).to_bytes(8, "little"))
            self._sha.update(data)

    def graph(self, graph: ir.Graph) -> None:
        for value in (*graph.inputs, *graph.outputs):
            self.add("port", value.name, value.type, value.shape)
        for name, value in sorted(graph.initializers.items()):
            self.add("initializer", name)
            if value.const_value is not None:
                self.tensor(value.const_value)
        self.body(graph.inputs, graph, graph.outputs)

    def body(
        self, inputs: Iterable[ir.Value], nodes: Iterable[ir.Node], outputs: Iterable[ir.Value]
    ) -> None:
        self.add("inputs", *(value.name for value in inputs))
        for node in nodes:
            self.add("node", node.domain, node.op_type, node.overload, node.name)
            self.add("in", *(value.name if value is not None else "" for value in node.inputs))
            self.add("out", *(value.name for value in node.outputs))
            for name, attribute in sorted(node.attributes.items()):
                self.add("attribute", name, attribute.type, attribute.ref_attr_name)
                self.attribute(attribute.type, attribute.value)
        self.add("outputs", *(value.name for value in outputs))

    def attribute(self, kind: ir.AttributeType, value: Any) -> None:
        if value is None:
            self.add("none")
        elif kind == ir.AttributeType.TENSOR:
            self.tensor(value)
        elif kind == ir.AttributeType.GRAPH:
            self.graph(value)
        elif kind in (ir.AttributeType.TENSORS, ir.AttributeType.GRAPHS):
            one = {"TENSORS": ir.AttributeType.TENSOR, "GRAPHS": ir.AttributeType.GRAPH}[kind.name]
            for item in value:
                self.attribute(one, item)
        elif kind == ir.AttributeType.FLOAT:
            self.add(np.float32(value).tobytes())
        elif kind == ir.AttributeType.FLOATS:
            self.add(np.asarray(value, np.float32).tobytes())
        elif kind in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
            self.add(*value)
        else:
            self.add(value)

    def tensor(self, tensor: ir.TensorProtocol) -> None:
        self.add("tensor", tensor.dtype.name, *tensor.shape.numpy())
        if tensor.dtype == ir.DataType.STRING:
            self.add(*(bytes(item) for item in tensor.string_data()))  # type: ignore[attr-defined]
            return
        data = tensor.numpy()
        if tensor.dtype.bitwidth >= 8 and data.dtype.byteorder != ">":
            self._sha.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        else:
            self._sha.update(tensor.tobytes())

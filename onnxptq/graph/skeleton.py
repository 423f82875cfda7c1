"""Skeletons: models whose large initializers are stubs, for tools that work on one message.

protobuf cannot hold more than 2 GiB, and what onnx's converter and shape inference need of a weight
is its type and shape only. A stub is an external tensor that names its place in a table; no file
stands behind it.
"""

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

_PREFIX = "onnxptq-stub-"

Stubs = Mapping[str, ir.TensorProtocol]


def take_out(model: ir.Model, above_bytes: int) -> tuple[onnx.ModelProto, Stubs]:
    """Serialize `model` with each initializer larger than `above_bytes` replaced by a stub.

    Returns:
        The message, and the tensors that were taken out, for `put_back`. The model is unchanged.
    """
    stubs: dict[str, ir.TensorProtocol] = {}
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for value, tensor in initializers(model):
            if tensor.nbytes <= above_bytes or tensor.dtype == ir.DataType.STRING:
                continue
            location = f"{_PREFIX}{len(stubs)}"
            stubs[location] = tensor
            kept.append((value, tensor))
            value.const_value = ir.ExternalTensor(
                location,
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )
        return ir.serde.serialize_model(model), stubs
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def put_back(proto: onnx.ModelProto, stubs: Stubs) -> ir.Model:
    """Read a message made from a skeleton and put the tensors back in the stubs' places."""
    model = ir.serde.deserialize_model(proto)
    for value, tensor in initializers(model):
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) in stubs:
            original = stubs[str(tensor.location)]
            original.name = value.name
            value.const_value = original
    return model


def initializers(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every initializer of the graph and of the bodies inside it, with its tensor."""
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if value.const_value is not None:
                yield value, value.const_value


def size_bytes(model: ir.Model) -> int:
    """What the initializers of the model take together."""
    return sum(
        tensor.nbytes for _, tensor in initializers(model) if tensor.dtype != ir.DataType.STRING
    )

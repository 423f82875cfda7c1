"""Shapes from onnx's own inference."""

import onnx
import onnx_ir as ir

from onnxptq.graph import skeleton

# Larger initializers are left out: inference reads values only of shapes, axes and scales.
_STUB_ABOVE_BYTES = 4096


def infer(model: ir.Model) -> ir.Model:
    """Fill in the types and shapes of all values that onnx can infer, in place.

    Graph inputs and outputs keep what the user declared. What cannot be inferred (custom operators,
    inconsistent declarations) is left as it is: missing shapes are no error here.

    Returns:
        The same model.
    """
    proto, _ = skeleton.take_out(model, _STUB_ABOVE_BYTES)
    # A shape recorded by another tool may be stale or too narrow after a rewrite.
    del proto.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=False, strict_mode=False, data_prop=True
        )
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        RuntimeError,
        ValueError,
    ):
        return model
    known = {value.name: value.type for value in inferred.graph.value_info}
    for node in model.graph:
        for value in node.outputs:
            if value.name in known and not value.is_graph_output():
                _update(value, known[value.name])
    for output, port in zip(model.graph.outputs, inferred.graph.output, strict=True):
        if output.shape is None or output.type is None:
            _update(output, port.type)
    return model


def _update(value: ir.Value, proto: onnx.TypeProto) -> None:
    kind = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if kind is not None:
        value.type = kind
    if shape is not None:
        value.shape = shape

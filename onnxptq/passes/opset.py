"""Raise a model to the opset that we write, by onnx's own converter."""

import onnx
import onnx_ir as ir

from onnxptq.errors import ModelError
from onnxptq.graph import io, skeleton

IR_VERSION = 10  # the first with INT4 and UINT4; goes with opset 21

OLDEST_USABLE = 7  # below it operators broadcast by attribute; onnxruntime supports 7 and up

# The converter reads values of shapes, axes and scales only.
_STUB_ABOVE_BYTES = 4096


def raise_opset(model: ir.Model) -> tuple[ir.Model, str | None]:
    """Raise the default opset to 21 where it is lower; bodies are converted too.

    Args:
        model: The model, with unique names; its IR version may be raised in place.

    Returns:
        The model (a new one when it was converted), and a note when the converter failed, in which
        case the model has its old opset.

    Raises:
        ModelError: The converter failed on a model below opset 7.
    """
    if io.opset(model) >= io.MAX_OPSET or "" not in model.graph.opset_imports:
        model.ir_version = max(model.ir_version, IR_VERSION)
        return model, None
    before = io.opset(model)
    if before < 9 and any(node.op_type == "Scan" for node in model.graph.all_nodes()):
        # The converter changes the number only, but Scan lost its batch axis in opset 9.
        return model, f"opset stays at {before}: onnx's converter does not know Scan of opset 8"
    proto, stubs = skeleton.take_out(model, _STUB_ABOVE_BYTES)
    # Up to IR 3 the converter looks for initializers among the inputs, where they are no more.
    proto.ir_version = max(proto.ir_version, IR_VERSION)
    try:
        converted = onnx.version_converter.convert_version(proto, io.MAX_OPSET)
    # The converter's C++ errors have no common type of their own.
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        if before < OLDEST_USABLE:
            raise ModelError(
                f"opset {before} is older than {OLDEST_USABLE} and onnx's converter cannot raise "
                f"it ({reason}). Export the model with opset {io.MAX_OPSET}"
            ) from error
        note = f"opset stays at {before}: onnx's converter to {io.MAX_OPSET} failed ({reason})"
        return model, note
    _restore_ports(proto, converted)
    return skeleton.put_back(converted, stubs), None


def _restore_ports(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The user's declarations of inputs and outputs stay, whatever the converter inferred."""
    for old, new in (
        (before.graph.input, after.graph.input),
        (before.graph.output, after.graph.output),
    ):
        declared = {port.name: port for port in old}
        for port in new:
            if port.name in declared:
                port.CopyFrom(declared[port.name])
    if not after.graph.name:
        after.graph.name = before.graph.name
    after.functions.extend(before.functions[len(after.functions) :])
    if not after.metadata_props:
        after.metadata_props.extend(before.metadata_props)

"""Clean a model with onnxsim: in a process of its own, with a time limit, only where it helps."""

import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxptq.errors import ModelError
from onnxptq.graph import io, skeleton
from onnxptq.passes.edit import constant

# -P: the worker's folder holds modules whose names others might import.
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("simplify_worker.py")))

_WHOLE_BELOW_BYTES = 500_000_000
_STUB_ABOVE_BYTES = 1_000_000

_BODIES = {"If", "Loop", "Scan", "SequenceMap"}
_OF_SHAPES = {"Shape", "Size", "ConstantOfShape", "Range", "NonZero"}


def needs_simplifying(model: ir.Model) -> bool:
    """Whether the model has anything for onnxsim to fold: arithmetic on constants or on shapes.

    Starting onnxsim costs about two seconds, which a clean model is spared.
    """
    for node in model.graph:
        if node.domain == "" and node.op_type in _OF_SHAPES:
            return True
        inputs = [value for value in node.inputs if value is not None]
        is_body = node.op_type in _BODIES
        if inputs and not is_body and all(constant(value) is not None for value in inputs):
            return True
    return False


def simplify(model: ir.Model, seconds: float) -> tuple[ir.Model, str | None]:
    """Run onnxsim on the model.

    Args:
        model: The model, with unique names; it is not changed.
        seconds: Time limit.

    Returns:
        The simplified model, or the given one with a note saying why onnxsim's result is not used.
    """
    proto, large = _without_large(model)
    with tempfile.TemporaryDirectory(prefix="onnxptq-") as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        source.write_bytes(proto.SerializeToString())
        reason = _run(source, target, seconds)
        data = target.read_bytes() if reason is None else b""
    if reason is None:
        try:
            return _accept(proto, onnx.ModelProto.FromString(data), large), None
        except (DecodeError, ModelError) as error:
            reason = str(error)
    return model, f"onnxsim was not used: {reason}"


def _run(source: Path, target: Path, seconds: float) -> str | None:
    command = [*WORKER, str(source), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:g} s"
    if done.returncode == 0 and target.exists():
        return None
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines and done.returncode > 0 else f"it crashed ({done.returncode})"


_Tensors = dict[str, ir.TensorProtocol]


def _without_large(model: ir.Model) -> tuple[onnx.ModelProto, _Tensors]:
    """The model for onnxsim: above 500 MB its large weights become inputs, which are not folded."""
    if skeleton.size_bytes(model) < _WHOLE_BELOW_BYTES:
        return ir.serde.serialize_model(model), {}
    proto, stubs = skeleton.take_out(model, _STUB_ABOVE_BYTES)
    large: _Tensors = {}
    for tensor in [t for t in proto.graph.initializer if t.external_data]:
        large[tensor.name] = stubs[tensor.external_data[0].value]
        port = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(port)
        proto.graph.initializer.remove(tensor)
    return proto, large


def _accept(before: onnx.ModelProto, after: onnx.ModelProto, large: _Tensors) -> ir.Model:
    """Check that onnxsim kept the interface, restore what it may not touch, put weights back."""
    for what in ("input", "output"):
        old, new = getattr(before.graph, what), getattr(after.graph, what)
        kept = [(p.name, p.type.WhichOneof("value"), p.type.tensor_type.elem_type) for p in old]
        if kept != [
            (p.name, p.type.WhichOneof("value"), p.type.tensor_type.elem_type) for p in new
        ]:
            raise ModelError(f"it changed the {what}s of the graph")
        del new[:]
        new.extend(old)
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
    after.ir_version = max(before.ir_version, after.ir_version)
    model = io.from_proto(after, "its result")
    for value in [value for value in model.graph.inputs if value.name in large]:
        model.graph.inputs.remove(value)
        value.const_value = large[value.name or ""]
        model.graph.register_initializer(value)
    return model

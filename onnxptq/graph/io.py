"""Load and save ONNX files: external data, models above 2 GiB, clear errors, atomic replacement."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from onnxptq.errors import ModelError
from onnxptq.files import writable, write_atomically
from onnxptq.graph import skeleton
from onnxptq.graph.digest import digest
from onnxptq.graph.external import map_tensor

__all__ = [
    "MAX_OPSET",
    "MIN_OPSET",
    "digest",
    "from_proto",
    "load",
    "opset",
    "save",
    "to_bytes",
    "writable",
    "write_atomically",
]

MIN_OPSET = 1  # files below 7 load when onnx's converter can raise them, which is not certain
MAX_OPSET = 21  # what we write: INT4 with per-axis DequantizeLinear (design D2)
INLINE_LIMIT_BYTES = 1_900_000_000  # a protobuf message must stay below 2 GiB, graph included
_EXTERNAL_ABOVE_BYTES = 1024  # small tensors stay in the message: shape inference reads them


def load(path: Path) -> ir.Model:
    """Load an ONNX file with its external data, which is mapped, not read.

    Raises:
        ModelError: There is no such file, it is not a whole ONNX model, its opset is unknown, or
            its external data is missing, too short, or outside the model's folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Give the .onnx file in it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise ModelError(f"{path} is empty: expected an ONNX model. Export or copy it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is truncated or not an ONNX model ({len(data)} bytes read). "
            "Export or copy it again"
        ) from error
    return from_proto(proto, str(path), folder=path.parent)


def from_proto(proto: onnx.ModelProto, source: str, folder: Path | None = None) -> ir.Model:
    """Turn a message into the graph form that everything here works on.

    Args:
        proto: The message; it is not changed.
        source: Where it came from, for error messages.
        folder: Where its external data lies; None when there can be none.

    Raises:
        ModelError: The message is not a model, is malformed, or its opset is newer than onnx knows.
    """
    _check_header(proto, source)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError, ir.serde.SerdeError) as error:
        raise ModelError(f"{source} is not a valid ONNX model: {_first_line(error)}") from error
    _check_opset(model, source)
    _own_tensors(model, source, folder)
    return model


def opset(model: ir.Model) -> int:
    """The version of the default operator set that the model imports (1 when it names none)."""
    return model.graph.opset_imports.get("", 1)


def save(model: ir.Model, path: Path) -> None:
    """Save the model, replacing an older file only when the new one is complete.

    Above 1.9 GB the weights go to `<stem>.<digest>.data` beside it. The digest in the name makes
    the replacement of the pair safe: the old model keeps its data until the new one is in place.

    Raises:
        ModelError: The file cannot be written; what was there is unchanged.
    """
    path = Path(path)
    before = _own_data_files(path)
    if skeleton.size_bytes(model) <= INLINE_LIMIT_BYTES:
        write_atomically(path, to_bytes(model))
        after: set[Path] = set()
    else:
        after = {_save_external(model, path)}
    for stale in before - after:
        with suppress(OSError):
            stale.unlink()


def to_bytes(model: ir.Model) -> bytes:
    """The model as one ONNX message: the same model always gives the same bytes.

    Raises:
        ModelError: The model is above 2 GiB, or holds something that ONNX cannot store.
    """
    try:
        return _lean(ir.serde.serialize_model(model)).SerializeToString(deterministic=True)
    except (ValueError, EncodeError, ir.serde.SerdeError) as error:
        size = skeleton.size_bytes(model)
        raise ModelError(
            f"model of {size / 1e9:.2f} GB cannot be stored as one ONNX message (limit 2 GiB): "
            f"{_first_line(error)}"
        ) from error


def _lean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the value_info of initializers, which say their type and shape themselves."""
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in stored]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return proto


def _check_header(proto: onnx.ModelProto, source: str) -> None:
    # Any short run of bytes can be a protobuf message: a model also has a version and a graph.
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise ModelError(f"{source} is truncated or not an ONNX model. Export or copy it again")
    if not proto.graph.output:
        raise ModelError(f"{source}: the graph has no outputs: nothing to quantize")


def _check_opset(model: ir.Model, source: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = opset(model)
    if "" not in model.graph.opset_imports and model.graph.opset_imports:
        return  # only custom operators
    if not MIN_OPSET <= version <= newest:
        raise ModelError(
            f"{source} has opset {version}: onnxptq reads opset {MIN_OPSET} to {newest}. "
            f"Export it with opset {MAX_OPSET}"
        )


def _own_tensors(model: ir.Model, source: str, folder: Path | None) -> None:
    """Map external tensors, and turn numbers stored one by one into raw data."""
    for tensor, replace in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if folder is None:
                raise ModelError(
                    f"{source}: tensor {tensor.name!r} is external data without a folder. "
                    "Give the path of the .onnx file instead of the loaded model"
                )
            replace(map_tensor(tensor, folder, source))
        elif isinstance(tensor, ir.TensorProtoTensor):
            replace(_raw(tensor, source))


def _raw(tensor: ir.TensorProtoTensor, source: str) -> ir.TensorProtocol:
    if tensor.dtype == ir.DataType.STRING:
        return tensor
    try:
        array = np.array(tensor.numpy())
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{source}: tensor {tensor.name!r} {tensor.dtype.name}{list(tensor.shape.numpy())} "
            f"does not hold as many numbers as its shape says: {_first_line(error)}"
        ) from error
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


_Replace = Callable[[ir.TensorProtocol], None]


def _tensors(model: ir.Model) -> Iterator[tuple[ir.TensorProtocol, _Replace]]:
    """Every tensor of the model, in initializers and in attributes, and how to replace it."""
    for value, tensor in skeleton.initializers(model):
        yield tensor, lambda new, value=value: setattr(value, "const_value", new)
    bodies = [model.graph, *model.functions.values()]
    for node in (node for body in bodies for node in body.all_nodes()):
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
                yield (
                    attribute.as_tensor(),
                    lambda new, node=node, name=attribute.name: node.attributes.add(
                        ir.AttrTensor(name, new)
                    ),
                )


def _save_external(model: ir.Model, path: Path) -> Path:
    """Write the data file, then the model that refers to it; returns the data file."""
    proto, stubs = skeleton.take_out(model, _EXTERNAL_ABOVE_BYTES)
    offsets: dict[str, int] = {}
    sha = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        position = 0
        for location, tensor in stubs.items():
            offsets[location] = position
            data = _buffer(tensor)
            sha.update(data)
            position += file.write(data)

    target = path.resolve()
    draft = target.with_name(f".{target.stem}.draft.data")
    try:
        write_atomically(draft, write)
        final = target.with_name(f"{target.stem}.{sha.hexdigest()[:16]}.data")
        new = not final.exists()
        draft.replace(final)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    _refer(proto, offsets, final.name)
    try:
        write_atomically(path, proto.SerializeToString(deterministic=True))
    except ModelError:
        if new:
            final.unlink(missing_ok=True)
        raise
    return final


def _buffer(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """The bytes as ONNX stores them, without a copy where memory holds them so already."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _refer(proto: onnx.ModelProto, offsets: dict[str, int], name: str) -> None:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            entries = {entry.key: entry for entry in tensor.external_data}
            if entries:
                entries["offset"].value = str(offsets[entries["location"].value])
                entries["location"].value = name
        for node in graph.node:
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _own_data_files(path: Path) -> set[Path]:
    """Data files that an earlier `save` wrote for the model at `path`."""
    pattern = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.data")
    try:
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return set()
    names = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and pattern.fullmatch(entry.value)
    }
    return {path.resolve().with_name(name) for name in names}


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__

"""External data: which file a tensor may come from, and mapping it into memory."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxptq.errors import ModelError


def map_tensor(tensor: ir.ExternalTensor, folder: Path, source: str) -> ir.TensorProtocol:
    """Map an external tensor into memory, read only when it is used.

    Args:
        tensor: The reference as the file holds it.
        folder: The model's folder, which the data must not leave.
        source: The model file, for error messages.

    Raises:
        ModelError: The data file is missing, outside `folder`, or too short.
    """
    path = _data_path(str(tensor.location), folder, f"{source}: tensor {tensor.name!r}")
    offset = tensor.offset or 0
    needed = tensor.nbytes if tensor.length is None else max(tensor.length, tensor.nbytes)
    size = path.stat().st_size
    if offset < 0 or offset + needed > size:
        raise ModelError(
            f"{source}: tensor {tensor.name!r} needs bytes {offset} to {offset + needed} of "
            f"external data {path.name}, which has {size} bytes: it is truncated or belongs "
            "to another model. Copy it again"
        )
    return _read(tensor, path, offset)


def _data_path(location: str, folder: Path, what: str) -> Path:
    """The file behind `location`, refused when it leaves `folder`, also by a link."""
    outside = ModelError(
        f"{what} is stored in external data {location!r}, which is outside the model's folder "
        f"{folder}. Only files inside that folder are read: put the data file beside the model and "
        "save the model again"
    )
    if not location or Path(location).is_absolute() or "\\" in location or "\0" in location:
        raise outside
    home = folder.resolve()
    if not Path(os.path.normpath(home / location)).is_relative_to(home):
        raise outside
    path = (home / location).resolve()
    if not path.is_relative_to(home):
        raise outside
    if not path.is_file():
        raise ModelError(
            f"{what} is stored in external data {location!r}, but {path} does not exist. "
            "Copy that file beside the model"
        )
    return path


def _read(tensor: ir.ExternalTensor, path: Path, offset: int) -> ir.TensorProtocol:
    shape = tuple(int(n) for n in tensor.shape.numpy())
    if tensor.dtype.bitwidth >= 8 and tensor.size > 0:
        dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
        array = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(tensor.nbytes,))
        return ir.Tensor(
            np.asarray(array).view(dtype).reshape(shape),
            dtype=tensor.dtype,
            name=tensor.name,
            metadata_props=dict(tensor.metadata_props),
        )
    with path.open("rb") as file:
        file.seek(offset)
        raw = file.read(tensor.nbytes)
    proto = onnx.TensorProto(name=tensor.name or "", data_type=tensor.dtype.value, dims=shape)
    proto.raw_data = raw
    return ir.serde.deserialize_tensor(proto)

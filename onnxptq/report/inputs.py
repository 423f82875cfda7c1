"""Data for a model file: its inputs, and the preprocessing that its metadata remembers."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxptq import ort
from onnxptq.calibrate.data import open_data
from onnxptq.calibrate.ports import PortInfo
from onnxptq.calibrate.source import Data
from onnxptq.errors import ModelError

PREPROCESS_KEY = "onnxptq.preprocess"
"""Key of `metadata_props` under which `quantize` keeps the text of the preprocessing."""


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How data are read.

    Attributes:
        preprocess: Text of the preprocessing; None for the one stored in the model, or none.
        samples: How many of the first samples; None for all.
        batch_size: Samples fed at a time, where the model leaves the choice.
    """

    preprocess: str | None = None
    samples: int | None = None
    batch_size: int = 8


def open_for(
    model: ir.Model, inputs: Sequence[ort.Port], source: object, options: DataOptions
) -> Data:
    """Open DATA for a model.

    Raises:
        CalibrationError: The data cannot be read or do not fit the model's inputs.
        ModelError: An input is of a type that arrays do not hold.
        SpecError: The preprocessing text is malformed.
    """
    preprocess = options.preprocess or model.metadata_props.get(PREPROCESS_KEY)
    return open_data(source, [info(port) for port in inputs], preprocess, options.samples)


def info(port: ort.Port) -> PortInfo:
    """An input as data are checked against.

    Raises:
        ModelError: It is of a type that arrays do not hold.
    """
    if port.dtype is None:
        raise ModelError(
            f"input {port.name!r} is neither a number nor a truth value; such models cannot be fed"
        )
    return PortInfo(port.name, port.dtype, port.shape)

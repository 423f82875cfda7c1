"""How weight codes lie in the file: packed, and unpacked by nodes that onnxruntime folds.

Loaded, each layout is an int8 constant in front of the layer, so outputs and speed are those of
int8 storage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.quant import QParams

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

FLOOR: tuple[int, ...] = (1, 23, 2)
"""The oldest onnxruntime we write for; benchmarks/ort_versions.py measures it."""

INT2_FROM: tuple[int, ...] = (1, 29, 0)

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""A width as a sum of widths that divide a byte, lowest bits first."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Choice of layout.

    Attributes:
        kind: "packed": as small as the bits say; "int8": one byte a code.
        int4: Whether 4-bit codes may be an INT4 initializer (onnxruntime 1.23.2 and later folds
        its Cast). int2: Whether 2-bit codes may be an INT2 initializer (opset 25, onnxruntime
            1.24.4 and later).
    """

    kind: Literal["packed", "int8"] = "packed"
    int4: bool = True
    int2: bool = False

    @classmethod
    def for_target(cls, kind: str, target: str | None) -> "Storage":
        """The layout that an onnxruntime version can run; None means the oldest one we support.

        Raises:
            SpecError: `kind` or `target` is not known.
        """
        if kind not in ("packed", "int8"):
            raise SpecError(f"storage {kind!r}: it must be packed or int8")
        version = parse_version(target) if target else FLOOR
        int2 = target is not None and version >= INT2_FROM
        return cls("int8" if kind == "int8" else "packed", int4=version >= (1, 23, 2), int2=int2)


def parse_version(text: str) -> tuple[int, ...]:
    """Numbers of a version text.

    Raises:
        SpecError: Not of the form 1.24 or 1.24.4.
    """
    parts = text.split(".")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        raise SpecError(f"target-ort {text!r}: expected an onnxruntime version like 1.24.4")
    return (*(int(part) for part in parts), *[0] * (3 - len(parts)))


class WeightWriter:
    """Writes weight codes into one graph; lookup tables are shared between the weights."""

    def __init__(self, graph: ir.Graph, storage: Storage) -> None:
        self._graph = graph
        self._storage = storage

    def write(self, name: str, codes: Codes, params: QParams) -> tuple[ir.Value, list[ir.Node]]:
        """Add the initializers of one weight.

        Args:
            name: Name of the int8 tensor to make.
            codes: Codes, any shape.
            params: Their format; `code_lo` says where the window of each channel begins.

        Returns:
            The int8 value, and the nodes that make it, in order, not yet in the graph.
        """
        bits = params.spec.bits
        if bits == 8 or self._storage.kind == "int8" or codes.size == 0:
            return self._initializer(name, codes), []
        if bits == 4 and self._storage.int4 and not _shifted(params):
            return self._cast(name, codes, ir.DataType.INT4)
        if bits == 2 and self._storage.int2 and not _shifted(params):
            return self._cast(name, codes, ir.DataType.INT2)
        return self._planes(name, codes, params)

    def _initializer(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
        self._graph.register_initializer(value)
        return value

    def _cast(self, name: str, codes: Codes, dtype: ir.DataType) -> tuple[ir.Value, list[ir.Node]]:
        stored = f"{name}_{dtype.name.lower()}"
        tensor = ir.Tensor(codes.astype(dtype.numpy()), dtype=dtype, name=stored)
        source = ir.val(stored, const_value=tensor)
        self._graph.register_initializer(source)
        cast = _node("Cast", [source], name, {"to": ir.DataType.INT8})
        return cast.outputs[0], [cast]

    def _planes(self, name: str, codes: Codes, params: QParams) -> tuple[ir.Value, list[ir.Node]]:
        """Each plane of bits is a byte string; a table of 256 rows turns a byte into its codes."""
        ndim = codes.ndim
        code_lo = params.along(params.code_lo, ndim)
        unsigned = (codes.astype(np.int32) - code_lo).astype(np.uint8).reshape(-1)
        nodes: list[ir.Node] = []
        flat: ir.Value | None = None
        position = 0
        for width in PLANES[params.spec.bits]:
            plane = ((unsigned >> position) & ((1 << width) - 1)).astype(np.uint8)
            part = self._plane(f"{name}_bits{position}", plane, width, position)
            nodes += part
            if flat is None:
                flat = part[-1].outputs[0]
            else:
                both = _node("BitwiseOr", [flat, part[-1].outputs[0]], f"{name}_or{position}")
                nodes.append(both)
                flat = both.outputs[0]
            position += width
        assert flat is not None
        shape = self._initializer(f"{name}_shape", np.array(codes.shape, np.int64))
        shaped = _node("Reshape", [flat, shape], f"{name}_unsigned")
        signed = _node("Cast", shaped.outputs, f"{name}_signed", {"to": ir.DataType.INT8})
        lowest = self._initializer(f"{name}_code_lo", np.asarray(code_lo, np.int8))
        total = _node("Add", [signed.outputs[0], lowest], name)
        return total.outputs[0], [*nodes, shaped, signed, total]

    def _plane(self, name: str, plane: Bytes, width: int, position: int) -> list[ir.Node]:
        packed = self._initializer(name, pack(plane, width))
        table = self._table(width, position)
        index = _node("Cast", [packed], f"{name}_index", {"to": ir.DataType.INT32})
        rows = _node("Gather", [table, index.outputs[0]], f"{name}_rows", {"axis": 0})
        length = self._initializer(f"{name}_length", np.array([-1], np.int64))
        flat = _node("Reshape", [rows.outputs[0], length], f"{name}_flat")
        nodes = [index, rows, flat]
        if plane.size % (8 // width):
            ends = [
                self._initializer(f"{name}_{end}", np.array([number], np.int64))
                for end, number in (("start", 0), ("stop", plane.size))
            ]
            nodes.append(_node("Slice", [flat.outputs[0], *ends], f"{name}_cut"))
        return nodes

    def _table(self, width: int, position: int) -> ir.Value:
        name = f"onnxptq_unpack_{width}bit_at{position}"
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        shifts = np.arange(0, 8, width)
        fields = (np.arange(256)[:, None] >> shifts) & ((1 << width) - 1)
        return self._initializer(name, (fields << position).astype(np.uint8))


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes so many packed codes take."""
    return sum(-(-count * width // 8) for width in PLANES.get(bits, (bits,)))


def pack(fields: Bytes, width: int) -> Bytes:
    """Put fields of 1, 2 or 4 bits into bytes, the first lowest; zeros fill the last byte."""
    per_byte = 8 // width
    padded = np.zeros(-(-fields.size // per_byte) * per_byte, np.uint8)
    padded[: fields.size] = fields
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    return np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).astype(np.uint8)


def _shifted(params: QParams) -> bool:
    return bool((params.code_lo != params.spec.default_code_lo).any())


def _node(
    op_type: str,
    inputs: Sequence[ir.Value],
    output: str,
    attributes: dict[str, int] | None = None,
) -> ir.Node:
    value = ir.val(output)
    return ir.node(
        op_type, list(inputs), attributes or {}, outputs=[value], name=f"{output}_{op_type}"
    )

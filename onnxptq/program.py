"""IntegerProgram: what the executor runs. Target-neutral, printable, saved as one .npz file.

A program is a list of instructions over numbered values. Codes are unpacked and as ONNX has them
(int8 stays int8), shapes may be symbolic, no CPU is in it: kernels, layouts and offsets are chosen
later, by `runtime.plan`, for concrete input shapes.

Instructions: operands, arrays and attributes (scales are float32; [C] may be [1]: one for all):

    quantize    x real -> codes         arrays scale [C], zero_point [C]; attrs axis, lo, hi
    dequantize  x codes -> real         arrays scale [C], zero_point [C]; attrs axis
    acc_to_real x acc -> real           arrays scale [C], bias [C] or absent (real); attrs axis
    conv        x -> codes, or acc      arrays weight [M, C/group, k...], weight_zero [1 or M],
                                        bias [M] or absent; attrs x_zero, strides, pads,
                                        dilations, group, auto_pad, channels_last
    matmul      a -> codes, or acc      arrays weight [..., K, N], weight_zero [1 or N],
                                        bias [N] or absent; attrs x_zero
    matmul_computed  a, b -> codes, or acc   array bias [N] or absent; attrs a_zero, b_zero
    add, mul, minimum, maximum  a, b -> codes   numpy broadcasting; requant of add, mul: PairRequant
    reached     x acc -> codes          array table [C, levels], attrs axis, lo: the code is lo plus
                                        the number of thresholds of its channel reached
    table       x -> codes              array table [256], by code - lowest code of x's type
    clip        x -> codes              attrs lo, hi
    concat      x... -> codes           attrs axis; array tables [n, 256] or absent (copies)
    max_pool    x -> codes              attrs kernel_shape, strides, pads, dilations, auto_pad,
                                        ceil_mode, channels_last
    average_pool  x -> codes            attrs of max_pool and count_include_pad;
                                        arrays scales [2] (x, y), zero_points [2]
    global_average_pool  x -> codes     attrs channels_last; arrays scales [2], zero_points [2]
    softmax     x -> codes              attrs axis, opset, exact (quotients; else float32 ones);
                                        arrays scales [2], zero_points [2]
    reduce_max, reduce_min  x [, axes]  attrs keepdims
    transpose   x                       attrs perm
    flatten     x                       attrs axis
    reshape     x, shape                attrs allowzero
    squeeze, unsqueeze  x [, axes]
    expand      x, shape
    tile        x, repeats
    slice       x, starts, ends [, axes, steps]
    pad         x, pads [, -1, axes]    attrs value, mode
    gather      x, indices              attrs axis
    split       x [, split] -> y...     attrs axis
    depth_to_space  x                   attrs blocksize, mode
    resize      x, -1, scales [, sizes] attrs coordinate_transformation_mode, nearest_mode, axes,
                                        keep_aspect_ratio_policy; always nearest
    identity    x
    island      values -> values        attrs island: which of `islands`; onnxruntime runs it
    host        values -> values        the same, but what it gives depends on shapes and constants
                                        alone: it is run once for a plan, on zeros of these shapes

Operands that set shapes (shape, starts, axes, ...) are constants of the program or made by host
instructions. An absent operand is -1. Conv, matmul and matmul_computed without a requant give
accumulators (int32).
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.files import write_atomically
from onnxptq.formulas import Affine, PairFormula
from onnxptq.requant import Form, Requant
from onnxptq.requant_pairs import PairForm, PairRequant

Array = npt.NDArray[Any]
Attribute = int | str | tuple[int, ...]
Dims = tuple[int | str | None, ...]

FORMAT = "onnxptq-program-1"
ABSENT = -1

_DAMAGES = (KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile)
"""What a file that is no program makes numpy, json and the types below complain of."""


@dataclass(frozen=True, slots=True)
class Value:
    """What an instruction reads or makes.

    Attributes:
        name: Its name in the graph that onnxruntime runs.
        dtype: numpy's name of the element type.
        lo: Lowest code that can occur (8-bit types; else 0).
        hi: Highest code that can occur.
    """

    name: str
    dtype: str
    lo: int = 0
    hi: int = 0

    @property
    def is_codes(self) -> bool:
        """Whether it holds 8-bit codes."""
        return self.dtype in ("uint8", "int8")


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a program; free dimensions of its shape have names or are None."""

    name: str
    value: int
    shape: Dims | None


@dataclass(frozen=True, slots=True, eq=False)
class Instr:
    """One instruction; the module's table says what each `op` takes.

    Attributes:
        op: What is computed.
        inputs: Value ids; -1 where an operand is absent.
        outputs: Value ids.
        node: The node of the file it came from, for errors and reports.
        arrays: Constants of the instruction, by name.
        attrs: Numbers and texts, by name.
        requant: How accumulators (or pairs of codes) become codes.
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: str = ""
    arrays: Mapping[str, Array] = field(default_factory=dict[str, Array])
    attrs: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])
    requant: Requant | PairRequant | None = None

    def ints(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        found = self.attrs[name]
        assert isinstance(found, tuple)
        return found

    def int(self, name: str) -> int:
        """An attribute that is an integer."""
        found = self.attrs[name]
        assert isinstance(found, int)
        return found

    def text(self, name: str) -> str:
        """An attribute that is a text."""
        found = self.attrs[name]
        assert isinstance(found, str)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Island:
    """Nodes that onnxruntime runs: an ONNX model of their own.

    Attributes:
        model: The serialised submodel; its inputs and outputs are named as the values are.
        nodes: Names of its nodes.
        op_types: Their operators, in order.
        why: Why they are not integer instructions.
        block: Channels that stand together in the layout of its float convolutions, which belongs
            to a class of CPU; 0 where it has none.
    """

    model: npt.NDArray[np.uint8]
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    why: str = ""
    block: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class IntegerProgram:
    """A quantized network as integer instructions.

    Attributes:
        inputs: What it is fed with.
        outputs: What it gives.
        values: All values; instructions refer to them by position.
        constants: Values that are fixed, by position.
        instrs: In an order in which they can run.
        islands: What island and host instructions run.
        source_digest: Digest of the quantized model.
        runtime: Version of the onnxruntime whose arithmetic it has.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    values: tuple[Value, ...]
    constants: Mapping[int, Array]
    instrs: tuple[Instr, ...]
    islands: tuple[Island, ...] = ()
    source_digest: str = ""
    runtime: str = ""

    def save(self, path: Path) -> None:
        """Write one .npz file, which runs without onnx; the same program gives the same bytes.

        Raises:
            ModelError: The file cannot be written.
        """
        write_atomically(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        store = _Store()
        header = {"format": FORMAT, "program": store.describe(self)}
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, header=text, **store.arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> "IntegerProgram":
        """Read what `save` wrote.

        Raises:
            ProgramError: The file cannot be read or is no program.
        """
        try:
            with Path(path).open("rb") as file:
                return cls._read(file)
        except OSError as error:
            raise ProgramError(f"cannot read {path}: {error.strerror}") from error
        except ProgramError as error:
            raise ProgramError(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "IntegerProgram":
        """Read what `to_bytes` gave.

        Raises:
            ProgramError: Not a program, or made by another version.
        """
        return cls._read(io.BytesIO(data))

    @classmethod
    def _read(cls, source: BinaryIO) -> "IntegerProgram":
        try:
            with np.load(source, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(arrays.pop("header").tobytes())
            if header["format"] != FORMAT:
                raise ProgramError(
                    f"a program of format {header['format']!r}, expected {FORMAT!r}; "
                    "lower the quantized model again"
                )
            program = _restore(header["program"], arrays)
        except _DAMAGES as error:
            raise ProgramError(
                f"not a program ({type(error).__name__}: {error}); give a file that "
                "IntegerProgram.save wrote"
            ) from error
        if not isinstance(program, cls):
            raise ProgramError("not a program; give a file that IntegerProgram.save wrote")
        return program

    def to_text(self) -> str:
        """The program for people: a line for each port, constant and instruction."""
        ports = [
            *(f"input  {_port(port, self.values)}" for port in self.inputs),
            *(f"output {_port(port, self.values)}" for port in self.outputs),
        ]
        fixed = [
            f"const  %{number} {_value(self.values[number])} {_array(array)}"
            for number, array in sorted(self.constants.items())
        ]
        return "\n".join([*ports, *fixed, *(self._line(instr) for instr in self.instrs)]) + "\n"

    def _line(self, instr: Instr) -> str:
        outputs = ", ".join(f"%{i} {_value(self.values[i])}" for i in instr.outputs)
        inputs = ", ".join("-" if i == ABSENT else f"%{i}" for i in instr.inputs)
        details = [f"{name}={_plain(value)}" for name, value in sorted(instr.attrs.items())]
        details += [f"{name}={_array(value)}" for name, value in sorted(instr.arrays.items())]
        if instr.requant is not None:
            details.append(_requant(instr.requant))
        text = " ".join([f"{outputs} = {instr.op}({inputs})", *details])
        if instr.op in ("island", "host"):
            text += f" [{' '.join(self.islands[instr.int('island')].op_types)}]"
        return f"{text}  # {instr.node}" if instr.node else text


def _value(value: Value) -> str:
    kind = {"uint8": "u8", "int8": "s8", "int32": "i32", "float32": "f32"}.get(value.dtype)
    text = kind or value.dtype
    return f"{text}[{value.lo}..{value.hi}]" if value.is_codes else text


def _port(port: Port, values: tuple[Value, ...]) -> str:
    shape = (
        "?" if port.shape is None else "x".join("?" if n is None else str(n) for n in port.shape)
    )
    return f"%{port.value} {_value(values[port.value])} {port.name!r} {shape}"


def _plain(value: Attribute) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _array(array: Array) -> str:
    """Shape, and a digest that changes with any element."""
    shape = "x".join(map(str, array.shape)) or "scalar"
    data = np.ascontiguousarray(array).tobytes()
    return f"{array.dtype}[{shape}]:{hashlib.sha256(data).hexdigest()[:8]}"


def _requant(requant: Requant | PairRequant) -> str:
    """The forms and how many groups have them; all numbers as a digest."""
    if isinstance(requant, PairRequant):
        form = requant.form.name.lower()
        terms = [requant.multipliers, requant.rounding, requant.shift]
        text = f"{form}:{_plain(requant.multipliers)}+{requant.rounding}>>{requant.shift}"
        return text if terms[0] != (0, 0) else f"{form}:{_array(requant.table)}"
    counts = [(form, int((requant.form == form).sum())) for form in Form]
    forms = "+".join(f"{count}x{form.name.lower()}" for form, count in counts if count)
    numbers = (
        requant.scale,
        requant.multiplier,
        requant.rounding,
        requant.shift,
        requant.thresholds,
    )
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(n).tobytes() for n in numbers))
    return f"requant={forms}[{requant.lo}..{requant.hi}]:{digest.hexdigest()[:8]}"


_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        IntegerProgram,
        Port,
        Value,
        Instr,
        Island,
        Requant,
        PairRequant,
        PairFormula,
        Affine,
    )
}


class _Store:
    """Turns a program into JSON; arrays are put aside and referred to by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._writers: dict[type, Callable[[Any], Any]] = {
            np.ndarray: self._put,
            np.generic: lambda number: {"number": self._put(np.asarray(number))},
            np.dtype: lambda dtype: {"dtype": str(dtype)},
            PairForm: lambda form: {"pair_form": int(form)},
            tuple: lambda items: {"tuple": [self.describe(item) for item in items]},
            Mapping: lambda items: {"mapping": [[k, self.describe(v)] for k, v in items.items()]},
        }

    def describe(self, thing: object) -> Any:
        for kind, write in self._writers.items():
            if isinstance(thing, kind):
                return write(thing)
        if is_dataclass(thing):
            parts = {f.name: self.describe(getattr(thing, f.name)) for f in fields(thing)}
            return {"type": type(thing).__name__, "fields": parts}
        return thing

    def _put(self, array: Array) -> Any:
        name = f"a{len(self.arrays)}"
        self.arrays[name] = array
        return {"array": name}


def _restore(entry: Any, arrays: Mapping[str, Array]) -> Any:
    if not isinstance(entry, dict):
        return entry
    kind, content = next(iter(entry.items()))
    if kind == "type":
        parts = {name: _restore(value, arrays) for name, value in entry["fields"].items()}
        return _TYPES[content](**parts)
    return _READERS[kind](content, arrays)


_READERS: dict[str, Callable[[Any, Mapping[str, Array]], Any]] = {
    "array": lambda name, arrays: arrays[name],
    "number": lambda entry, arrays: _restore(entry, arrays)[()],
    "dtype": lambda name, _: np.dtype(name),
    "pair_form": lambda number, _: PairForm(number),
    "tuple": lambda items, arrays: tuple(_restore(item, arrays) for item in items),
    "mapping": lambda items, arrays: {key: _restore(value, arrays) for key, value in items},
}

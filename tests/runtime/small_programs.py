"""Programs of one instruction, and models of one node to compare them with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxptq import formulas, ort, requant, requant_pairs
from onnxptq.program import Attribute, Instr, IntegerProgram, Island, Port, Value
from onnxptq.requant import Requant
from onnxptq.runtime.execute import Executor

Array = npt.NDArray[Any]
F = np.float32
MICROSOFT = "com.microsoft"
ENDS = {"uint8": (0, 255), "int8": (-128, 127)}


def value(name: str, dtype: str) -> Value:
    """A value whose codes may be any."""
    return Value(name, dtype, *ENDS.get(dtype, (0, 0)))


class Builder:
    """Puts a program together, value by value."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.constants: dict[int, Array] = {}
        self.instrs: list[Instr] = []
        self.inputs: list[Port] = []
        self.islands: list[Island] = []

    def value(self, dtype: str) -> int:
        self.values.append(value(f"v{len(self.values)}", dtype))
        return len(self.values) - 1

    def input(self, dtype: str, shape: Sequence[int | str | None] | None = None) -> int:
        number = self.value(dtype)
        sizes = None if shape is None else tuple(shape)
        self.inputs.append(Port(self.values[number].name, number, sizes))
        return number

    def constant(self, array: Any) -> int:
        number = self.value(str(np.asarray(array).dtype))
        self.constants[number] = np.asarray(array)
        return number

    def add(
        self,
        op: str,
        inputs: Sequence[int],
        dtypes: str | Sequence[str],
        attrs: Mapping[str, Attribute] | None = None,
        **rest: Any,
    ) -> int:
        """Append an instruction; the id of its first output."""
        dtypes = [dtypes] if isinstance(dtypes, str) else dtypes
        outputs = tuple(self.value(dtype) for dtype in dtypes)
        node = f"{op}_{len(self.instrs)}"
        self.instrs.append(Instr(op, tuple(inputs), outputs, node, attrs=attrs or {}, **rest))
        return outputs[0]

    def island(self, model: onnx.ModelProto) -> int:
        data = np.frombuffer(model.SerializeToString(), np.uint8)
        types = tuple(node.op_type for node in model.graph.node)
        self.islands.append(Island(data, types, types))
        return len(self.islands) - 1

    def program(self, *outputs: int) -> IntegerProgram:
        ports = tuple(Port(self.values[i].name, i, None) for i in outputs)
        return IntegerProgram(
            tuple(self.inputs),
            ports,
            tuple(self.values),
            self.constants,
            tuple(self.instrs),
            tuple(self.islands),
        )


def run_one(
    op: str,
    x: Array,
    dtype: str,
    operands: Sequence[Array | None] = (),
    threads: int = 1,
    **rest: Any,
) -> Array:
    """What one instruction with one computed input makes of `x`."""
    builder = Builder()
    inputs = [builder.input(str(x.dtype))]
    inputs += [-1 if array is None else builder.constant(array) for array in operands]
    program = builder.program(builder.add(op, inputs, dtype, **rest))
    return Executor(program, threads).run(None, {"v0": x})[0]


def graph(
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, Array],
    outputs: Mapping[str, str],
    constants: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """A model whose inputs have the types and ranks of `feeds`."""

    def kind(dtype: Any) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    made = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(
                name, kind(x.dtype), [f"{name}{i}" for i in range(x.ndim)]
            )
            for name, x in feeds.items()
        ],
        [helper.make_tensor_value_info(name, kind(t), None) for name, t in outputs.items()],
        [numpy_helper.from_array(a, name) for name, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def reference(
    node: str,
    feeds: Mapping[str, Array],
    dtype: str,
    constants: Mapping[str, Array | None] | None = None,
    domain: str = "",
    **attributes: Any,
) -> Array:
    """What onnxruntime's kernel of an operator gives; operands in the order of feeds, constants."""
    given = dict(constants or {})
    names = [*feeds, *(name if array is not None else "" for name, array in given.items())]
    one = helper.make_node(node, names, ["y"], domain=domain, **attributes)
    fixed = {name: array for name, array in given.items() if array is not None}
    model = graph([one], feeds, {"y": dtype}, fixed)
    session = ort.session(model.SerializeToString(), threads=1, optimize=False)
    return session.run(dict(feeds))["y"]


def random_codes(rng: np.random.Generator, dtype: str, *shape: int) -> Array:
    lo, hi = ENDS[dtype]
    return rng.integers(lo, hi + 1, shape).astype(dtype)


def random_scales(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Multiples of 0.01, which give many ties."""
    return (rng.integers(1, 30, shape) * F(0.01)).astype(np.float32)


def found(scale: Array, zero: int, dtype: str, reach: int = 1 << 24) -> Requant:
    """The requantization to codes of this type for accumulators within +-reach."""
    lo, hi = ENDS[dtype]
    return requant.find(np.atleast_1d(scale), zero, lo, hi, np.int64(-reach), np.int64(reach))


def found_pair(
    kind: str, scales: Sequence[Any], zeros: Sequence[int], dtype: str, swapped: bool = False
) -> requant_pairs.PairRequant:
    """The requantization of all pairs of codes."""
    sides = [formulas.Affine(F(s), z) for s, z in zip(scales, zeros, strict=True)]
    formula = formulas.PairFormula(*sides, np.dtype(dtype), swapped)  # type: ignore[arg-type]
    limits = ENDS[dtype]
    return requant_pairs.find_pair(kind, formula, *limits, limits, limits)

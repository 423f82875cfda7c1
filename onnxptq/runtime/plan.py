"""Plan: a program for concrete input shapes, laid out in one arena and written as rows.

Shapes of all values are found here, once; what a run does afterwards is to fill the inputs in, to
walk the rows, and to copy the outputs out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxptq.errors import OnnxptqError, ProgramError
from onnxptq.kernels.dispatch import MOST_PARTS, ROW
from onnxptq.program import ABSENT, Instr, IntegerProgram
from onnxptq.runtime import (
    arena,
    plan_elementwise,
    plan_layers,
    plan_movement,
    plan_products,
    plan_resize,
    plan_sums,
)
from onnxptq.runtime.draft import (
    I64,
    SCRATCH,
    U8,
    Array,
    Draft,
    IslandCall,
    Origin,
    RowDraft,
    Shape,
)
from onnxptq.runtime.sessions import Sessions

Planner = Callable[[Draft, Instr], None]

PLANNERS: dict[str, Planner] = {
    "quantize": plan_elementwise.quantize,
    "dequantize": plan_elementwise.dequantize,
    "acc_to_real": plan_elementwise.acc_to_real,
    "conv": plan_products.conv,
    "matmul": plan_products.matmul,
    "matmul_computed": plan_products.matmul_computed,
    "add": plan_elementwise.pair,
    "mul": plan_elementwise.pair,
    "minimum": plan_elementwise.pair,
    "maximum": plan_elementwise.pair,
    "reached": plan_elementwise.reached,
    "table": plan_elementwise.table,
    "clip": plan_elementwise.clip,
    "concat": plan_movement.concat,
    "max_pool": plan_layers.max_pool,
    "average_pool": plan_layers.average_pool,
    "global_average_pool": plan_layers.global_average_pool,
    "softmax": plan_layers.softmax,
    "reduce_max": plan_layers.reduce,
    "reduce_min": plan_layers.reduce,
    "transpose": plan_movement.transpose,
    "flatten": plan_movement.flatten,
    "reshape": plan_movement.reshape,
    "squeeze": plan_movement.squeeze,
    "unsqueeze": plan_movement.unsqueeze,
    "expand": plan_movement.expand,
    "tile": plan_movement.tile,
    "slice": plan_movement.slice_,
    "pad": plan_movement.pad,
    "gather": plan_movement.gather,
    "split": plan_movement.split,
    "depth_to_space": plan_movement.depth_to_space,
    "resize": plan_resize.resize,
    "identity": plan_movement.identity,
}
BY_ONNXRUNTIME = ("island", "host")
ONNXRUNTIME = "onnxruntime"
"""Who computes an island, where rows have the name of a kernel."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value is: first byte in the arena, sizes, and its type in the program."""

    offset: int
    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a run of a program for certain input shapes does.

    Attributes:
        arena_bytes: Of all values; scratch lies behind them.
        scratch_bytes: Of each part of a row.
        consts: Weights, tables and all else that kernels read, uint8 [bytes].
        steps: Rows of kernel calls [n, 64], and islands between them.
        shared: Whether any row has work for more than one thread.
        slots: Values in the arena, by id. What only islands read and write is not there.
        fixed: Values that do not depend on the input's values, by id, as ONNX has them.
        images: Offset and content of what lies in the arena before any run.
        origins: What each row and each island is for, in the order of `steps`.
    """

    arena_bytes: int
    scratch_bytes: int
    consts: U8
    steps: tuple[I64 | IslandCall, ...]
    shared: bool
    slots: Mapping[int, Slot]
    fixed: Mapping[int, Array]
    images: tuple[tuple[int, Array], ...]
    origins: tuple[Origin, ...]


def make_plan(
    program: IntegerProgram,
    input_shapes: Mapping[str, Shape],
    keep_all: bool = False,
    sessions: Sessions | None = None,
) -> Plan:
    """Find all shapes, choose kernels, pack constants and lay the arena out.

    Args:
        program: What to run.
        input_shapes: Of every input, by name.
        keep_all: Give every value bytes of its own, so that all can be read after a run.
        sessions: Where islands run; own ones where not given.

    Raises:
        ProgramError: Shapes do not fit; the node is named.
    """
    draft = Draft(program)
    read = {value for i in program.instrs if i.op not in BY_ONNXRUNTIME for value in i.inputs}
    examples = _Examples(draft, sessions or Sessions(program.islands))
    for port in program.inputs:
        if port.name not in input_shapes:
            raise ProgramError(f"no shape for input {port.name!r}; give one for every input")
        examples.shapes[port.value] = input_shapes[port.name]
        if port.value in read:
            draft.make(port.value, input_shapes[port.name])
    if not keep_all:
        draft.sums = plan_sums.sums_of_convolutions(program)
    for draft.instr, instr in enumerate(program.instrs):
        if draft.done.intersection(instr.outputs):
            continue
        try:
            if instr.op in BY_ONNXRUNTIME:
                _plan_island(draft, instr, examples, read)
            elif instr.op in PLANNERS:
                PLANNERS[instr.op](draft, instr)
            else:
                raise ProgramError(f"no such instruction; known are {', '.join(PLANNERS)}")
        except (OnnxptqError, ValueError, IndexError) as error:
            raise ProgramError(f"node {instr.node!r} ({instr.op}): {error}") from error
    return _finish(draft, keep_all)


class _Examples:
    """Values of the right shapes: known ones as they are, all others zeros."""

    def __init__(self, draft: Draft, sessions: Sessions) -> None:
        self.shapes: dict[int, Shape] = {}
        self._draft = draft
        self._sessions = sessions
        self._makers = {
            value: instr
            for instr in draft.program.instrs
            if instr.op in BY_ONNXRUNTIME
            for value in instr.outputs
        }
        self._found: dict[int, Array] = {}

    def of(self, value: int) -> Array:
        """One value; what onnxruntime makes of examples where the arena does not have it."""
        draft = self._draft
        if value in draft.known:
            return draft.known[value]
        if value in draft.views:
            shape = draft.views[value].shape
            return np.zeros(shape, draft.program.values[value].dtype)
        if value in self.shapes:
            return np.zeros(self.shapes[value], draft.program.values[value].dtype)
        if value not in self._found:
            self.run(self._makers[value])
        return self._found[value]

    def run(self, instr: Instr) -> dict[int, Array]:
        """Outputs of an island on examples."""
        values = self._draft.program.values
        feeds = {values[value].name: self.of(value) for value in instr.inputs if value != ABSENT}
        made = self._sessions.run(instr.int("island"), feeds)
        outputs = {value: made[values[value].name] for value in instr.outputs}
        self._found |= outputs
        return outputs


def _plan_island(draft: Draft, instr: Instr, examples: _Examples, read: set[int]) -> None:
    if instr.op == "host":
        draft.known.update(examples.run(instr))
        return
    inputs = tuple(value for value in instr.inputs if value != ABSENT)
    call = IslandCall(instr.int("island"), inputs, instr.outputs, instr.node)
    draft.steps.append(call)
    draft.origins.append(Origin(draft.instr, ONNXRUNTIME))
    for value in instr.outputs:
        if value in read:
            draft.make(value, examples.of(value).shape)


def _touched(draft: Draft, step: RowDraft | IslandCall) -> list[int]:
    if isinstance(step, RowDraft):
        return [storage for _, storage in step.places if storage != SCRATCH]
    return _storages(draft, (*step.inputs, *step.outputs))


def _storages(draft: Draft, values: Sequence[int]) -> list[int]:
    return [draft.views[value].storage for value in values if value in draft.views]


def _finish(draft: Draft, keep_all: bool) -> Plan:
    program = draft.program
    images = [storage for storage, _ in draft.images]
    if keep_all:
        offsets, size = arena.apart(draft.sizes)
    else:
        lives = arena.lives_of(
            [_touched(draft, step) for step in draft.steps],
            len(draft.sizes),
            first=[*images, *_storages(draft, [port.value for port in program.inputs])],
            last=[*images, *_storages(draft, [port.value for port in program.outputs])],
        )
        offsets, size = arena.place(draft.sizes, lives)
    steps = _segments(draft.steps, {SCRATCH: size, **dict(enumerate(offsets))})
    slots = {
        value: Slot(offsets[view.storage] + view.offset, view.shape, program.values[value].dtype)
        for value, view in draft.views.items()
    }
    return Plan(
        arena_bytes=size,
        scratch_bytes=draft.scratch_bytes,
        consts=draft.constants.block(),
        steps=steps,
        shared=any(
            not isinstance(s, IslandCall) and bool((s[:, MOST_PARTS] > 1).any()) for s in steps
        ),
        slots=slots,
        fixed=draft.known,
        images=tuple((offsets[storage], array) for storage, array in draft.images),
        origins=tuple(draft.origins),
    )


def _segments(
    steps: Sequence[RowDraft | IslandCall], offsets: Mapping[int, int]
) -> tuple[I64 | IslandCall, ...]:
    """Neighbouring rows as one table, with their places filled in."""
    segments: list[I64 | IslandCall] = []
    rows: list[I64] = []
    for step in [*steps, None]:
        if isinstance(step, RowDraft):
            row = np.array(step.numbers, np.int64)
            for column, storage in step.places:
                row[column] += offsets[storage]
            rows.append(row)
            continue
        if rows:
            segments.append(np.stack(rows).reshape(-1, ROW))
            rows = []
        if step is not None:
            segments.append(step)
    return tuple(segments)

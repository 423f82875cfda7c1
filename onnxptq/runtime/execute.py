"""Executor: runs an integer program as onnxruntime runs a model, with the same bits."""

import importlib
import itertools
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ModelError
from onnxptq.kernels.dispatch import new_addresses, parts_of, update_addresses
from onnxptq.program import IntegerProgram, Port
from onnxptq.runtime.draft import SIGN, U8, IslandCall, empty_block, stored, stored_dtype
from onnxptq.runtime.plan import Plan, Slot, make_plan
from onnxptq.runtime.sessions import Sessions
from onnxptq.runtime.team import team

Array = npt.NDArray[Any]
Feeds = Mapping[str, npt.ArrayLike]
Shapes = tuple[tuple[int, ...], ...]

MOST_PLANS = 8
"""Input shapes whose plans are kept; beyond them the one that was not used for longest goes."""
MOST_ARENAS = 8
"""Arenas of one plan that are kept for later runs, so many callers run at once at full speed."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An input or output, described as onnxruntime does.

    Attributes:
        name: Its name.
        shape: Sizes; free ones are names or None.
        type: For example "tensor(float)".
    """

    name: str
    shape: list[int | str | None]
    type: str


@dataclass(slots=True, eq=False)
class _Arena:
    """Memory of one run: bytes, and arrays over the values that ports and islands touch."""

    block: U8
    views: dict[int, Array]


@dataclass(slots=True, eq=False)
class _Prepared:
    """A plan with the arenas that are free, and when it was used last."""

    plan: Plan
    used: int
    arenas: deque[_Arena] = field(default_factory=lambda: deque[_Arena](maxlen=MOST_ARENAS))


class Executor:
    """Runs a quantized model in integer arithmetic, bit for bit as onnxruntime does.

    It may be called from several threads at once, and after a fork.
    """

    def __init__(self, source: str | Path | IntegerProgram, threads: int = 1) -> None:
        """Load a program, or lower a quantized model to one.

        Args:
            source: A program, an .npz file that IntegerProgram.save wrote, or a quantized .onnx.
            threads: How many threads share the work of a run; 0 for as many as there are cores.

        Raises:
            OnnxptqError: The file cannot be read or is no quantized model.
        """
        if threads < 0:
            raise ModelError(f"threads must be 0 (all cores) or more, found {threads}")
        self.program = _program(source)
        self.threads = threads or _cores()
        self._sessions = Sessions(self.program.islands, self.threads)
        self._plans: dict[Shapes, _Prepared] = {}
        self._addresses = new_addresses()
        self._clock = itertools.count()

    def get_inputs(self) -> list[Argument]:
        """What `run` is fed with."""
        return [self._argument(port) for port in self.program.inputs]

    def get_outputs(self) -> list[Argument]:
        """What `run` gives."""
        return [self._argument(port) for port in self.program.outputs]

    def run(self, output_names: Sequence[str] | None, feeds: Feeds) -> list[Array]:
        """Outputs for one set of inputs.

        Args:
            output_names: Which outputs, in which order; None for all.
            feeds: An array for each input, by name.

        Raises:
            ModelError: A feed or an output name does not fit; it says which, what was found, and
                what was expected.
            ProgramError: Shapes do not fit each other inside of the network; the node is named.
        """
        wanted = self._wanted(output_names)
        arrays = self._checked(feeds)
        prepared = self._prepared(tuple(array.shape for array in arrays))
        plan = prepared.plan
        arena = self._take(prepared)
        try:
            loose = self._walk(plan, arena, arrays)
            return [_value(plan, arena, loose, value) for value in wanted]
        finally:
            prepared.arenas.append(arena)

    def trace(self, feeds: Feeds) -> dict[str, Array]:
        """Every value that a run computes or is fed with, by name, in the codes that ONNX has.

        Args:
            feeds: As for `run`.

        Raises:
            ModelError: As `run`.
            ProgramError: As `run`.
        """
        arrays, values = self._checked(feeds), self.program.values
        plan = self._plan(tuple(array.shape for array in arrays), keep_all=True)
        arena = _new_arena(plan, self.threads, plan.slots)
        loose = self._walk(plan, arena, arrays)
        found = {*plan.slots, *loose, *plan.fixed} - set(self.program.constants)
        return {values[i].name: _value(plan, arena, loose, i) for i in sorted(found)}

    def _argument(self, port: Port) -> Argument:
        dtype = self.program.values[port.value].dtype
        return Argument(port.name, list(port.shape or ()), f"tensor({_onnx_name(dtype)})")

    def _wanted(self, names: Sequence[str] | None) -> list[int]:
        known = {port.name: port.value for port in self.program.outputs}
        for name in names or ():
            if name not in known:
                raise ModelError(f"no output {name!r}, expected one of {', '.join(known)}")
        return [known[name] for name in names or known]

    def _checked(self, feeds: Feeds) -> list[Array]:
        ports = self.program.inputs
        expected = ", ".join(port.name for port in ports)
        for name in feeds:
            if all(name != port.name for port in ports):
                raise ModelError(f"no input {name!r}, expected {expected}")
        for port in ports:
            if port.name not in feeds:
                found = ", ".join(feeds) or "nothing"
                raise ModelError(
                    f"input {port.name!r} is missing: found {found}, expected {expected}"
                )
        arrays = [np.asarray(feeds[port.name]) for port in ports]
        for port, array in zip(ports, arrays, strict=True):
            self._check(port, array)
        return arrays

    def _check(self, port: Port, array: Array) -> None:
        dtype = self.program.values[port.value].dtype
        if array.dtype != dtype:
            raise ModelError(f"input {port.name!r} is {array.dtype}, expected {dtype}")
        if port.shape is None:
            return
        fits = array.ndim == len(port.shape) and all(
            not isinstance(size, int) or size == found
            for size, found in zip(port.shape, array.shape, strict=True)
        )
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in port.shape)
            raise ModelError(f"input {port.name!r} has shape {array.shape}, expected ({sizes})")

    def _prepared(self, shapes: Shapes) -> _Prepared:
        """The plan for these input shapes. No lock: a fork could leave one taken for ever."""
        found = self._plans.get(shapes)
        if found is None:
            plan = self._plan(shapes, keep_all=False)
            found = self._plans.setdefault(shapes, _Prepared(plan, next(self._clock)))
            kept = sorted(self._plans.items(), key=lambda item: item[1].used)
            for oldest, _ in kept[: len(kept) - MOST_PLANS]:
                self._plans.pop(oldest, None)
        found.used = next(self._clock)
        return found

    def _plan(self, shapes: Shapes, *, keep_all: bool) -> Plan:
        """A new plan, whose kernels are ready."""
        named = {p.name: n for p, n in zip(self.program.inputs, shapes, strict=True)}
        plan = make_plan(self.program, named, keep_all, self._sessions)
        for step in plan.steps:
            if not isinstance(step, IslandCall):
                update_addresses(self._addresses, step)
        return plan

    def _take(self, prepared: _Prepared) -> _Arena:
        try:
            return prepared.arenas.pop()
        except IndexError:
            return _new_arena(prepared.plan, self.threads, _touched(self.program, prepared.plan))

    def _walk(self, plan: Plan, arena: _Arena, arrays: Sequence[Array]) -> dict[int, Array]:
        """Fill the inputs in and take all steps; give the values that are not in the arena."""
        loose: dict[int, Array] = {}
        for port, array in zip(self.program.inputs, arrays, strict=True):
            if port.value in arena.views:
                arena.views[port.value][...] = stored(array)
            else:
                loose[port.value] = array
        self._steps(plan, arena, loose, self.threads if plan.shared else 1)
        return loose

    def _steps(self, plan: Plan, arena: _Arena, loose: dict[int, Array], n_threads: int) -> None:
        for step in plan.steps:
            if isinstance(step, IslandCall):
                self._call(plan, arena, loose, step)
            else:
                team().run(step, self._addresses, arena.block, plan.consts, n_threads)

    def _call(self, plan: Plan, arena: _Arena, loose: dict[int, Array], call: IslandCall) -> None:
        values = self.program.values
        feeds = {values[i].name: _value(plan, arena, loose, i) for i in call.inputs}
        made = self._sessions.run(call.island, feeds)
        for value in call.outputs:
            array = made[values[value].name]
            if value not in arena.views:
                loose[value] = array
            elif array.shape == arena.views[value].shape:
                arena.views[value][...] = stored(array)
            else:
                raise ModelError(
                    f"node {call.node!r} gave shape {array.shape} for {values[value].name!r}, "
                    f"expected {arena.views[value].shape}: its shape depends on the input's values"
                )


def _cores() -> int:
    """Cores that this process may use, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _program(source: str | Path | IntegerProgram) -> IntegerProgram:
    if isinstance(source, IntegerProgram):
        return source
    path = Path(source)
    if path.suffix == ".npz":
        return IntegerProgram.load(path)
    # Lowering needs onnx and onnxruntime, which a saved program does without.
    program: IntegerProgram = importlib.import_module("onnxptq.runtime.lower").lower(path)
    return program


def _touched(program: IntegerProgram, plan: Plan) -> set[int]:
    """Values in the arena that are read or written between rows."""
    ports = {port.value for port in (*program.inputs, *program.outputs)}
    calls = (step for step in plan.steps if isinstance(step, IslandCall))
    values = ports.union(*((*call.inputs, *call.outputs) for call in calls))
    return values & set(plan.slots)


def _new_arena(plan: Plan, threads: int, values: "Mapping[int, Slot] | set[int]") -> _Arena:
    block = empty_block(plan.arena_bytes + parts_of(threads) * plan.scratch_bytes)
    for offset, array in plan.images:
        _over(block, Slot(offset, array.shape, str(array.dtype)))[...] = array
    return _Arena(block, {value: _over(block, plan.slots[value]) for value in values})


def _over(block: U8, slot: Slot) -> Array:
    """An array over the bytes of a value, as they are stored."""
    return np.ndarray(slot.shape, stored_dtype(slot.dtype), block.data, slot.offset)


def _value(plan: Plan, arena: _Arena, loose: Mapping[int, Array], value: int) -> Array:
    """A value as ONNX has it, in memory of its own."""
    if value not in arena.views:
        return np.array(loose[value] if value in loose else plan.fixed[value])
    view = arena.views[value]
    if plan.slots[value].dtype == "int8":
        return (view ^ np.uint8(SIGN)).view(np.int8)
    return view.copy()


def _onnx_name(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype, dtype)

"""Profile: the time of each layer in the executor, and what this machine could do at most.

The rows of a plan are run one by one, on one thread, with a clock between them. What the clock and
the call take is measured on no row at all, and taken off.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq import ort
from onnxptq.kernels import peak as peak_kernels
from onnxptq.kernels.peak import Peak
from onnxptq.program import Instr, IntegerProgram
from onnxptq.runtime.draft import IslandCall, Origin
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.plan import ONNXRUNTIME, Plan
from onnxptq.runtime.shares import Work, works
from onnxptq.runtime.team import team

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

WARM_RUNS = 2
EMPTY_RUNS = 200
"""Calls of no row, from which the time of measuring is known."""
LEAST_SECONDS = 1e-8
"""A row that takes no longer than the clock."""
FAST = 0.5
"""Layers at more than this share of the peak need no reason."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One instruction of the program, as it was run.

    Attributes:
        node: The node of the file it comes from.
        op: What is computed.
        kernel: Who computes it.
        shape: Sizes of what it reads and makes.
        macs: Products of codes that it stands for.
        bytes: What has to be read and written at least: inputs, constants, outputs.
        ms: Median time.
        gmac_per_s: Products a second, in 10^9.
        share_of_peak: Of the products a second that the machine can do.
        share_of_limit: The time that products and bytes take at least, of the time it took.
        share_of_time: Of the whole network's.
        bound: What the machine could at most do faster: "memory" or "compute"; "" above half of
            the peak.
    """

    node: str
    op: str
    kernel: str
    shape: str
    macs: int
    bytes: int
    ms: float
    gmac_per_s: float
    share_of_peak: float
    share_of_limit: float
    share_of_time: float
    bound: str


@dataclass(frozen=True, slots=True)
class Profile:
    """All layers of a network.

    Attributes:
        layers: In the order in which they run.
        peak: Limits of one core of this machine.
        working_set_bytes: Memory that a run touches.
        overhead_us: What measuring takes for each row, which is not in the times.
        runs: How often each row was run.
    """

    layers: tuple[LayerTime, ...]
    peak: Peak
    working_set_bytes: int
    overhead_us: float
    runs: int

    @property
    def bytes_per_s(self) -> float:
        """Of where the network's bytes come from."""
        return self.peak.read(self.working_set_bytes).bytes_per_s

    @property
    def total_ms(self) -> float:
        """Of all layers."""
        return sum(layer.ms for layer in self.layers)


@functools.cache
def machine_peak() -> Peak:
    """Limits of one core of this machine, measured once a process."""
    return peak_kernels.measure()


def profile(
    source: Path | IntegerProgram, feeds: Mapping[str, Array], runs: int, peak: Peak | None = None
) -> Profile:
    """Time each layer of a quantized model.

    Args:
        source: A quantized model or its program.
        feeds: An array for each input, by name.
        runs: Counted runs.
        peak: Limits of the machine; measured where not given.

    Raises:
        ModelError: The feeds do not fit.
        ProgramError: Shapes do not fit each other inside of the network.
    """
    peak = machine_peak() if peak is None else peak
    timed = _Timed(source)
    arrays = timed.trace(feeds)
    timed.seconds.clear()
    for _ in range(WARM_RUNS + runs):
        timed.run(None, feeds)
    plan = timed.plan
    assert plan is not None
    overhead = timed.overhead()
    seconds = np.array(timed.seconds[WARM_RUNS:], np.float64)
    seconds -= overhead * _is_row(plan.origins)
    working_set = plan.arena_bytes + plan.scratch_bytes + plan.consts.size
    speeds = peak.macs_per_s, peak.read(working_set).bytes_per_s
    layers = _layers(timed.program, plan.origins, seconds, arrays, speeds)
    return Profile(layers, peak, working_set, 1e6 * overhead, runs)


def _is_row(origins: Sequence[Origin]) -> npt.NDArray[np.bool_]:
    return np.array([origin.kernel != ONNXRUNTIME for origin in origins])


class _Timed(Executor):
    """Runs rows one by one, with a clock between them."""

    def __init__(self, source: Path | IntegerProgram) -> None:
        super().__init__(source, threads=1)
        self.plan: Plan | None = None
        self.seconds: list[list[float]] = []

    def _steps(self, plan: Plan, arena: Any, loose: dict[int, Array], n_threads: int) -> None:
        workers, seconds = team(), list[float]()
        for step in plan.steps:
            if isinstance(step, IslandCall):
                begun = time.perf_counter()
                self._call(plan, arena, loose, step)
                seconds.append(time.perf_counter() - begun)
                continue
            for i in range(len(step)):
                row = step[i : i + 1]
                begun = time.perf_counter()
                workers.run(row, self._addresses, arena.block, plan.consts, n_threads)
                seconds.append(time.perf_counter() - begun)
        self.plan = plan
        self.seconds.append(seconds)

    def overhead(self) -> float:
        """Seconds that a row takes here beyond its own."""
        plan = self.plan
        assert plan is not None
        rows = [step for step in plan.steps if not isinstance(step, IslandCall)]
        if not rows:
            return 0.0
        workers, seconds = team(), list[float]()
        for _ in range(EMPTY_RUNS):
            begun = time.perf_counter()
            workers.run(rows[0][0:0], self._addresses, plan.consts, plan.consts, 1)
            seconds.append(time.perf_counter() - begun)
        return float(np.median(seconds))


def _layers(
    program: IntegerProgram,
    origins: Sequence[Origin],
    seconds: F64,
    arrays: Mapping[str, Array],
    speeds: tuple[float, float],
) -> tuple[LayerTime, ...]:
    """Rows of the same instruction are one layer."""
    known = {i: arrays[v.name] for i, v in enumerate(program.values) if v.name in arrays}
    found, places = works(program, known), dict[int, list[int]]()
    for place, origin in enumerate(origins):
        places.setdefault(origin.instr, []).append(place)
    medians = {
        number: max(float(np.median(seconds[:, rows].sum(axis=1))), LEAST_SECONDS)
        for number, rows in places.items()
    }
    total = sum(medians.values())
    layers: list[LayerTime] = []
    for number, rows in places.items():
        instr = program.instrs[number]
        sizes = [known[i] for i in (*instr.inputs, *instr.outputs) if i in known]
        moved = sum(array.nbytes for array in (*sizes, *instr.arrays.values()))
        layers.append(
            LayerTime(
                node=ort.plain_name(instr.node),
                op=_operator(program, instr),
                kernel=" + ".join(dict.fromkeys(origins[row].kernel for row in rows)),
                shape=_shape(instr, known),
                share_of_time=medians[number] / total,
                **_speed(found[number], moved, medians[number], speeds),
            )
        )
    return tuple(layers)


def _speed(work: Work, moved: int, seconds: float, speeds: tuple[float, float]) -> dict[str, Any]:
    macs_per_s, bytes_per_s = speeds
    least = work.macs / macs_per_s, moved / bytes_per_s
    share = least[0] / seconds
    bound = "memory" if least[1] > least[0] else "compute"
    return {
        "macs": work.macs,
        "bytes": moved,
        "ms": 1e3 * seconds,
        "gmac_per_s": work.macs / seconds / 1e9,
        "share_of_peak": share,
        "share_of_limit": max(least) / seconds,
        "bound": "" if share > FAST else bound,
    }


def _operator(program: IntegerProgram, instr: Instr) -> str:
    if instr.op == "island":
        return " ".join(dict.fromkeys(program.islands[instr.int("island")].op_types))
    return instr.op


def _shape(instr: Instr, arrays: Mapping[int, Array]) -> str:
    """For example "1x56x56x64 * 64x64x3x3 -> 1x56x56x64"."""
    weight = instr.arrays.get("weight")
    read, made = (
        ", ".join(_sizes(arrays[i].shape) for i in numbers if i in arrays)
        for numbers in (instr.inputs, instr.outputs)
    )
    weights = "" if weight is None else f" * {_sizes(weight.shape)}"
    return f"{read}{weights} -> {made}"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"

"""Direct and Winograd kernels of 3x3 convolutions: where each is fastest.

    python -m benchmarks.winograd [--repeats 200]

One thread, 4-bit codes and weights, fixed point, rows called by themselves and in turn, the least
of many times. With tile instructions their kernels are timed too. `chosen` is what a plan takes
without tiles and with them; the constants of `onnxptq/runtime/plan_conv.py` come from here.
"""

import time
from collections.abc import Callable
from unittest import mock

import numpy as np

from benchmarks import common
from benchmarks.common import Row
from onnxptq import requant
from onnxptq.kernels import ROW_KERNELS, target
from onnxptq.kernels.dispatch import NUMBERS
from onnxptq.program import Instr, IntegerProgram, Port, Value
from onnxptq.runtime import plan_conv
from onnxptq.runtime.draft import empty_block
from onnxptq.runtime.plan import make_plan

SIDES = (56, 28, 14, 7)
CHANNELS = (16, 32, 64, 128, 256, 512)
MOST_SECONDS = 2.0


def program(channels: int) -> IntegerProgram:
    """A convolution of as many channels as filters, of codes that are clipped to four bits."""
    rng = np.random.default_rng(channels)
    values = (Value("x", "uint8", 0, 255), Value("low", "uint8", 0, 15), Value("y", "uint8", 0, 15))
    arrays = {
        "weight": rng.integers(-8, 8, (channels, channels, 3, 3)).astype(np.int8),
        "weight_zero": np.zeros(1, np.int8),
        "bias": rng.integers(-999, 999, channels).astype(np.int32),
    }
    scale = np.full(channels, 0.004004, np.float32)
    found = requant.find(scale, 0, 0, 15, np.int64(-(1 << 22)), np.int64(1 << 22))
    attrs = {"group": 1, "x_zero": 0, "channels_last": 1, "pads": (1, 1, 1, 1)}
    instrs = (
        Instr("clip", (0,), (1,), "clip", attrs={"lo": 0, "hi": 15}),
        Instr("conv", (1,), (2,), "conv", attrs=attrs, arrays=arrays, requant=found),
    )
    return IntegerProgram((Port("x", 0, None),), (Port("y", 2, None),), values, {}, instrs)


def call_of(made: IntegerProgram, side: int, kernel: str | None) -> tuple[str, Callable[[], None]]:
    """The row of the convolution by some kernel, or by the one that a plan takes."""

    def forced(layer: plan_conv.Layer) -> plan_conv.Layout:
        return next(layout for layout in plan_conv.layouts(layer) if layout.kernel == kernel)

    shapes = {"x": (1, side, side, made.instrs[1].arrays["weight"].shape[1])}
    with mock.patch.object(plan_conv, "choose", forced if kernel else plan_conv.choose):
        plan = make_plan(made, shapes)
    (rows,) = plan.steps
    assert isinstance(rows, np.ndarray)
    arena = empty_block(plan.arena_bytes + plan.scratch_bytes)
    arena[:] = np.random.default_rng(0).integers(0, 16, arena.size)
    row = rows[-1]
    name = list(NUMBERS)[int(row[0])]
    return name, lambda: ROW_KERNELS[name](row, arena, plan.consts, 0, 1)


def kernels_of(made: IntegerProgram, side: int) -> list[str]:
    """Kernels that can compute the convolution here."""
    found: list[str] = []

    def look(layer: plan_conv.Layer) -> plan_conv.Layout:
        found.extend(layout.kernel for layout in plan_conv.layouts(layer))
        return plan_conv.layouts(layer)[0]

    with mock.patch.object(plan_conv, "choose", look):
        make_plan(made, {"x": (1, side, side, made.instrs[1].arrays["weight"].shape[1])})
    return found


def measure(channels: int, side: int, repeats: int) -> Row:
    """Least microseconds of each kernel, called in turn."""
    made = program(channels)
    calls = dict(call_of(made, side, kernel) for kernel in kernels_of(made, side))
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + MOST_SECONDS
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            best[name] = min(best[name], 1e6 * (time.perf_counter() - begun))
        if time.perf_counter() > end:
            break
    row: Row = {"channels": channels, "side": side, **{f"{k}_us": v for k, v in best.items()}}
    row["gain"] = best["conv_u8s8"] / best["winograd"]
    return row | chosen(made, side, best)


def chosen(made: IntegerProgram, side: int, best: Row) -> Row:
    """What plans take, and how much longer than the fastest it is."""
    row: Row = {}
    for name, allowed in (("chosen", False), ("chosen_tiles", True)):
        if allowed and not target.allow_tiles():
            continue
        usable = [time for kernel, time in best.items() if allowed or kernel != "conv_amx"]
        with mock.patch.object(target, "allow_tiles", lambda allowed=allowed: allowed):
            row[name], _ = call_of(made, side, None)
        row[f"{name}_loss"] = best[row[name]] / min(usable)
    return row


def main() -> None:
    parser = common.parser(__doc__, "winograd")
    parser.add_argument("--repeats", type=int, default=200, help="calls of each kernel at most")
    options = parser.parse_args()
    rows: list[Row] = []
    for channels in CHANNELS:
        for side in SIDES:
            common.progress(f"{channels} channels, {side}x{side}")
            rows.append(measure(channels, side, options.repeats))
    common.show("3x3 convolutions, one thread, us", rows)
    tiles = target.allow_tiles()
    common.write_results("winograd", {"tiles": tiles, "rows": rows}, options.out)


if __name__ == "__main__":
    main()

"""What a plan holds: places, constants, tables of rows, islands between them."""

import numpy as np
import pytest
from onnx import helper

from onnxptq.errors import ProgramError
from onnxptq.kernels.dispatch import MOST_PARTS, NUMBERS
from onnxptq.program import IntegerProgram
from onnxptq.runtime.draft import ALIGN, PART_WORK, IslandCall, Origin
from onnxptq.runtime.plan import make_plan
from tests.runtime.small_programs import Builder, graph, random_codes


def clips(count: int) -> IntegerProgram:
    builder = Builder()
    value = builder.input("uint8")
    for i in range(count):
        value = builder.add("clip", [value], "uint8", {"lo": i, "hi": 255 - i})
    return builder.program(value)


def test_values_that_are_done_with_give_their_bytes_away() -> None:
    program, size = clips(9), 64 * 100

    plan, whole = (make_plan(program, {"v0": (64, 100)}, keep_all=k) for k in (False, True))

    # Input and output keep their bytes only while they are needed, so two values are enough.
    assert plan.arena_bytes == 2 * size
    assert whole.arena_bytes == 10 * size
    assert len({slot.offset for slot in whole.slots.values()}) == 10


def test_rows_between_islands_are_one_table() -> None:
    builder = Builder()
    x = builder.input("uint8")
    a = builder.add("clip", [x], "uint8", {"lo": 1, "hi": 9})
    b = builder.add("clip", [a], "uint8", {"lo": 2, "hi": 9})
    node = helper.make_node("Identity", ["v2"], ["v3"])
    number = builder.island(graph([node], {"v2": np.zeros((1, 1), np.uint8)}, {"v3": "uint8"}))
    c = builder.add("island", [b], "uint8", {"island": number})
    d = builder.add("clip", [c], "uint8", {"lo": 3, "hi": 9})

    plan = make_plan(builder.program(d), {"v0": (4, 5)})

    first, call, last = plan.steps
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert first.shape == (2, 64)
    assert last.shape == (1, 64)
    assert first[:, 0].tolist() == [NUMBERS["clip"]] * 2
    assert call == IslandCall(0, (b,), (c,), "island_2")
    kernels = ["clip", "clip", "onnxruntime", "clip"]
    assert list(plan.origins) == [Origin(i, kernel) for i, kernel in enumerate(kernels)]


def test_equal_constants_are_stored_once(rng: np.random.Generator) -> None:
    builder, entries = Builder(), random_codes(rng, "uint8", 256)
    x = builder.input("uint8")
    for _ in range(3):
        x = builder.add("table", [x], "uint8", arrays={"table": entries.copy()})

    plan = make_plan(builder.program(x), {"v0": (7,)})

    assert plan.consts.tobytes() == entries.tobytes()
    assert plan.consts.ctypes.data % ALIGN == 0


def test_rows_have_as_many_parts_as_they_have_work_for() -> None:
    small, large = (make_plan(clips(1), {"v0": (side, side)}) for side in (10, 1000))

    assert (small.shared, large.shared) == (False, True)
    parts = [int(plan.steps[0][0, MOST_PARTS]) for plan in (small, large)]  # type: ignore[index]
    assert parts == [1, 1_000_000 // PART_WORK]


def test_constants_lie_in_the_arena_before_a_run_as_they_are_stored(
    rng: np.random.Generator,
) -> None:
    builder, codes = Builder(), random_codes(rng, "int8", 5)
    operands = [builder.input("int8"), builder.constant(codes)]
    program = builder.program(builder.add("minimum", operands, "int8"))

    ((offset, image),) = make_plan(program, {"v0": (3, 5)}).images

    assert offset % ALIGN == 0
    np.testing.assert_array_equal(image, codes.astype(np.int64) + 128)


def test_a_missing_shape_is_named() -> None:
    with pytest.raises(ProgramError, match="no shape for input 'v0'"):
        make_plan(clips(1), {})


def test_an_unknown_instruction_is_named() -> None:
    builder = Builder()
    program = builder.program(builder.add("gelu", [builder.input("uint8")], "uint8"))

    with pytest.raises(ProgramError, match=r"node 'gelu_0' \(gelu\): no such instruction"):
        make_plan(program, {"v0": (1,)})

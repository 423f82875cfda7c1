"""Residual sums that convolutions compute themselves: where they may, and that nothing changes."""

from collections.abc import Callable

import numpy as np
import pytest

from onnxptq.kernels import target
from onnxptq.kernels.dispatch import NUMBERS
from onnxptq.program import IntegerProgram
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.plan import make_plan
from tests.runtime.small_programs import Builder, found, found_pair, random_codes

pytestmark = pytest.mark.skipif(not target.HAS_AVX2, reason="this CPU convolves the portable way")

SHAPE = (1, 6, 5, 16)
SCALE = 0.004004
"""One that is provable as fixed point."""


def conv(b: Builder, x: int, seed: int) -> int:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (16, 16, 3, 3)).astype(np.int8)
    arrays = {
        "weight": weight,
        "weight_zero": np.zeros(1, np.int8),
        "bias": rng.integers(-999, 999, 16).astype(np.int32),
    }
    attrs = {"group": 1, "x_zero": 7, "channels_last": 1, "pads": (1, 1, 1, 1)}
    requant = found(np.full(16, SCALE, np.float32), 100, "uint8", 1 << 22)
    return b.add("conv", (x,), "uint8", attrs, arrays=arrays, requant=requant)


def add(b: Builder, one: int, other: int) -> int:
    requant = found_pair("add", (0.0312, 0.0523, 0.0617), (3, 120, 70), "uint8")
    return b.add("add", (one, other), "uint8", requant=requant)


def program(ending: Callable[[Builder, int], tuple[int, ...]]) -> IntegerProgram:
    b = Builder()
    return b.program(*ending(b, b.input("uint8", SHAPE)))


def first_operand(b: Builder, x: int) -> tuple[int, ...]:
    return (add(b, conv(b, x, 1), x),)


def second_operand(b: Builder, x: int) -> tuple[int, ...]:
    return (add(b, x, conv(b, x, 1)),)


def two_convolutions(b: Builder, x: int) -> tuple[int, ...]:
    return (add(b, conv(b, x, 1), conv(b, x, 2)),)


def read_twice(b: Builder, x: int) -> tuple[int, ...]:
    one = conv(b, x, 1)
    return (add(b, add(b, one, x), one),)


def also_an_output(b: Builder, x: int) -> tuple[int, ...]:
    one = conv(b, x, 1)
    return add(b, one, x), one


def with_itself(b: Builder, x: int) -> tuple[int, ...]:
    one = conv(b, x, 1)
    return (add(b, one, one),)


def computed_later(b: Builder, x: int) -> tuple[int, ...]:
    one = conv(b, x, 1)
    return (add(b, one, b.add("clip", (x,), "uint8", {"lo": 3, "hi": 99})),)


def broadcast(b: Builder, x: int) -> tuple[int, ...]:
    rng = np.random.default_rng(0)
    return (add(b, conv(b, x, 1), b.constant(random_codes(rng, "uint8", 16))),)


def sums_left(found_program: IntegerProgram) -> int:
    plan = make_plan(found_program, {found_program.inputs[0].name: SHAPE})
    rows = plan.steps[0]
    assert isinstance(rows, np.ndarray)
    return int((rows[:, 0] == NUMBERS["pair"]).sum())


@pytest.mark.parametrize(
    ("ending", "left"),
    [
        (first_operand, 0),
        (second_operand, 0),
        (two_convolutions, 0),
        (read_twice, 2),
        (also_an_output, 1),
        (with_itself, 1),
        (computed_later, 1),
        (broadcast, 1),
    ],
)
def test_sums_join_their_convolution_and_stay_the_same(
    ending: Callable[[Builder, int], tuple[int, ...]], left: int, rng: np.random.Generator
) -> None:
    made = program(ending)
    feeds = {made.inputs[0].name: random_codes(rng, "uint8", *SHAPE)}
    executor = Executor(made)

    together = executor.run(None, feeds)

    apart = executor.trace(feeds)  # every value has a row of its own
    assert sums_left(made) == left
    for port, array in zip(made.outputs, together, strict=True):
        np.testing.assert_array_equal(array, apart[port.name])

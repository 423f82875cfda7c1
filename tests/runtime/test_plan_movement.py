"""Instructions that move elements: the executor equals onnxruntime's operators."""

import itertools
from typing import Any

import numpy as np
import pytest

from onnxptq.errors import OnnxptqError, ProgramError
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.plan import make_plan
from tests.ort_versions import IS_OLD
from tests.runtime.small_programs import Array, Builder, random_codes, reference, run_one

KINDS = ["uint8", "int8", "int32", "float32"]


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def elements(rng: np.random.Generator, kind: str, *shape: int) -> Array:
    if kind in ("uint8", "int8"):
        return random_codes(rng, kind, *shape)
    return rng.integers(-999, 999, shape).astype(kind)


# Instruction, operator, shape of x, operands by name, attributes of the instruction and of the node
# where they are other ones.
CASES: dict[str, tuple[str, str, tuple[int, ...], dict[str, Array | None], dict[str, Any]]] = {
    "transpose": ("transpose", "Transpose", (2, 3, 4, 5), {}, {"perm": (0, 2, 3, 1)}),
    "transpose of ones": ("transpose", "Transpose", (1, 3, 1, 5), {}, {"perm": (2, 1, 0, 3)}),
    "reversed": ("transpose", "Transpose", (2, 3, 4), {}, {"perm": (2, 1, 0)}),
    "nothing": ("transpose", "Transpose", (0, 3, 4), {}, {"perm": (2, 1, 0)}),
    "flatten": ("flatten", "Flatten", (2, 3, 4), {}, {"axis": 2}),
    "flatten from 0": ("flatten", "Flatten", (2, 3, 4), {}, {"axis": 0}),
    "flatten from behind": ("flatten", "Flatten", (2, 3, 4), {}, {"axis": -1}),
    "reshape": ("reshape", "Reshape", (2, 3, 4), {"s": ints(4, -1)}, {"allowzero": 0}),
    "reshape, copied": ("reshape", "Reshape", (2, 3, 4), {"s": ints(0, 2, -1)}, {"allowzero": 0}),
    "allowzero": ("reshape", "Reshape", (0, 3), {"s": ints(5, 0)}, {"allowzero": 1}),
    "squeeze": ("squeeze", "Squeeze", (1, 3, 1, 2), {"a": ints(0, -2)}, {}),
    "squeeze all": ("squeeze", "Squeeze", (1, 3, 1, 2), {}, {}),
    "unsqueeze": ("unsqueeze", "Unsqueeze", (3, 2), {"a": ints(0, -1)}, {}),
    "expand": ("expand", "Expand", (3, 1), {"s": ints(2, 1, 4)}, {}),
    "expand to less": ("expand", "Expand", (3, 4), {"s": ints(1, 1)}, {}),
    "tile": ("tile", "Tile", (2, 3, 4), {"r": ints(2, 1, 3)}, {}),
    "tile of many axes": ("tile", "Tile", (2, 3, 2, 3), {"r": ints(2, 2, 2, 2)}, {}),
    "tile by nothing": ("tile", "Tile", (2, 3), {"r": ints(0, 2)}, {}),
    "slice": (
        "slice",
        "Slice",
        (5, 6, 7),
        {"s": ints(1, -5), "e": ints(4, 99), "a": ints(0, -1), "t": ints(2, 3)},
        {},
    ),
    "slice without axes": ("slice", "Slice", (5, 6), {"s": ints(1, 2), "e": ints(4, 5)}, {}),
    "slice backwards": (
        "slice",
        "Slice",
        (5, 6),
        {"s": ints(-1, 4), "e": ints(-99, 0), "a": ints(0, 1), "t": ints(-1, -2)},
        {},
    ),
    "slice of nothing": ("slice", "Slice", (5, 6), {"s": ints(4), "e": ints(2)}, {}),
    "slice of the batch": ("slice", "Slice", (5, 6), {"s": ints(1), "e": ints(3)}, {}),
    "gather": ("gather", "Gather", (4, 5, 3), {"i": ints(2, 0, -1, 2)}, {"axis": 1}),
    "gather one": ("gather", "Gather", (4, 5), {"i": np.array(3)}, {"axis": -1}),
    "gather a table": (
        "gather",
        "Gather",
        (4, 5),
        {"i": ints(1, 0, 3, 2).reshape(2, 2)},
        {"axis": 0},
    ),
    "pixel shuffle": (
        "depth_to_space",
        "DepthToSpace",
        (2, 12, 3, 2),
        {},
        {"blocksize": 2, "mode": "CRD"},
    ),
    "depth to space": (
        "depth_to_space",
        "DepthToSpace",
        (2, 12, 3, 2),
        {},
        {"blocksize": 2, "mode": "DCR"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_movement(name: str, kind: str, rng: np.random.Generator) -> None:
    op, node, shape, operands, attributes = CASES[name]
    if node == "DepthToSpace" and kind == "int32":
        pytest.skip("onnxruntime has no such kernel")
    x = elements(rng, kind, *shape)

    y = run_one(op, x, kind, list(operands.values()), attrs=attributes)

    expected = reference(node, {"x": x}, kind, operands, **attributes)
    np.testing.assert_array_equal(y, expected, strict=True)


def test_elements_of_other_sizes_are_moved_byte_by_byte(rng: np.random.Generator) -> None:
    for kind in ("float16", "float64", "int64", "bool"):
        x = rng.integers(0, 99, (2, 3, 4)).astype(kind)

        y = run_one("transpose", x, kind, attrs={"perm": (2, 0, 1)})

        np.testing.assert_array_equal(y, x.transpose(2, 0, 1), strict=True)


PADS = {
    "all around": (ints(1, 2, 0, 3), None),
    "one axis": (ints(2, 1), ints(-1)),
    "cropped": (ints(-1, 2, 1, -2), None),
    "nothing": (ints(0, 0, 0, 0), None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("name", PADS)
def test_pad(name: str, mode: str, kind: str, rng: np.random.Generator) -> None:
    pads, axes = PADS[name]
    if mode != "constant" and (pads < 0).any():
        pytest.skip("onnxruntime crops only with a constant")
    x = elements(rng, kind, 4, 5)
    number = -7 if kind == "int8" else 9 if kind == "uint8" else 0

    y = run_one("pad", x, kind, [pads, None, axes], attrs={"mode": mode, "value": number})

    operands = {"p": pads, "v": np.array(number, kind), "a": axes}
    np.testing.assert_array_equal(y, reference("Pad", {"x": x}, kind, operands, mode=mode))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [None, (1, 4, 2), (0, 7, 0)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(
    axis: int, parts: tuple[int, ...] | None, kind: str, rng: np.random.Generator
) -> None:
    x, builder = elements(rng, kind, 7, 7, 7), Builder()
    operands = [builder.input(kind)] + ([builder.constant(ints(*parts))] if parts else [])
    first = builder.add("split", operands, [kind] * 3, {"axis": axis})
    executor = Executor(builder.program(first, first + 1, first + 2))

    found = executor.run(None, {"v0": x})

    ends = np.cumsum(parts or (3, 3, 1))[:-1]
    for one, other in zip(found, np.split(x, ends, axis), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int, kind: str, rng: np.random.Generator) -> None:
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    shapes[1][axis], shapes[2][axis] = 1, 0
    x = [random_codes(rng, kind, *shape) for shape in shapes]
    tables = random_codes(rng, kind, 3, 256)
    for arrays in ({}, {"tables": tables}):
        builder = Builder()
        operands = [builder.input(kind) for _ in x]
        program = builder.program(
            builder.add("concat", operands, kind, {"axis": axis}, arrays=arrays)
        )

        y = Executor(program).run(None, {f"v{i}": part for i, part in enumerate(x)})[0]

        lowest = np.iinfo(kind).min
        parts = [
            tables[i][part.astype(int) - lowest] if arrays else part for i, part in enumerate(x)
        ]
        np.testing.assert_array_equal(y, np.concatenate(parts, axis))


RESIZES: dict[str, dict[str, Any]] = {
    "twice": {"scales": [1, 1, 2, 2]},
    "three times and half": {"scales": [1, 1, 3, 0.5]},
    "odd factors": {"scales": [1, 1, 1.7, 0.6]},
    "larger": {"sizes": [1, 2, 11, 13]},
    "smaller": {"sizes": [1, 2, 3, 2]},
    "to one": {"sizes": [1, 2, 1, 1]},
    "one axis": {"scales": [2.5], "axes": (3,)},
    "not larger": {"sizes": [9, 9], "axes": (2, 3), "keep_aspect_ratio_policy": "not_larger"},
    "not smaller": {"sizes": [9, 9], "axes": (2, 3), "keep_aspect_ratio_policy": "not_smaller"},
    "places near a half": {"sizes": [1, 2, 16, 19]},
    "hardly larger": {"scales": [1, 1, 1.1, 1.2]},
    "one axis hardly larger": {"scales": [1, 1, 1.1, 0.6]},
    "channels too": {"scales": [1, 2, 1.5, 1]},
}
MODES = list(
    itertools.product(
        (
            "half_pixel",
            "half_pixel_symmetric",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
            "tf_half_pixel_for_nn",
        ),
        ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    )
)


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize(("coordinates", "nearest"), MODES)
def test_resize(coordinates: str, nearest: str, name: str, rng: np.random.Generator) -> None:
    if IS_OLD and "prefer" in nearest:
        pytest.skip("an old onnxruntime rounds places near a half otherwise; there it is an island")
    case = dict(RESIZES[name])
    scales, sizes = case.pop("scales", None), case.pop("sizes", None)
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": nearest, **case}
    operands: dict[str, Array | None] = {
        "roi": None,
        "scales": None if scales is None else np.array(scales, np.float32),
        "sizes": None if sizes is None else ints(*sizes),
    }
    for shape in ((1, 2, 5, 7), (1, 2, 4, 4), (1, 2, 12, 14)):
        x = random_codes(rng, "uint8", *shape)

        y = run_one("resize", x, "uint8", list(operands.values()), attrs=attributes)

        expected = reference("Resize", {"x": x}, "uint8", operands, mode="nearest", **attributes)
        np.testing.assert_array_equal(y, expected)


def test_names_for_the_same_elements_cost_nothing(rng: np.random.Generator) -> None:
    builder = Builder()
    x = builder.input("uint8", (2, 3, 4))
    whole = builder.add("flatten", [x], "uint8", {"axis": 1})
    same = builder.add("identity", [whole], "uint8")
    shape = builder.constant(ints(4, 6))
    other = builder.add("reshape", [same, shape], "uint8", {"allowzero": 0})
    program = builder.program(other)
    data = random_codes(rng, "uint8", 2, 3, 4)

    plan = make_plan(program, {"v0": (2, 3, 4)})

    assert plan.steps == ()
    assert plan.slots[other].offset == plan.slots[x].offset
    np.testing.assert_array_equal(Executor(program).run(None, {"v0": data})[0], data.reshape(4, 6))


REFUSED: list[tuple[str, list[Array | None], dict[str, Any], str]] = [
    ("reshape", [ints(5, 5)], {"allowzero": 0}, "cannot reshape array of size 12"),
    ("transpose", [], {"perm": (0, 1)}, "perm .* has not the rank of the input, 3"),
    ("gather", [ints(0, 9)], {"axis": 1}, "an index is outside of axis 1, which has 3 elements"),
    ("tile", [ints(2)], {}, "repeats .* has not the rank"),
    ("pad", [ints(1, 1)], {"mode": "constant", "value": 0}, "are not two for each of the axes"),
    ("squeeze", [ints(0)], {}, "cannot select an axis to squeeze out"),
    ("slice", [ints(0), ints(1), ints(7)], {}, "axis 7 of a value of rank 3"),
]


@pytest.mark.parametrize(("op", "operands", "attributes", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    op: str,
    operands: list[Array | None],
    attributes: dict[str, Any],
    message: str,
    rng: np.random.Generator,
) -> None:
    x = random_codes(rng, "uint8", 2, 3, 2)

    with pytest.raises(ProgramError, match=rf"node '{op}_0' \({op}\): .*{message}"):
        run_one(op, x, "uint8", operands, attrs=attributes)


def test_a_shape_that_depends_on_the_input_is_refused(rng: np.random.Generator) -> None:
    builder = Builder()
    x, shape = builder.input("uint8"), builder.input("int64")
    program = builder.program(builder.add("reshape", [x, shape], "uint8", {"allowzero": 0}))

    with pytest.raises(OnnxptqError, match="'v1'\\) depends on the input's values"):
        Executor(program).run(None, {"v0": random_codes(rng, "uint8", 4), "v1": ints(2, 2)})

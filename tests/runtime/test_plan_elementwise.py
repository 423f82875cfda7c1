"""Instructions on single codes and on pairs: the executor equals onnxruntime, bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxptq import formulas, ort
from onnxptq.errors import ProgramError
from onnxptq.requant_pairs import PairForm, apply_pair
from onnxptq.runtime.execute import Executor
from tests.runtime.small_programs import (
    MICROSOFT,
    Array,
    Builder,
    F,
    found_pair,
    graph,
    random_codes,
    random_scales,
    reference,
    run_one,
)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("shape", "channels", "axis"),
    [((7, 33), 1, 1), ((2, 5, 3, 4), 5, 1), ((2, 3, 6), 6, -1), ((4,), 4, 0), ((0, 3), 3, 1)],
)
def test_quantize_and_dequantize(
    shape: tuple[int, ...], channels: int, axis: int, kind: str, rng: np.random.Generator
) -> None:
    scale, zero = random_scales(rng, channels), random_codes(rng, kind, channels)
    x = (rng.standard_normal(shape) * 9).astype(F)
    arrays = {"scale": scale, "zero_point": zero}
    limits = {"lo": int(np.iinfo(kind).min), "hi": int(np.iinfo(kind).max)}
    operands: dict[str, Array | None] = {
        "s": scale if channels > 1 else scale[0:1].reshape(()),
        "z": zero if channels > 1 else zero[0:1].reshape(()),
    }

    codes = run_one("quantize", x, kind, attrs={"axis": axis, **limits}, arrays=arrays)
    real = run_one("dequantize", codes, "float32", attrs={"axis": axis}, arrays=arrays)

    expected = reference("QuantizeLinear", {"x": x}, kind, operands, axis=axis)
    np.testing.assert_array_equal(codes, expected)
    expected = reference("DequantizeLinear", {"x": codes}, "float32", operands, axis=axis)
    np.testing.assert_array_equal(real, expected)


def test_quantize_clips_to_fewer_codes(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((50,)) * 90).astype(F)
    arrays = {"scale": np.array([1], F), "zero_point": np.array([8], np.int8)}

    y = run_one("quantize", x, "int8", attrs={"axis": 0, "lo": 1, "hi": 15}, arrays=arrays)

    np.testing.assert_array_equal(y, np.clip(np.rint(x) + 8, 1, 15).astype(np.int8))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_accumulators_become_real(channels: int, biased: bool, rng: np.random.Generator) -> None:
    acc = rng.integers(-(2**31), 2**31, (3, 4, 5)).astype(np.int32)
    scale, bias = random_scales(rng, channels), random_scales(rng, 5)
    arrays = {"scale": scale} | ({"bias": bias} if biased else {})

    y = run_one("acc_to_real", acc, "float32", attrs={"axis": 2}, arrays=arrays)

    expected = acc.astype(F) * scale
    np.testing.assert_array_equal(y, expected + bias if biased else expected)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("to", ["uint8", "int8"])
def test_table(kind: str, to: str, rng: np.random.Generator) -> None:
    x, entries = random_codes(rng, kind, 3, 100), random_codes(rng, to, 256)

    y = run_one("table", x, to, arrays={"table": entries})

    np.testing.assert_array_equal(y, entries[x.astype(np.int64) - np.iinfo(kind).min])


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_clip(kind: str, rng: np.random.Generator) -> None:
    x = random_codes(rng, kind, 3, 100)

    y = run_one("clip", x, kind, attrs={"lo": 3, "hi": 100})

    np.testing.assert_array_equal(y, np.clip(x, 3, 100))


SHAPES = [
    ((300,), (300,)),
    ((2, 3, 4, 5), (2, 3, 4, 5)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 1, 1), (2, 3, 4, 5)),
    ((2, 3, 4), ()),
    ((4, 1, 5), (1, 3, 1)),
    ((2, 1, 2, 1, 2, 1, 2, 3), (1, 2, 1, 2, 1, 2, 1, 1)),
    ((0, 3), (1, 3)),
]


def pair(
    op: str, shapes: Sequence[tuple[int, ...]], kind: str, rng: np.random.Generator, **rest: Any
) -> tuple[Array, Array, Array]:
    """Two random operands and what the executor makes of them."""
    a, b = (random_codes(rng, kind, *shape) for shape in shapes)
    builder = Builder()
    operands = [builder.input(kind), builder.input(kind)]
    program = builder.program(builder.add(op, operands, kind, **rest))
    return a, b, Executor(program).run(None, {"v0": a, "v1": b})[0]


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize(("op", "node"), [("add", "QLinearAdd"), ("mul", "QLinearMul")])
def test_add_and_mul(
    op: str, node: str, shapes: Sequence[tuple[int, ...]], kind: str, rng: np.random.Generator
) -> None:
    scales, zeros = random_scales(rng, 3), random_codes(rng, kind, 3)
    swapped = op == "add" and formulas.swaps(*shapes)
    found = found_pair(op, list(scales), zeros.tolist(), kind, swapped)

    a, b, y = pair(op, shapes, kind, rng, requant=found)

    s, z = [np.asarray(n) for n in scales], [np.asarray(n) for n in zeros]
    # onnxruntime's order of operands: a, its scale and zero point, b, ..., then those of y.
    expected = _qlinear(node, (a, b), s, z, kind)
    np.testing.assert_array_equal(y, expected)


def _qlinear(
    node: str, operands: tuple[Array, Array], s: Sequence[Array], z: Sequence[Array], kind: str
) -> Array:
    names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    one = helper.make_node(node, names, ["y"], domain=MICROSOFT)
    feeds = {"a": operands[0], "b": operands[1]}
    fixed = {"as": s[0], "az": z[0], "bs": s[1], "bz": z[1], "ys": s[2], "yz": z[2]}
    model = graph([one], feeds, {"y": kind}, fixed)
    return ort.session(model.SerializeToString(), threads=1).run(feeds)["y"]


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("op", ["add", "mul"])
def test_a_pair_by_table(op: str, kind: str, rng: np.random.Generator) -> None:
    found = found_pair(op, (0.3, 0.5, 1.1), (3, 5, 7), kind)
    every = np.arange(256) + np.iinfo(kind).min
    entries = apply_pair(found, every[:, None], every[None, :]).astype(kind)
    by_table = replace(found, form=PairForm.TABLE, table=entries)

    a, b, y = pair(op, ((40, 9), (9,)), kind, rng, requant=by_table)

    np.testing.assert_array_equal(y, apply_pair(found, a, b))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_minimum_and_maximum(kind: str, rng: np.random.Generator) -> None:
    for op, function in (("minimum", np.minimum), ("maximum", np.maximum)):
        a, b, y = pair(op, ((2, 3, 50), (3, 1)), kind, rng)

        np.testing.assert_array_equal(y, function(a, b))


def test_a_constant_operand_is_read_as_any_other(rng: np.random.Generator) -> None:
    x, other = random_codes(rng, "int8", 4, 5), random_codes(rng, "int8", 5)

    y = run_one("maximum", x, "int8", [other])

    np.testing.assert_array_equal(y, np.maximum(x, other))


def test_shapes_that_do_not_broadcast_are_refused_by_name(rng: np.random.Generator) -> None:
    with pytest.raises(ProgramError, match=r"node 'minimum_0' \(minimum\): shape mismatch"):
        pair("minimum", ((2, 3), (2, 4)), "uint8", rng)


def test_scales_that_do_not_fit_the_axis_are_refused(rng: np.random.Generator) -> None:
    x = random_codes(rng, "uint8", 2, 3)
    arrays = {"scale": np.ones(4, F), "zero_point": np.zeros(4, np.uint8)}

    with pytest.raises(ProgramError, match=r"4 scales for axis 1 of shape \(2, 3\)"):
        run_one("dequantize", x, "float32", attrs={"axis": 1}, arrays=arrays)

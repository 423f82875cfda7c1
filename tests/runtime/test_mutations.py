"""Verify and the certificate notice small changes of a program: what would a wrong lowering do?"""

import functools

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import demo_data
from onnxptq.errors import OnnxptqError
from onnxptq.pipeline import quantize
from onnxptq.program import IntegerProgram
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.mutations import (
    CHANGES,
    INTEGERS,
    Change,
    makes_no_difference,
    mutants,
    narrowed,
    with_thresholds,
)
from tests.networks import Activation, Branches, Conv, Excite, Move, Net, Pool, Residual
from tests.random_networks import quantized

MUTANTS = 6
"""Of each kind and network; the slow test takes ten times as many."""

NETS = {
    "low bits": Net(
        blocks=(
            Conv(8),
            Residual(),
            Conv(8, (3, 3), (2, 1), groups="each", then="HardSwish"),
            Branches(3),
            Move("pad"),
            Activation("Tanh"),
        ),
        shape=(3, 7, 6),
        bits="w4a4",
        head="relu",
        classes=10,
    ),
    "pools and gates": Net(
        blocks=(
            Conv(8, (3, 2), (2, 1)),
            Excite(),
            Pool("AveragePool", (3, 2), pads=(1, 0, 0, 1)),
            Activation("Sigmoid"),
            Conv(18, then="Relu6"),
            Pool(),
        ),
        shape=(3, 13, 9),
        symmetric=False,
        head="matmul",
        classes=5,
    ),
}
COUNTED = " by thresholds"
SHAPED = ("stride", "pads", "dilation", "axes")
"""Changes that make no difference to maps of one pixel, which gates have."""


@functools.cache
def lowered(name: str) -> tuple[ir.Model, IntegerProgram]:
    if name == "digits":
        images = demo_data.load()[0]
        model = quantize(demo_data.model_path(), images, bits="w4a8", report_samples=0).model
    else:
        model = quantized(NETS[name.removesuffix(COUNTED)])
    program = lower(model)
    return model, with_thresholds(program) if name.endswith(COUNTED) else program


def is_noticed(model: ir.Model, mutant: IntegerProgram) -> bool:
    try:
        return not verify(model, program=mutant, samples=1).holds
    except OnnxptqError:
        return True


def unnoticed(name: str, change: Change, count: int, rng: np.random.Generator) -> list[str]:
    model, program = lowered(name)
    return [
        what
        for what, mutant in mutants(program, change, count, rng)
        if not is_noticed(model, mutant) and not makes_no_difference(program, mutant)
    ]


ALL = (*NETS, f"low bits{COUNTED}", "digits")
ROWS = [
    pytest.param(name, kind, id=f"{name}-{kind}")
    for name in (*NETS, "digits")
    for kind in CHANGES
    if name == "low bits" or kind not in SHAPED
]


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_a_change_of_what_is_computed_is_noticed(name: str, kind: str, rng: np.random.Generator):
    assert unnoticed(name, CHANGES[kind], MUTANTS, rng) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_many_changes_are_noticed(name: str, kind: str, rng: np.random.Generator):
    assert unnoticed(name, CHANGES[kind], 10 * MUTANTS, rng) == []


@needs_vnni
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ALL)
def test_a_change_of_rounding_passes_only_where_no_code_changes(
    name: str, kind: str, rng: np.random.Generator
):
    model, program = lowered(name)

    for what, mutant in mutants(program, INTEGERS[kind], MUTANTS, rng):
        assert is_noticed(model, mutant) != makes_no_difference(program, mutant), what


@pytest.mark.parametrize("name", [*NETS, "digits"])
def test_a_range_that_is_too_narrow_is_noticed(name: str, rng: np.random.Generator):
    model, program = lowered(name)

    for _ in range(MUTANTS):
        what, mutant = narrowed(program, rng)
        result = verify(model, program=mutant, samples=1)
        assert not result.certificate.holds, what
        assert result.certificate.unsound, what


def test_every_kind_of_change_is_tried():
    programs = [lowered(name)[1] for name in ALL]
    rng = np.random.default_rng(0)
    tried = {
        kind
        for kind, change in {**CHANGES, **INTEGERS}.items()
        for program in programs
        if any(True for _ in mutants(program, change, 1, rng))
    }

    assert tried == {*CHANGES, *INTEGERS}

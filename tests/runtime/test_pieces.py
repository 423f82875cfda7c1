"""Pieces: each node of a network fed with all codes that can occur."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from onnxptq import ort
from onnxptq.program import IntegerProgram
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.generated import generated_feeds
from onnxptq.runtime.lower import lower
from onnxptq.runtime.pieces import Pieces
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.networks import Activation, Branches, Conv, Excite, Net, Pool, Residual
from tests.random_networks import quantized

NET = Net(
    blocks=(Conv(18, then="Sigmoid"), Residual(), Excite(), Branches(), Pool(), Activation("Elu")),
    bits="w4a5",
    free_batch=True,
)
Arrays = dict[str, np.ndarray]


def rounds(net: Net) -> Iterator[tuple[IntegerProgram, Arrays, Arrays]]:
    model = quantized(net)
    program = lower(model)
    (feeds,) = generated_feeds(program, 1, np.random.default_rng(0))
    pieces = Pieces(ort.running_graph(model), program)
    arrays = Executor(program).trace(feeds)
    for expected, found in pieces.compared(feeds, arrays, np.random.default_rng(1)):
        yield program, dict(expected), dict(found)


def test_both_sides_make_the_same_of_the_same_codes():
    compared = 0
    for _, expected, found in rounds(NET):
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
            compared += array.size

    assert compared > 50_000


def test_results_go_to_both_ends_where_a_network_never_takes_them():
    """The ends of a convolution's codes, which images of noise do not reach, are seen."""
    net = Net(blocks=(Conv(8), Conv(8, then="none"), Conv(8, then="none")), head="none")
    seen: dict[str, set[int]] = {}
    for program, expected, _ in rounds(net):
        for instr in program.instrs:
            if instr.op == "conv":
                name = program.values[instr.outputs[0]].name
                seen.setdefault(name, set()).update(np.unique(expected[name]).tolist())

    assert len(seen) == 3
    for codes in seen.values():
        assert {0, 255} <= codes


@needs_vnni
@pytest.mark.parametrize("code", [0, 100, 255])
def test_a_wrong_table_entry_is_found_at_any_code(code: int):
    """No image takes a Sigmoid to all codes; each entry is compared all the same."""
    model = quantized(Net(blocks=(Conv(4, then="none"), Activation("Sigmoid"), Conv(2))))
    program = lower(model)
    place = next(at for at, instr in enumerate(program.instrs) if instr.op == "table")
    instr, instrs = program.instrs[place], list(program.instrs)
    table = instr.arrays["table"].copy()
    table[code] = table[code] - 1 if table[code] else 1
    instrs[place] = replace(instr, arrays={**instr.arrays, "table": table})

    result = verify(model, program=replace(program, instrs=tuple(instrs)), samples=1)

    assert not result.bit_exact
    assert result.first_difference is not None
    assert result.first_difference.node == instr.node

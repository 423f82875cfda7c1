"""The certificate: what it proves, and which CPUs would compute something else."""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from onnxptq import ort
from onnxptq.program import IntegerProgram
from onnxptq.runtime.certify import Certificate, accumulators, certify, saturation
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.generated import generated_feeds
from onnxptq.runtime.lower import lower
from onnxptq.runtime.probe import Probe
from onnxptq.runtime.ranges import code_range
from tests.networks import Activation, Branches, Conv, Excite, Move, Net, Pool, Residual
from tests.odd_graphs import Format, Odd
from tests.random_networks import quantized

NET = Net(
    blocks=(
        Conv(18),
        Residual(),
        Excite(),
        Branches(3),
        Move("pad"),
        Pool("AveragePool", pads=(1, 0, 0, 1)),
        Activation("Sigmoid"),
    ),
    bits="w4a4",
    head="softmax",
)
INT16 = range(-(2**15), 2**15)


def certified(program: IntegerProgram) -> tuple[Certificate, dict[int, np.ndarray]]:
    """The certificate, and every value of one run."""
    executor = Executor(program)
    (feeds,) = generated_feeds(program, 1, np.random.default_rng(0))
    traced = executor.trace(feeds)
    arrays = {
        number: traced[value.name]
        for number, value in enumerate(program.values)
        if value.name in traced
    }
    shapes = {number: array.shape for number, array in arrays.items()}
    return certify(program, shapes), arrays


def test_every_channel_of_a_network_is_proved():
    certificate, _ = certified(lower(quantized(NET)))

    assert certificate.holds
    assert certificate.proved == certificate.channels > 50
    assert sum(certificate.by.values()) == certificate.channels
    assert certificate.by["emulated"] == 1  # the average pool
    assert certificate.unsound == ()
    assert certificate.onnxruntime == ort.version()
    assert re.fullmatch(r"\d formulas hold on \d+ tie-rich results", certificate.probe)


def test_codes_and_sums_of_a_run_lie_in_their_ranges():
    program = lower(quantized(NET))

    _, arrays = certified(program)

    for instr in program.instrs:
        for number in instr.outputs:
            made, array = program.values[number], arrays[number]
            if made.is_codes:
                lo, hi = code_range(program, instr, made)
                assert made.lo <= lo <= array.min(), instr
                assert array.max() <= hi <= made.hi, instr
            if instr.op == "matmul" and instr.requant is None:
                sums = accumulators(program, instr, {})
                assert (sums.lo <= array).all()
                assert (array <= sums.hi).all()


def test_the_ends_of_sums_are_reached():
    """The proof covers no accumulator in vain: some input gives the lowest and the highest one."""
    program = lower(Odd(op="matmul_integer", signed_weight=True, x=Format(1, 0.5)).model())
    instr = program.instrs[0]
    x, weight = program.values[instr.inputs[0]], instr.arrays["weight"].astype(np.int64)
    sums = accumulators(program, instr, {})

    shifted = weight - instr.arrays["weight_zero"]
    best = np.where(shifted > 0, x.hi, x.lo) - instr.int("x_zero")
    worst = np.where(shifted > 0, x.lo, x.hi) - instr.int("x_zero")

    np.testing.assert_array_equal(sums.hi, (best * shifted).sum(axis=0))
    np.testing.assert_array_equal(sums.lo, (worst * shifted).sum(axis=0))


@pytest.mark.parametrize("end", ["lo", "hi"])
def test_an_input_has_all_codes_of_its_type(end: str):
    program = lower(Odd(op="conv", qdq=False).model())
    values = list(program.values)
    source = program.inputs[0].value
    narrow = {"lo": {"lo": 1}, "hi": {"hi": 254}}[end]
    values[source] = replace(values[source], **narrow)

    certificate, _ = certified(replace(program, values=tuple(values)))

    assert not certificate.holds
    assert certificate.unsound == (program.inputs[0].name,)


def test_another_onnxruntime_is_said():
    program = replace(lower(quantized(Net())), runtime="1.0.0")

    certificate, _ = certified(program)

    assert not certificate.holds
    assert certificate.proved == certificate.channels
    assert certificate.probe == "lowered with onnxruntime 1.0.0"


def test_a_probe_that_finds_something_is_no_certificate(monkeypatch: pytest.MonkeyPatch):
    def differs(_: Iterable[str]) -> Probe:
        return Probe(1, 10, {"sum": 3})

    monkeypatch.setattr("onnxptq.runtime.certify.probe", differs)

    certificate, _ = certified(lower(quantized(Net())))

    assert not certificate.holds
    assert certificate.probe == "differs: sum (3)"


@pytest.mark.parametrize("op", ["conv", "matmul"])
@pytest.mark.parametrize("seed", range(5))
def test_saturation_counts_channels_that_an_int16_sum_could_spoil(op: str, seed: int):
    odd = Odd(op=op, qdq=False, other=Format(1, 0.5), channels=17, seed=seed)
    program = lower(odd.model())
    instr = next(instr for instr in program.instrs if "weight" in instr.arrays)
    weight = instr.arrays["weight"].astype(np.int64)
    rows = weight.T if op == "matmul" else weight.transpose(0, 2, 3, 1).reshape(17, -1)
    _, arrays = certified(program)
    shapes = {number: array.shape for number, array in arrays.items()}

    found = saturation(program, instr, shapes)

    codes = np.array([0, 255])
    risky = 0
    for row in rows:
        pairs = row[: row.size // 2 * 2].reshape(-1, 2)
        sums = pairs[:, :1] * codes[[0, 0, 1, 1]] + pairs[:, 1:] * codes[[0, 1, 0, 1]]
        risky += any(int(total) not in INT16 for total in sums.reshape(-1))
    assert found.channels == risky > 0
    assert found.accumulators == risky * arrays[instr.outputs[0]].size // 17


def test_seven_bits_of_weights_cannot_saturate():
    program = lower(quantized(Net(bits="w7a8", head="gemm")))

    certificate, _ = certified(program)

    assert [layer.saturation.channels for layer in certificate.layers] == [0, 0]


@pytest.mark.parametrize(
    ("bits", "cpu", "expected"),
    [
        ("w8a8", "x86-64 with FMA, no VNNI", True),
        ("w8a8", "x86-64 with FMA, VNNI", False),
        ("w8a8", "aarch64 (formulas were established on x86-64)", False),
        ("w7a8", "x86-64 with FMA, no VNNI", False),
    ],
)
def test_onnxruntime_saturates_where_there_is_no_vnni(
    bits: str, cpu: str, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("onnxptq.runtime.certify.cpu_class", lambda: cpu)

    certificate, _ = certified(lower(quantized(Net(bits=bits, head="gemm"))))

    assert certificate.saturates_here == expected

"""Verify: what is compared, and how a difference is told."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq import cli, demo_data, ort
from onnxptq.errors import CalibrationError, ProgramError
from onnxptq.graph import io
from onnxptq.pipeline import quantize
from onnxptq.program import IntegerProgram
from onnxptq.report import verification
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.generated import generated_feeds
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.networks import Activation, Branches, Conv, Excite, Net, Pool, Residual
from tests.random_networks import quantized

NETS = {
    "residual": Net(blocks=(Conv(6), Residual(), Branches(3), Pool()), free_batch=True),
    "gates": Net(blocks=(Conv(16, groups="each"), Excite(), Activation("HardSwish")), bits="w4a4"),
    "windows": Net(
        blocks=(Conv(4), Pool("AveragePool"), Conv(8, then="Relu6")), symmetric=False, head="relu"
    ),
}


def with_wrong_weight(program: IntegerProgram) -> IntegerProgram:
    """The program with its first weight off by one."""
    place = next(at for at, instr in enumerate(program.instrs) if "weight" in instr.arrays)
    instr, instrs = program.instrs[place], list(program.instrs)
    weight = instr.arrays["weight"].copy()
    weight.flat[0] = -weight.flat[0] if abs(int(weight.flat[0])) > 9 else 99
    instrs[place] = replace(instr, arrays={**instr.arrays, "weight": weight})
    return replace(program, instrs=tuple(instrs))


@needs_vnni
@pytest.mark.parametrize("name", NETS)
def test_all_tensors_are_compared_on_made_up_inputs(name: str):
    model = quantized(NETS[name])
    program = lower(model)

    result = verify(model, program=program)

    assert result.holds
    assert result.mismatches == 0
    assert result.first_difference is None
    assert result.not_compared == ()
    made = {
        number
        for instr in program.instrs
        for number in instr.outputs
        if program.values[number].is_codes
    }
    assert result.tensors >= len(made)


@needs_vnni
def test_given_data_are_compared(rng: np.random.Generator):
    model = quantized(NETS["residual"])
    batches = [{"x": rng.normal(size=(n, 3, 6, 5)).astype(np.float32)} for n in (1, 3, 2)]

    result = verify(model, batches)

    assert result.holds
    assert result.elements > verify(model, batches[:1]).elements


def test_no_data_are_refused():
    with pytest.raises(CalibrationError, match="the data hold no sample to verify with"):
        verify(quantized(Net()), [])


def test_a_file_and_a_model_give_the_same_answer(tmp_path: Path):
    model, path = quantized(NETS["gates"]), tmp_path / "net.onnx"
    io.save(model, path)

    assert verify(path) == verify(model)


@needs_vnni
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_outputs_are_those_of_plain_sessions(name: str, threads: int):
    model = quantized(NETS[name])
    program = lower(model)
    session = ort.session(model, threads=threads)

    for feeds in generated_feeds(program, 3, np.random.default_rng(1)):
        expected = session.run(feeds)
        found = Executor(program, threads=threads).run(list(expected), feeds)
        for name_, array in zip(expected, found, strict=True):
            np.testing.assert_array_equal(array, expected[name_], strict=True)


@needs_vnni
@pytest.mark.parametrize("name", NETS)
def test_codes_are_those_of_the_tapped_file(name: str):
    """A second look into onnxruntime: the outputs of Q nodes of the file as it was written."""
    model = quantized(NETS[name])
    taps = [str(node.outputs[0].name) for node in model.graph if node.op_type == "QuantizeLinear"]
    tapped = ort.with_outputs(model, taps)
    assert operators(tapped) == operators(model)  # the taps leave every fusion in place
    program, plain = lower(tapped), lower(model)

    for feeds in generated_feeds(plain, 2, np.random.default_rng(2)):
        expected = ort.session(tapped).run(feeds, taps)
        found = dict(zip(taps, Executor(program).run(taps, feeds), strict=True))
        traced = Executor(plain).trace(feeds)
        for tap in taps:
            np.testing.assert_array_equal(found[tap], expected[tap], strict=True)
            if tap in traced:
                assert sorted(traced[tap].reshape(-1)) == sorted(expected[tap].reshape(-1))


def operators(model: ir.Model) -> Counter[str]:
    """Operators of the graph that onnxruntime runs, whatever their layout."""
    nodes = ort.optimized(model).graph.node
    types = Counter(node.op_type.removeprefix("Nhwc") for node in nodes)
    del types["Transpose"]
    return types


def test_the_first_wrong_tensor_is_told():
    model = quantized(NETS["residual"])
    program = lower(model)

    result = verify(model, program=with_wrong_weight(program))

    assert not result.bit_exact
    assert not result.holds
    assert result.certificate.holds
    first, conv = result.first_difference, program.instrs[2]
    assert first is not None
    assert (conv.op, first.node) == ("conv", conv.node)
    assert first.tensor == program.values[conv.outputs[0]].name
    assert 0 < first.count <= result.mismatches
    assert len(first.indices) == len(first.expected) == len(first.found) > 0
    assert all(a != b for a, b in zip(first.expected, first.found, strict=True))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    path = tmp_path / "digits.int8.onnx"
    quantize(demo_data.model_path(), demo_data.load()[0][:32], report_samples=0).save(path)
    return path


@needs_vnni
def test_the_command_line_answers_in_json(digits: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(["verify", str(digits), "--json", "-"]) == 0

    answer = json.loads(capsys.readouterr().out)
    expected = {
        "bit_exact", "elements", "mismatches", "first_difference", "certificate", "islands",
    }  # fmt: skip
    assert expected <= set(answer)
    proofs = {"channels", "proved", "by", "onnxruntime", "cpu", "probe"}
    assert proofs <= set(answer["certificate"])
    assert answer["bit_exact"] is True
    assert answer["mismatches"] == 0
    assert answer["first_difference"] is None
    assert answer["islands"] == []


def test_a_difference_ends_with_one_and_is_shown(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wrong = with_wrong_weight(lower(digits))

    def lower_wrongly(source: Path) -> IntegerProgram:
        assert source == digits
        return wrong

    monkeypatch.setattr(verification, "lower", lower_wrongly)

    assert cli.run(["verify", str(digits)]) == cli.EXIT_NO == 1

    shown = capsys.readouterr().out
    first = verify(digits, program=wrong, samples=4).first_difference
    assert first is not None
    assert first.node in shown
    for number in (*first.expected, *first.found):
        assert f"{number:g}" in shown


@needs_vnni
def test_islands_are_listed_with_their_shares():
    model = quantized(Net(blocks=(Conv(4), Activation("Swish"), Conv(4, then="Elu")), head="gemm"))

    result = verify(model)

    assert result.holds
    for island in result.islands:
        assert island.nodes
        assert len(island.nodes) == len(island.op_types)
        assert island.why
        assert 0 <= island.share_of_macs < 1
        assert 0 < island.share_of_elements < 1
    assert sum(island.share_of_elements for island in result.islands) < 1


@needs_vnni
def test_a_float_convolution_has_its_share_of_macs_in_any_layout():
    """12 channels are 16 in the layout of most CPUs."""
    net = Net(blocks=(Conv(4, (1, 1), pads=(0, 0, 0, 0)), Conv(12, (3, 3))), head="none")
    proto = net.model()
    options: dict[str, Any] = {**net.options(proto), "layer_bits": ()}
    last = [node.name for node in proto.graph.node if node.op_type == "Conv"][-1]
    model = quantize(proto, {"x": net.images()}, float_patterns=(last,), **options).model

    result = verify(model)

    assert result.holds
    shares = {op: island for island in result.islands for op in island.op_types}
    integer, real = 3 * 4, 4 * 12 * 9
    share = shares.get("Conv", shares.get("FusedConv"))
    assert share is not None
    assert share.share_of_macs == pytest.approx(real / (integer + real))


def too_long(folder: Path, terms: int = 70_000) -> Path:
    """A product of more terms than int32 holds."""
    arrays: dict[str, Any] = {
        "s": np.float32(0.1),
        "z": np.uint8(0),
        "w": np.full((terms, 1), 127, np.int8),
        "wz": np.int8(0),
    }
    node = helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "wz", "s", "z"], ["y"], "fc")
    graph = helper.make_graph(
        [node],
        "long",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, terms])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 1])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    path = folder / "long.onnx"
    imports = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), str(path))
    return path


OVERFLOW = "node 'fc': accumulator may reach 2.27e+09 > 2^31-1 (K=70000, |x|<=255, |w|<=127)"


def test_an_overflow_is_refused_with_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = too_long(tmp_path)

    with pytest.raises(ProgramError) as error:
        verify(path)

    assert str(error.value).startswith(OVERFLOW)
    assert cli.run(["verify", str(path)]) == cli.EXIT_BAD_INPUT == 2
    assert capsys.readouterr().err.startswith(f"error: {OVERFLOW}")


def test_a_sum_that_just_fits_is_exact(tmp_path: Path):
    terms = (2**31 - 1) // (255 * 127)

    assert verify(too_long(tmp_path, terms)).holds

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from onnxptq.errors import ModelError
from onnxptq.report import terminal
from onnxptq.report.rows import Evaluation, LayerRow, QuantizeReport, StepRow
from onnxptq.report.terminal import Output
from onnxptq.runtime.certify import Certificate, LayerProof, Saturation
from onnxptq.runtime.verify import Verification


@dataclass(frozen=True)
class FloatNode:
    node: str
    op: str
    why: str


def text_of(renderable: RenderableType) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_dash_leaves_standard_output_to_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("-")

    output.say("for people")
    output.answer({"n": 3})

    assert json.loads(capsys.readouterr().out) == {"n": 3}


def test_a_file_takes_the_json_and_people_read_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(str(tmp_path / "answer.json"))

    output.say("for people")
    output.answer({"n": 3})

    assert json.loads((tmp_path / "answer.json").read_text()) == {"n": 3}
    assert capsys.readouterr().out == "for people\n"


def test_a_json_file_in_no_folder_is_refused_early(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "missing" / "answer.json"))

    with pytest.raises(ModelError, match="missing"):
        output.check()


def test_what_json_cannot_spell_becomes_null() -> None:
    data = terminal.plain({"a": (1.0, float("inf")), "b": {"c": float("nan")}})

    assert data == {"a": [1.0, None], "b": {"c": None}}


def test_long_names_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    name = "block/" * 60

    Output().say(name)

    assert capsys.readouterr().out == name + "\n"


def test_square_brackets_of_names_are_not_markup() -> None:
    rows = [LayerRow("conv[bold]", "Conv", 8, 8, 30.0, 0.99, "mse")]

    assert "conv[bold]" in text_of(terminal.worst_layers(rows))


def test_the_worst_layers_come_first() -> None:
    rows = [LayerRow(f"n{db}", "Conv", 8, 8, float(db), 0.99, "mse") for db in (40, 10, 25)]

    text = text_of(terminal.worst_layers(rows))

    assert text.index("n10") < text.index("n25") < text.index("n40")


def test_reasons_of_float_nodes_are_shown() -> None:
    text = text_of(terminal.float_nodes([FloatNode("soft[0]", "Softmax", "the last [operator]")]))

    assert "soft[0]" in text
    assert "the last [operator]" in text


def test_figures_that_were_not_measured_are_left_out() -> None:
    text = text_of(terminal.evaluation(Evaluation(n=5, top1=0.9812)))

    assert "98.12 %" in text
    assert "agreement" not in text


@pytest.mark.parametrize("cpu", ["x86-64 with FMA, VNNI", "x86-64 with FMA, no VNNI"])
def test_where_onnxruntime_saturates_is_said_on_such_a_cpu(cpu: str) -> None:
    forms = {"fixed_point": 1}
    layer = LayerProof("conv1", "conv", 1, 1, forms, (0, 9), Saturation(1, 49))
    certificate = Certificate(1, 1, forms, "1.32.0", cpu, "agrees", holds=True, layers=(layer,))

    parts = terminal.verification(Verification(True, 49, 1, 0, None, certificate, ()))

    text = " ".join(" ".join(map(text_of, parts)).split())
    assert "1 layers could saturate, in at most 49 results of this run" in text
    assert ("cuts off such sums at 16 bits" in text) == cpu.endswith("no VNNI")


def test_gains_are_shown_where_they_were_measured() -> None:
    report = QuantizeReport(1.0, 100.0, 400, 100, 8.0, (), ())
    known = StepRow("gptq", 1.5, 20.0, -0.5, {})
    unknown = StepRow("minmax", 0.1, None, None, {"tensors": 3.0})

    texts = [
        "".join(map(text_of, terminal.quantized(replace(report, steps=(step,)))))
        for step in (known, unknown)
    ]

    assert re.search(r"gptq\s+1\.5\s+20\.00\s+-0\.50", texts[0])
    assert "minmax" not in texts[1]

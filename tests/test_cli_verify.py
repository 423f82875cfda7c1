"""What `onnxptq verify` refuses, and the program that it writes."""

from pathlib import Path

import numpy as np
import pytest

import onnxptq
from onnxptq import cli, demo_data
from tests.cpus import needs_vnni


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "digits.int8.onnx"
    images = demo_data.load()[0][:32]
    onnxptq.quantize(demo_data.model_path(), images, report_samples=0).save(path)
    return path


def test_a_float_model_cannot_be_verified(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["verify", str(demo_data.model_path())])

    assert code == 2
    assert "runs no node of it on codes; quantize it first" in capsys.readouterr().err


@needs_vnni
def test_a_program_is_no_model_to_verify(
    capsys: pytest.CaptureFixture[str], quantized: Path, tmp_path: Path
) -> None:
    program = tmp_path / "q.program.npz"

    assert cli.run(["verify", str(quantized), "--samples", "1", "--program", str(program)]) == 0
    code = cli.run(["verify", str(program)])

    assert code == 2
    assert "give the quantized .onnx that it was made from" in capsys.readouterr().err


def test_the_program_that_is_written_runs(quantized: Path, tmp_path: Path) -> None:
    program = tmp_path / "q.program.npz"
    images = demo_data.load()[1][:4]

    cli.run(["verify", str(quantized), "--samples", "1", "--program", str(program)])

    expected, found = (
        onnxptq.Executor(path).run(None, {demo_data.INPUT_NAME: images})[0]
        for path in (quantized, program)
    )
    np.testing.assert_array_equal(found, expected)


@needs_vnni
def test_the_executor_evaluates_as_onnxruntime_does(quantized: Path, tmp_path: Path) -> None:
    _, images, labels = demo_data.load()
    np.savez(
        tmp_path / "test.npz",
        allow_pickle=False,
        **{demo_data.INPUT_NAME: images[:64], "y": labels[:64]},
    )
    words = ["evaluate", str(quantized), "--data", str(tmp_path / "test.npz")]
    words += ["--reference", str(demo_data.model_path())]

    answers = [tmp_path / "onnxruntime.json", tmp_path / "integer.json"]
    for answer in answers:
        assert cli.run([*words, "--engine", answer.stem, "--json", str(answer)]) == 0

    assert answers[0].read_text() == answers[1].read_text()

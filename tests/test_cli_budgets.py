"""Budgets on the command line: they hold for what is written, and what cannot be is one message."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxptq import demo_data
from tests.test_cli import answer, complaint


@pytest.fixture
def model() -> Path:
    return demo_data.model_path()


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "calib.npz"
    np.savez(path, input=rng.uniform(0, 1, (16, 1, 8, 8)).astype(np.float32))
    return path


def test_the_average_bits_hold(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", model, "-o", tmp_path / "q.onnx", "--data", data]

    found = answer(*words, "--average-bits", "5", capsys=capsys)

    assert 4.0 < found["average_weight_bits"] <= 5.0


def test_the_file_is_not_larger_than_asked_for(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", model, "-o", tmp_path / "q.onnx", "--data", data]
    most = answer(*words, capsys=capsys)["bytes_quantized"] - 2000

    answer(*words, "--max-bytes", str(most), "--pareto", tmp_path / "p.json", capsys=capsys)

    assert (tmp_path / "q.onnx").stat().st_size <= most
    points = json.loads((tmp_path / "p.json").read_text())["points"]
    assert [p["chosen"] for p in points].count(True) == 1
    assert (tmp_path / "p.svg").exists()


@pytest.mark.slow
def test_a_latency_that_all_widths_meet_changes_no_width(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", model, "-o", tmp_path / "q.onnx", "--data", data]

    assert answer(*words, "--max-latency-ms", "1e3", capsys=capsys)["average_weight_bits"] == 8
    text = complaint(capsys, *words, "--max-latency-ms", "1e-5")
    assert "--max-latency-ms 1e-05 is too small: the least possible is 0.0" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--average-bits 9", "--average-bits 9: it must be 2 to 8"),
        ("--average-bits nan", "--average-bits nan: it must be 2 to 8"),
        ("--average-bits few", "'--average-bits'"),
        ("--average-bits 2", "--average-bits 2 is too small: the least possible is "),
        ("--max-bytes 0", "--max-bytes 0: it must be at least 1"),
        ("--max-bytes 100", "--max-bytes 100 is too small: the least possible is "),
        ("--max-latency-ms 0", "--max-latency-ms 0: it must be above 0"),
        ("--pareto p.json", "--pareto needs --average-bits, --max-bytes or --max-latency-ms"),
        ("--max-bytes 9000 --pareto no/p.json", "no/p.json: folder"),
        ("--method mse,ofm-similarity", "no budget; give --average-bits"),
    ],
)
def test_a_bad_budget_is_one_message(
    flags: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    words = ["quantize", model, "-o", tmp_path / "q.onnx", "--data", data, *flags.split()]

    assert message in complaint(capsys, *words)
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("flag", ["--average-bits", "--max-bytes"])
def test_the_least_that_is_said_to_be_possible_is(
    flag: str, capsys: pytest.CaptureFixture[str], model: Path, data: Path, tmp_path: Path
) -> None:
    words = ["quantize", model, "-o", tmp_path / "q.onnx", "--data", data]
    least = complaint(capsys, *words, flag, "2").split("possible is ")[1].strip()

    found = answer(*words, flag, least, capsys=capsys)

    key = "average_weight_bits" if flag == "--average-bits" else "bytes_quantized"
    assert found[key] <= float(least)

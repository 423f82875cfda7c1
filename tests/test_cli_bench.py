"""What `onnxptq bench` answers, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxptq
from onnxptq import cli, demo_data
from onnxptq.runtime import interleave
from onnxptq.runtime.lower import lower


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the least number of runs before a counted one."""
    monkeypatch.setattr(interleave, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(interleave, "MOST_SECONDS_TO_QUIET", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`f.onnx`, `q.onnx` and `q.npz`: the digits network, float, quantized, as a program."""
    folder = tmp_path_factory.mktemp("bench")
    images = demo_data.load()[0][:16]
    (folder / "f.onnx").write_bytes(demo_data.model_path().read_bytes())
    np.savez(folder / "d.npz", **{demo_data.INPUT_NAME: images}, allow_pickle=False)
    onnxptq.quantize(demo_data.model_path(), images, report_samples=0).save(folder / "q.onnx")
    lower(folder / "q.onnx").save(folder / "q.npz")
    return folder


def free_model(folder: Path, *sizes: int | str | None) -> Path:
    """An Identity of these sizes."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    path = folder / "free.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["bench", *map(str, words), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert cli.run(["bench", *map(str, words)]) == cli.EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_rows_and_ratios_have_the_keys_of_the_contract(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, folder / "f.onnx", folder / "q.onnx", "--threads", "1,2", "--runs", "3")

    keys = {"model", "engine", "threads", "median_ms", "min_ms"}
    assert all(keys <= set(row) for row in result["rows"])
    found = {(row["model"], row["engine"], row["threads"]) for row in result["rows"]}
    assert found == {
        (model, engine, threads)
        for model, engine in (
            ("f.onnx", "onnxruntime"),
            ("q.onnx", "onnxruntime"),
            ("q.onnx", "executor"),
        )
        for threads in (1, 2)
    }
    for row in result["rows"]:
        assert 0 < row["min_ms"] <= row["median_ms"]
    assert set(result["ratios"]) == {
        f"{kind}:q.onnx:{threads}"
        for kind in ("executor/onnxruntime", "executor/float", "onnxruntime/float")
        for threads in (1, 2)
    }
    assert "layers" not in result
    assert result["runs"] == 3
    assert "other_cores" in result


def test_a_ratio_is_that_of_the_medians(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, folder / "q.onnx", "--runs", "5")

    medians = {row["engine"]: row["median_ms"] for row in result["rows"]}
    found = result["ratios"]["executor/onnxruntime:q.onnx:1"]
    assert found["ratio"] == pytest.approx(medians["executor"] / medians["onnxruntime"])
    assert found["low"] <= found["ratio"] <= found["high"]


def test_a_program_runs_in_the_executor_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, folder / "q.npz", "--runs", "2")

    assert [(row["model"], row["engine"]) for row in result["rows"]] == [("q.npz", "executor")]
    assert result["ratios"] == {}


def test_a_program_is_compared_with_the_float_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, folder / "f.onnx", folder / "q.npz", "--runs", "2")

    assert set(result["ratios"]) == {"executor/float:q.npz:1"}


def test_layers_are_listed_with_what_they_reach(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, folder / "q.onnx", "--runs", "1", "--layers")

    keys = {"model", "node", "kernel", "shape", "macs", "ms", "gmac_per_s", "share_of_peak"}
    keys |= {"share_of_time", "bound"}
    assert all(keys <= set(row) for row in result["layers"])
    assert {row["model"] for row in result["layers"]} == {"q.onnx"}
    assert sum(row["share_of_time"] for row in result["layers"]) == pytest.approx(1.0)
    assert result["machine"]["macs_per_s"] > 0


def test_people_see_engines_ratios_and_layers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", folder / "f.onnx", folder / "q.onnx", "--runs", "2", "--layers"]

    assert cli.run(list(map(str, words))) == 0

    text = capsys.readouterr().out
    for part in ("executor/onnxruntime", "stem.0", "GMAC/s", "1x8x8x1 * 32x1x3x3 -> 1x8x8x32"):
        assert part in text


def test_files_of_the_same_name_are_told_apart(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "q.npz"
    other.write_bytes((folder / "q.npz").read_bytes())

    result = answer(capsys, folder / "q.npz", other, folder / "q.npz", "--runs", "1")

    assert [row["model"] for row in result["rows"]] == [str(folder / "q.npz"), str(other)]


def test_data_are_fed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [folder / "q.onnx", "--data", folder / "d.npz", "--batch-size", "4", "--layers"]

    result = answer(capsys, *words, "--runs", "1")

    assert result["layers"][0]["shape"] == "4x1x8x8 -> 4x1x8x8"


def test_a_batch_needs_no_shape(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, folder / "q.npz", "--batch-size", "3", "--layers", "--runs", "1")

    assert result["layers"][0]["shape"] == "3x1x8x8 -> 3x1x8x8"


def test_free_sizes_need_a_shape(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = free_model(tmp_path, "N", 3, "height", None)

    text = complaint(capsys, path)

    assert "input 'x' has the shape [N, 3, height, ?]" in text
    assert "--shape x=1x3x224x224" in text


def test_a_shape_fills_free_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = free_model(tmp_path, "N", 3, "height", "width")

    result = answer(capsys, path, "--shape", "x=2x3x4x5", "--runs", "1")

    assert len(result["rows"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--threads 0", "--threads '0': expected numbers of threads like 1,2"),
        ("--threads abc", "--threads 'abc': expected numbers of threads"),
        ("--threads 1,,2", "--threads '1,,2'"),
        ("--threads -1", "--threads '-1'"),
        ("--threads 100000", "each 1 to 256"),
        ("--runs 0", "'--runs'"),
        ("--runs many", "'--runs'"),
        ("--batch-size 0", "'--batch-size'"),
        ("--shape 1x3", "--shape '1x3': expected a text like input=1x3x224x224"),
        ("--shape input=1xNx8x8", "expected a text like"),
        ("--shape input=1x3x8x8", "--shape input=1x3x8x8: the model says [N, 1, 8, 8]"),
        ("--shape input=64", "the model says [N, 1, 8, 8]"),
        ("--shape image=1x1x8x8", "--shape image=...: no such input; there are input"),
        ("--data missing.npz", "missing.npz"),
    ],
)
def test_a_wrong_flag_is_one_message(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in complaint(capsys, folder / "q.onnx", *words.split())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.onnx", None),
        ("missing.npz", None),
        ("broken.onnx", b"not onnx at all"),
        ("broken.npz", b"no program"),
    ],
)
def test_a_file_that_cannot_be_run_is_named(
    name: str, content: bytes | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    assert name in complaint(capsys, path)


def test_arrays_are_no_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = complaint(capsys, folder / "d.npz")

    assert re.search(r"d\.npz: not a program", text)


def test_no_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing argument" in complaint(capsys)


def test_a_json_file_in_no_folder_is_refused_before_work(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [folder / "q.onnx", "--json", tmp_path / "nowhere" / "b.json"]

    assert "nowhere" in complaint(capsys, *words)

"""The command line as a user meets it: exit codes, messages, JSON."""

import dataclasses
import inspect
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq import cli, demo_data, pipeline
from onnxptq.settings import Settings
from tests.cpus import HAS_VNNI

RENAMED = {"float_": "float_patterns", "per_tensor": "per_channel"}
NOT_SETTINGS = {"model", "output", "data", "save_recipe", "report_", "json"}


@pytest.fixture
def model() -> Path:
    return demo_data.model_path()


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "calib.npz"
    np.savez(path, input=rng.uniform(0, 1, (8, 1, 8, 8)).astype(np.float32))
    return path


@pytest.fixture
def quantized(model: Path, data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "q.onnx"
    assert cli.run(["quantize", str(model), "-o", str(path), "--data", str(data)]) == 0
    return path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The message of a command that must fail with 2 and print nothing else."""
    capsys.readouterr()
    assert cli.run([str(argument) for argument in arguments]) == cli.EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def answer(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON of a command that must succeed and print nothing else."""
    capsys.readouterr()
    assert cli.run([*map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def with_external_data(model: Path, folder: Path, name: str, *, keep: bool = True) -> Path:
    """The model with its weights in a file beside it, which is then removed unless kept."""
    folder.mkdir(exist_ok=True)
    path = folder / "external.onnx"
    onnx.save(
        onnx.load(str(model)), path, save_as_external_data=True, location=name, size_threshold=0
    )
    if not keep:
        (folder / name).unlink()
    return path


def activation_model(folder: Path, operator: str, domain: str) -> Path:
    """A MatMul and one operator behind it."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node(operator, ["h"], ["y"], name="second", domain=domain),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 18)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    path = folder / "activation.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def as_a_program(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    code = "from onnxptq.cli import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0

    listed = re.findall(r"^  ([a-z]+) {2,}", capsys.readouterr().out, re.MULTILINE)
    assert listed == ["quantize", "lint", "verify", "bench", "evaluate", "report", "export", "demo"]


def test_export_without_torch_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("onnxptq.export")]:
        monkeypatch.delitem(sys.modules, name)
    if "onnxptq" in sys.modules:
        monkeypatch.delattr(sys.modules["onnxptq"], "export", raising=False)

    text = complaint(capsys, "export", "net.py:build", "-o", tmp_path / "m.onnx")

    assert "pip install 'onnxptq[torch]'" in text


def test_quantize_has_a_flag_for_every_setting() -> None:
    parameters = set(inspect.signature(cli.quantize).parameters) - NOT_SETTINGS

    flags = {RENAMED.get(name, name) for name in parameters}
    assert flags == {field.name for field in dataclasses.fields(Settings)}


def test_flags_default_to_what_python_defaults_to() -> None:
    parameters = inspect.signature(cli.quantize).parameters
    settings = Settings()

    for name in set(parameters) - NOT_SETTINGS - {"per_tensor", "float_", "layer_bits"}:
        assert parameters[name].default == getattr(settings, name), name


def test_flags_reach_the_pipeline(
    monkeypatch: pytest.MonkeyPatch, model: Path, data: Path, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def quantize(*arguments: object, **options: Any) -> None:
        seen.update(options, arguments=arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "quantize", quantize)
    words = "--bits w4a4 --float Softmax --float /head/* --layer-bits Gemm=w8a8 --per-tensor"
    words += " --no-keep-first-last --storage int8 --samples 3 --seed 7"

    output = str(tmp_path / "q.onnx")
    code = cli.run(["quantize", str(model), "-o", output, "--data", str(data), *words.split()])

    assert code == cli.EXIT_INTERRUPTED
    assert seen["arguments"] == (model, str(data))
    assert seen["float_patterns"] == ("Softmax", "/head/*")
    assert seen["layer_bits"] == ("Gemm=w8a8",)
    assert (seen["bits"], seen["per_channel"], seen["keep_first_last"]) == ("w4a4", False, False)
    assert (seen["storage"], seen["samples"], seen["seed"]) == ("int8", 3, 7)


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quantized: Path,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxptq.runtime.lint.lint", interrupted)

    assert cli.run(["lint", str(quantized)]) == cli.EXIT_INTERRUPTED
    assert "--stats FILE" in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert re.fullmatch(r"onnxptq \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("quantise", "No such command 'quantise'"),
        ("lint", "Missing argument"),
        ("lint m.onnx --what", "No such option"),
        ("quantize m.onnx --data d", "Missing option '--output'"),
        ("quantize m.onnx -o q.onnx --data d --storage zip", "'zip' is not one of"),
        ("quantize m.onnx -o q.onnx --data d --samples 0", "'--samples'"),
        ("quantize m.onnx -o q.onnx --data d --samples few", "'--samples'"),
        ("export a.py:build -o m.onnx --input 1x3xN", "expected sizes like 1x3x224x224"),
    ],
)
def test_a_wrong_command_line_is_one_message(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in complaint(capsys, *words.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bits w9a8", "2 to 8 bits, not 9"),
        ("--bits eight", "expected a text like w8a8"),
        ("--layer-bits Conv", "expected PATTERN=w4a8"),
        ("--method minmaxx", "did you mean minmax"),
        ("--method mse{q=2}", "option of mse"),
        ("--target-ort newest", "newest"),
        ("--preprocess size=3", "size"),
        ("--preprocess resnet17", "did you mean resnet18? Or write it out, as 'resize="),
        ("--float Con", "matches no node name and no operator type; did you mean Conv?"),
    ],
)
def test_a_bad_flag_value_is_one_message(
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


@pytest.mark.parametrize("content", [b"", b"not onnx at all", None])
def test_a_file_that_is_no_model_is_one_message(
    content: bytes | None,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:1000] if content is None else content)

    text = complaint(capsys, "quantize", broken, "-o", tmp_path / "q.onnx", "--data", data)

    assert "broken.onnx" in text


def test_a_missing_model_is_named(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.onnx"

    for command in (
        ["quantize", missing, "-o", tmp_path / "q.onnx", "--data", data],
        ["lint", missing],
        ["evaluate", missing, "--data", data],
        ["report", missing, "-o", tmp_path / "r.html", "--data", data],
    ):
        assert "missing.onnx" in complaint(capsys, *command)


def test_a_quantized_model_is_not_quantized_again(
    capsys: pytest.CaptureFixture[str], quantized: Path, data: Path, tmp_path: Path
) -> None:
    text = complaint(capsys, "quantize", quantized, "-o", tmp_path / "qq.onnx", "--data", data)

    assert "already quantized" in text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.ones((4, 1, 8, 8), np.float32)}, "input"),
        ({"input": np.ones((4, 3, 8, 8), np.float32)}, r"[4, 3, 8, 8]"),
        ({"input": np.full((4, 1, 8, 8), "a")}, "input"),
        ({"input": np.full((4, 1, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"input": np.zeros((4, 1, 8, 8), np.float32)}, "0"),
        ({"input": np.ones((0, 1, 8, 8), np.float32)}, "sample"),
    ],
    ids=["name", "shape", "dtype", "nan", "zero", "empty"],
)
def test_data_that_do_not_fit_are_one_message(
    arrays: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, allow_pickle=False, **arrays)

    text = complaint(capsys, "quantize", model, "-o", tmp_path / "q.onnx", "--data", path)

    assert message in text


def test_no_data_and_no_recipe_is_one_message(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    text = complaint(capsys, "quantize", model, "-o", tmp_path / "q.onnx")

    assert "data" in text


def test_external_data_that_are_missing_are_named(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path, tmp_path: Path
) -> None:
    text = complaint(
        capsys,
        *("quantize", with_external_data(model, tmp_path, "weights.bin", keep=False)),
        *("-o", tmp_path / "q.onnx", "--data", data),
    )

    assert "weights.bin" in text


def test_external_data_outside_of_the_folder_are_refused(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path, tmp_path: Path
) -> None:
    path = with_external_data(model, tmp_path / "inner", "weights.bin")
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "weights.bin")
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../weigh.ts"))
    (tmp_path / "weights.bin").rename(tmp_path / "weigh.ts")

    text = complaint(capsys, "quantize", path, "-o", tmp_path / "q.onnx", "--data", data)

    assert "../weigh.ts" in text
    assert "folder" in text


def test_an_operator_that_nobody_knows_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    path, data = activation_model(tmp_path, "Mystery", "com.example"), tmp_path / "d.npz"
    np.savez(data, x=rng.normal(size=(4, 8)).astype(np.float32))

    text = complaint(capsys, "quantize", path, "-o", tmp_path / "q.onnx", "--data", data)

    assert "Mystery" in text


def test_an_operator_without_integer_kernel_stays_in_float_and_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    path, data = activation_model(tmp_path, "Mish", ""), tmp_path / "d.npz"
    np.savez(data, x=rng.normal(size=(4, 8)).astype(np.float32))

    result = answer("quantize", path, "-o", tmp_path / "q.onnx", "--data", data, capsys=capsys)

    reasons = {row["op"]: row["why"] for row in result["float_nodes"]}
    assert reasons["Mish"]


@pytest.mark.parametrize("flag", ["-o", "--report", "--save-recipe", "--json"])
@pytest.mark.parametrize("is_file", [False, True])
def test_an_output_in_no_folder_is_refused_before_work(
    flag: str,
    is_file: bool,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    if is_file:
        (tmp_path / "nowhere").write_text("no folder")
    words = ["quantize", model, "--data", data, flag, tmp_path / "nowhere" / "file"]
    words += [] if flag == "-o" else ["-o", tmp_path / "q.onnx"]

    assert "nowhere" in complaint(capsys, *words)
    assert not (tmp_path / "q.onnx").exists()


def test_when_the_disk_is_full_the_old_file_survives(
    model: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "q.onnx"
    output.write_bytes(b"old")

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = as_a_program(
        *("quantize", model, "-o", output, "--data", data), preexec_fn=little_room
    )

    assert result.returncode == cli.EXIT_BAD_INPUT
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calib.npz", "q.onnx"]


def test_a_pipe_gets_no_progress_bar(model: Path, data: Path, tmp_path: Path) -> None:
    result = as_a_program("quantize", model, "-o", tmp_path / "q.onnx", "--data", data)

    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_error(quantized: Path) -> None:
    code = "from onnxptq.cli import main; main()"
    words = [sys.executable, "-c", code, "lint", str(quantized), "--json", "-"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    complaints = process.stderr.read()
    code = process.wait()

    assert (code, complaints) == (0, b"")


def test_quantize_answers_with_the_keys_of_the_contract(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path, tmp_path: Path
) -> None:
    result = answer(*("quantize", model, "-o", tmp_path / "q.onnx", "--data", data), capsys=capsys)

    assert set(result) == {
        "seconds",
        "peak_rss_mb",
        "bytes_float",
        "bytes_quantized",
        "average_weight_bits",
        "layers",
        "float_nodes",
        "steps",
    }
    wanted = {"node", "op", "w_bits", "a_bits", "sqnr_db", "cosine", "set_by"}
    assert all(wanted <= set(layer) for layer in result["layers"])
    assert result["average_weight_bits"] == 8.0
    assert result["bytes_quantized"] == (tmp_path / "q.onnx").stat().st_size
    assert result["bytes_float"] == pytest.approx(model.stat().st_size, rel=0.01)


def test_lint_answers_with_the_keys_of_the_contract(
    capsys: pytest.CaptureFixture[str], quantized: Path
) -> None:
    result = answer("lint", quantized, capsys=capsys)

    assert {"integer_nodes", "float_nodes", "saturation_risk"} <= set(result)
    assert len(result["integer_nodes"]) > 0


def test_evaluate_answers_with_the_keys_of_the_contract(
    capsys: pytest.CaptureFixture[str], model: Path, quantized: Path, data: Path
) -> None:
    result = answer("evaluate", quantized, "--data", data, "--reference", model, capsys=capsys)

    assert set(result) == {"n", "top1", "top5", "agreement", "sqnr_db", "kl"}
    assert (result["n"], result["top1"], result["top5"]) == (8, None, None)
    assert result["sqnr_db"] > (20.0 if HAS_VNNI else 15.0)  # 19.3 where sums saturate
    assert result["kl"] >= 0.0


def test_evaluate_knows_accuracy_where_there_are_labels(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    _, images, labels = demo_data.load()
    np.savez(tmp_path / "test.npz", input=images, y=labels)

    result = answer("evaluate", model, "--data", tmp_path / "test.npz", capsys=capsys)

    assert result["n"] == len(labels)
    assert result["top1"] >= 0.985
    assert result["top5"] >= result["top1"]


def test_report_writes_a_page(
    capsys: pytest.CaptureFixture[str], model: Path, quantized: Path, data: Path, tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    words = ["report", quantized, "-o", page, "--data", data, "--reference", model]

    result = answer(*words, capsys=capsys)

    assert {"layers", "float_nodes"} <= set(result)
    assert len(result["layers"]) > 0
    assert page.read_text().startswith("<!doctype html>")


def test_a_recipe_repeats_the_bytes_without_data(model: Path, data: Path, tmp_path: Path) -> None:
    first, second, recipe = (tmp_path / name for name in ("a.onnx", "b.onnx", "r.json"))
    words = ["quantize", str(model), "--bits", "w3a8"]

    cli.run([*words, "-o", str(first), "--data", str(data), "--save-recipe", str(recipe)])
    code = cli.run([*words, "-o", str(second), "--recipe", str(recipe)])

    assert code == 0
    assert second.read_bytes() == first.read_bytes()


def test_the_demo_tells_the_whole_story(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = answer("demo", "--out", tmp_path / "demo", capsys=capsys)

    assert set(result) == {"quantize", "lint", "verify", "evaluate", "bench"}
    assert result["verify"]["bit_exact"] == (result["verify"]["mismatches"] == 0)
    assert result["verify"]["bit_exact"] or not HAS_VNNI
    assert result["evaluate"]["top1"] > 0.98
    engines = [row["engine"] for row in result["bench"]["rows"]]
    assert engines == ["onnxruntime", "onnxruntime", "executor"]
    assert onnx.load(str(tmp_path / "demo" / "digits.w8a8.onnx")).opset_import[0].version == 21


def test_the_demo_shows_the_commands_it_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli.run(["demo", "--out", str(tmp_path)])

    shown = re.findall(r"^\$ onnxptq (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert shown == ["quantize", "lint", "verify", "evaluate", "bench"]

"""What the README says is true: its commands parse, its Python runs, CI runs its test command."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.main import get_command

from onnxptq import cli
from tests.cpus import HAS_VNNI
from tests.data_paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """Commands of the shell blocks, one each; continued lines are joined."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = (line.split("  #")[0].strip() for line in text.splitlines())
    return [part.strip() for line in lines if line for part in line.split("&&")]


def table_commands() -> list[str]:
    """The commands of the tables, between back quotes."""
    return re.findall(r"^\| `(onnxptq [^`]+)`", README, re.MULTILINE)


ONNXPTQ_LINES = [line for line in shell_lines() if line.startswith("onnxptq ")] + table_commands()


def commands() -> dict[str, Any]:
    group: Any = get_command(cli.app)
    return dict(group.commands)


@pytest.mark.parametrize("line", ONNXPTQ_LINES)
def test_every_onnxptq_line_is_accepted(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]

    with commands()[name].make_context(name, arguments) as context:
        assert context.info_name == name


def test_every_command_is_in_the_table() -> None:
    shown = {shlex.split(line)[1] for line in table_commands()}

    assert shown == set(commands())


def test_every_flag_of_the_table_exists() -> None:
    options = {
        option
        for parameter in commands()["quantize"].params
        for option in [*parameter.opts, *parameter.secondary_opts]
    }

    table = README[README.index("| flag | means |") : README.index("## From Python")]
    shown = set(re.findall(r"(--[a-z][\w-]*)", table.split("```sh")[0])) - {"--help"}
    assert shown <= options


def test_a_wrong_line_would_be_noticed() -> None:
    with pytest.raises(Exception, match="--what"):
        commands()["lint"].make_context("lint", ["q.onnx", "--what"])


def test_the_two_setup_commands_are_there() -> None:
    first, second = blocks("sh")[:2]

    assert first == "pip install '.[demo]' && onnxptq demo\n"
    assert second == "pip install -e '.[dev]' && pytest -m 'not slow'\n"


def test_ci_takes_the_test_command_from_here() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = "/<!-- test command -->/,/^```$/{/^pip /p}"

    assert pattern in script
    after = README[README.index("<!-- test command -->") :]
    assert after.splitlines()[2] == blocks("sh")[1].strip()


def test_the_python_examples_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnx.save(small_model(rng), str(tmp_path / "model.onnx"))
    np.savez(tmp_path / "calib.npz", input=rng.normal(size=(32, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}

    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)

    bits, layer = capsys.readouterr().out.splitlines()[:2]
    assert 4.0 <= float(bits) <= 8.0
    assert layer.startswith("conv1 ")
    onnx.checker.check_model(str(tmp_path / "model.q.onnx"))


def test_the_first_commands_for_an_own_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    onnx.save(small_model(rng), str(tmp_path / "model.onnx"))
    images = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", input=images)
    np.savez(tmp_path / "test.npz", input=images, y=rng.integers(0, 10, 16))
    monkeypatch.chdir(tmp_path)

    codes = [cli.run(shlex.split(line)[1:]) for line in blocks("sh")[2].splitlines()]

    # verify says no where onnxruntime saturates.
    assert codes in ([0, 0, 0, 0, 0], [0, 0, int(not HAS_VNNI), 0, 0])


def small_model(rng: np.random.Generator) -> onnx.ModelProto:
    """Conv, Relu, Conv, pool, Gemm: enough to have a first, a middle and a last layer."""

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [weight("w1", 8, 3, 3, 3), weight("w2", 8, 8, 3, 3), weight("w3", 10, 8), weight("b3", 10)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

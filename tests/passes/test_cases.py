"""Runs every case in tests/passes/cases: a pass line, an input graph, the graph expected from it.

Each case is checked three ways: the text of the result, the invariants of graph.verify, and equal
outputs in onnxruntime on random input. `pytest --update-golden` writes the expected graphs anew.
Nodes are named first, as `prepare` does.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxptq import passes
from onnxptq.graph import io, text

CASES = sorted((Path(__file__).parent / "cases").glob("*.txt"))
MARK = "\n---- expected\n"

# Folded products are rounded once to float32 instead of twice; sums are of at most 100 terms.
RTOL, ATOL = 1e-5, 1e-5


def parse(path: Path) -> tuple[str, str, str]:
    source, _, expected = path.read_text(encoding="utf-8").partition(MARK)
    first, _, graph = source.partition("\n")
    return first.removeprefix("passes:").strip(), graph, expected


def transformed(graph: str, line: str) -> ir.Model:
    named = passes.run(text.from_text(graph), "name-nodes,name-values")
    return passes.run(named, line, check=True)


def outputs(model: bytes, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def random_feeds(model: bytes, rng: np.random.Generator) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {}
    for port in session.get_inputs():
        shape = [n if isinstance(n, int) else 2 for n in port.shape]
        if port.type == "tensor(bool)":
            feeds[port.name] = np.ones(shape, bool)
        else:
            feeds[port.name] = (3 * rng.normal(size=shape)).astype(np.float32)
    return feeds


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_pass_turns_the_input_into_the_expected_graph(
    path: Path, request: pytest.FixtureRequest
) -> None:
    line, graph, expected = parse(path)

    result = text.to_text(transformed(graph, line))

    if request.config.getoption("--update-golden", default=False):
        path.write_text(f"passes: {line}\n{graph.rstrip()}{MARK}{result}", encoding="utf-8")
    else:
        assert result == expected


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_pass_does_not_change_what_the_model_computes(path: Path) -> None:
    line, graph, _ = parse(path)
    before = io.to_bytes(text.from_text(graph))
    feeds = random_feeds(before, np.random.default_rng(0))

    after = io.to_bytes(transformed(graph, line))

    for expected, got in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_allclose(got, expected, RTOL, ATOL)


def test_every_pass_has_a_case() -> None:
    covered = {name for path in CASES for name in parse(path)[0].split(",")}

    assert covered == set(passes.PASSES)

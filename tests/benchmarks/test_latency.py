"""What the latency benchmark concludes, and that a part of it can be run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bit_exact, common, latency
from onnxptq.runtime import interleave


def result(ratio: float, name: str) -> dict[str, Any]:
    keys = (f"executor/onnxruntime:{name}_w8a8.onnx:1", f"executor/float:{name}_w8a8.onnx:1")
    return {
        "bits": {"w8a8": f"{name}_w8a8.onnx"},
        "ratios": {
            key: {"ratio": value, "low": 0.0, "high": 9.0}
            for key, value in zip(keys, (ratio, 2 * ratio), strict=True)
        },
    }


def test_means_over_networks_are_geometric() -> None:
    first, second = latency.geometric_means({"a": result(0.5, "a"), "b": result(2.0, "b")})

    assert (first["ratio of"], second["ratio of"]) == ("executor/float", "executor/onnxruntime")
    assert second["geometric mean"] == pytest.approx(1.0)
    assert (second["networks"], second["worst"], second["threads"]) == (2, 2.0, 1)
    assert first["geometric mean"] == pytest.approx(2.0)


def test_every_network_can_be_made(tmp_path: Path) -> None:
    assert set(latency.NETWORKS) <= {name for name, _ in bit_exact.networks(tmp_path)}


def test_all_widths_and_threads_are_measured_by_default() -> None:
    options = latency.parse([])

    assert (options.bits, options.threads, options.runs) == (["w8a8", "w4a4"], [1, 2], 30)
    assert (options.scaling_runs, options.only) == (100, None)


def test_a_network_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interleave, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(latency, "NETWORKS", ("digits",))
    monkeypatch.setattr(latency, "SCALED", "digits")
    words = ["--bits", "w8a8", "--runs", "2", "--scaling-runs", "2"]
    words += ["--work", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["latency", *words])

    latency.main()

    (path,) = tmp_path.glob("*-latency.json")
    found = json.loads(path.read_text())
    assert found["machine"]["slug"] in path.name
    digits = found["results"]["digits"]
    assert len(digits["rows"]) == 6
    assert digits["layers"]
    assert digits["scaling"][0]["pairs"] == 2
    assert {"executor", "executor_low", "executor_high"} <= set(digits["scaling"][0])
    assert len(found["results"]["geometric_means"]) == 6
    assert "geometric means" in capsys.readouterr().out
    assert common.WORK not in path.parents

"""What the benchmark of other quantizers asks them for, and what it concludes."""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common, peers
from benchmarks.peer_arms import BITS, PEERS, Peer
from benchmarks.peers import Job, Recorded
from benchmarks.real_models import Network
from onnxptq import demo_data, ort
from onnxptq.graph import io

PEER = Peer("p", "s", (), {"w8a8": ("a", "b+adaround9")}, "it has 8 bits")


def row(peer: str, **found: Any) -> dict[str, Any]:
    return {"network": "efficientnet_lite0", "bits": "w4a8", "peer": peer, "method": "m", **found}


def job(folder: Path, **options: Any) -> Job:
    network = Network("digits", demo_data.model_path(), Path("calib.npz"), Path("eval.npz"), "")
    feeds = {part: Path(f"digits.{part}9.feeds.npz") for part in ("calib", "eval")}
    given = {"work": folder, "threads": 2, "timeout": 60.0, "reuse": False, "slow": False}
    return Job(network, feeds, Namespace(**{**given, **options}))


def test_the_best_peer_is_the_one_to_beat() -> None:
    rows = [row("onnxptq", sqnr_db=9.0), row("x", sqnr_db=3.0), row("y", sqnr_db=7.0)]

    found = peers.verdict(rows, "sqnr_db")

    assert (found["best peer"], found["theirs"], found["ours"]) == ("y m", 7.0, 9.0)
    assert (found["by"], found["better"]) == (2.0, True)


def test_a_smaller_divergence_is_better() -> None:
    rows = [row("onnxptq", kl=0.5), row("x", kl=0.25), row("y", kl=1.0)]

    found = peers.verdict(rows, "kl")

    assert (found["best peer"], found["by"], found["better"]) == ("x m", -0.25, False)


def test_an_equal_result_is_not_better() -> None:
    found = peers.verdict([row("onnxptq", top1=0.5), row("x", top1=0.5)], "top1")

    assert (found["by"], found["better"]) == (0.0, False)


@pytest.mark.parametrize("failed", ["x", "onnxptq"])
def test_there_is_no_verdict_if_one_side_failed(failed: str) -> None:
    done = "x" if failed == "onnxptq" else "onnxptq"

    found = peers.verdict([row(failed, error="no"), row(done, top1=0.5)], "top1")

    assert "better" not in found


def test_networks_are_judged_by_their_own_measures() -> None:
    rows = [row("onnxptq", top1=0.5), {**row("x", top1=0.25), "network": "resnet20"}]

    judged = [(found["network"], found["measure"]) for found in peers.verdicts(rows)]

    assert judged == [
        ("efficientnet_lite0", "sqnr_db"),
        ("efficientnet_lite0", "kl"),
        ("resnet20", "top1"),
    ]


def test_a_request_says_what_the_script_must_know(tmp_path: Path) -> None:
    asked = peers.request(job(tmp_path), PEER, "w4a8", "MinMax all")

    assert (asked["weight_bits"], asked["activation_bits"]) == (4, 8)
    assert asked["input"] == demo_data.INPUT_NAME
    assert asked["output"] == str(tmp_path / "peers" / "digits_calib9_p_w4a8_MinMax_all.onnx")
    assert asked["logits"] == asked["output"].replace(".onnx", ".npy")


def test_a_request_has_the_fields_that_scripts_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(peers.SCRIPTS))
    import peer_common  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    asked = peers.request(job(tmp_path), PEER, "w4a8", "m")

    assert peer_common.Request(**asked).low


def test_what_a_peer_cannot_write_has_its_reason(tmp_path: Path) -> None:
    (found,) = peers.peer_rows(job(tmp_path), PEER, "w3a3", Path("none"))

    assert found["error"] == "not supported: it has 8 bits"


def test_what_could_not_be_installed_has_its_reason(tmp_path: Path) -> None:
    (found,) = peers.peer_rows(job(tmp_path), PEER, "w8a8", "not installed: no network")[:1]

    assert found["error"] == "not installed: no network"


def test_slow_methods_are_run_only_where_they_are_asked_for() -> None:
    assert PEER.asked("w8a8", "resnet20") == ["a", "b+adaround9"]
    assert PEER.asked("w8a8", "efficientnet_lite0") == ["a"]
    assert PEER.asked("w8a8", "efficientnet_lite0", slow=True) == ["a", "b+adaround9"]


def test_a_script_that_crashes_answers_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('no such op')")
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    asked = {"output": str(tmp_path / "x.onnx"), "logits": str(tmp_path / "x.npy")}

    answer = peers.run_peer(Path(sys.executable), "bad", asked, job(tmp_path).options)

    assert answer == {"error": "ended with 1: RuntimeError: no such op"}


def test_a_script_that_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    asked = {"output": str(tmp_path / "x.onnx"), "logits": str(tmp_path / "x.npy")}

    answer = peers.run_peer(Path(sys.executable), "slow", asked, job(tmp_path, timeout=0.2).options)

    assert answer == {"error": "stopped after 0.2 s"}


def test_every_script_exists_and_every_width_can_be_had() -> None:
    assert all((peers.SCRIPTS / f"{peer.script}.py").is_file() for peer in PEERS)
    assert set().union(*(peer.methods for peer in PEERS)) == set(BITS)
    assert all(peer.refusal or set(peer.methods) == set(BITS) for peer in PEERS)


def test_logits_of_a_simulator_are_measured_like_those_of_a_file(tmp_path: Path) -> None:
    images, _, _ = demo_data.load()
    labels = np.zeros(70, np.int64)
    data = tmp_path / "eval.npz"
    np.savez(data, allow_pickle=False, **{demo_data.INPUT_NAME: images[:70], "labels": labels})
    network = replace(job(tmp_path).network, evaluation=data)
    session = ort.session(io.load(network.model))
    logits = next(iter(session.run({demo_data.INPUT_NAME: images[:70]}).values()))
    np.save(tmp_path / "half.npy", logits * np.float32(0.5))

    found = peers.measure(network, tmp_path / "none.onnx", tmp_path / "half.npy")

    assert (found["n"], found["agreement"], found["simulated"]) == (70, 1.0, True)
    assert found["sqnr_db"] == pytest.approx(20 * np.log10(2), abs=1e-3)


def test_recorded_logits_come_in_the_order_of_the_images() -> None:
    session = ort.session(io.load(demo_data.model_path()))
    recorded = Recorded(np.arange(50, dtype=np.float32).reshape(5, 10), session)

    parts = [recorded.run({"x": np.zeros(count)}) for count in (2, 3)]

    assert [float(next(iter(part.values()))[0, 0]) for part in parts] == [0.0, 20.0]


def test_options_of_ours_keep_their_types() -> None:
    options = peers.parse(["--ours", "method=mse", "seed=3", "per_channel=false"])

    assert dict(options.ours) == {"method": "mse", "seed": 3, "per_channel": False}
    assert options.timeout == 600
    assert options.work == common.WORK


def test_a_width_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit, match="not like w4a8"):
        peers.widths("int8")

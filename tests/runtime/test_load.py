"""What others compute is told, and what this process computes is not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxptq.runtime import load
from onnxptq.runtime.load import OtherLoad


def test_cores_of_others_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 7777 88 0 0 0 0 0\ncpu0 9 9 9\n")
    monkeypatch.setattr(load, "STAT", stat)
    monkeypatch.setattr(load.os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    monkeypatch.setattr(load.time, "process_time", iter([1.0, 2.0]).__next__)
    monkeypatch.setattr(load.time, "perf_counter", iter([10.0, 12.0]).__next__)

    counted = OtherLoad()
    stat.write_text("cpu  250 50 150 9999 99 10 20 120 0 0\ncpu0 9 9 9\n")

    assert counted.cores() == pytest.approx(((600 - 200) / 100 - 1) / 2)


def test_a_system_that_does_not_tell_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "STAT", tmp_path / "missing")

    assert OtherLoad().cores() is None


@pytest.mark.skipif(not load.STAT.exists(), reason="only Linux tells")
def test_another_process_is_other_load() -> None:
    code = "import time; end = time.time() + 9\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        time.sleep(0.2)  # until it runs
        counted = OtherLoad()
        time.sleep(0.4)
        found = counted.cores()
        other.kill()

    assert found is not None
    assert found > 0.2

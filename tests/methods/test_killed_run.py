"""A run that is killed while it learns goes on where it was, to a file of the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.learned import TEXT, WEIGHTS
from tests.small_models import proto_from_text

pytest.importorskip("torch", reason="needs the torch extra")

pytestmark = pytest.mark.torch

RUN = """
import os, signal, sys
from onnxptq import quantize
from onnxptq.methods.kept import Folder

left, output = int(sys.argv[1]), sys.argv[2]
save = Folder.save

def killed(self, key, text):
    global left
    save(self, key, text)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Folder.save = killed
method = "mse,weights-mse,gptq,qdrop{iterations=6},finetune{iterations=4}"
made = quantize("net.onnx", "calib.npz", bits="w3a3", method=method, stats=output + ".stats")
made.save(output)
"""


def run(folder: Path, saves: int, output: str) -> int:
    """Exit code of a process that kills itself once it has put so many things by."""
    command = [sys.executable, "-c", RUN, str(saves), output]
    return subprocess.run(command, cwd=folder, check=False, timeout=300).returncode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    onnx.save(proto_from_text(TEXT, rng, WEIGHTS), tmp_path / "net.onnx")
    images = rng.normal(size=(64, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=images)
    assert run(tmp_path, 0, "whole.onnx") == 0

    assert run(tmp_path, 3, "killed.onnx") == -signal.SIGKILL
    assert not (tmp_path / "killed.onnx").exists()
    assert list((tmp_path / "killed.onnx.stats.kept").iterdir())
    assert run(tmp_path, 0, "killed.onnx") == 0

    whole, killed = (tmp_path / name for name in ("whole.onnx", "killed.onnx"))
    assert killed.read_bytes() == whole.read_bytes()

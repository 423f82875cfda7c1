"""Peak memory does not grow with the number of samples."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Reads images of 224x224, taps a map as large as a first convolution's, and prints its peak.
CHILD = """
import resource, sys
import numpy as np
from onnxptq.calibrate.data import PortInfo, open_data
from onnxptq.calibrate.run import collect
from onnxptq.calibrate.stats import TensorStats
from onnxptq.methods.mse import Mse
from onnxptq.methods.percentile import Percentile
from onnxptq.quant import QuantSpec

ports = (PortInfo("input", np.dtype(np.float32), ("N", 3, 224, 224)),)
data = open_data(sys.argv[1], ports, "mean=127,std=128,layout=NCHW", int(sys.argv[2]))
taps = lambda batch: {"map": np.repeat(batch["input"], 4, axis=1)[..., ::2, ::2]}
stats = collect(taps, data, ("input", "map"))
for name in stats:
    Mse().choose(stats[name], QuantSpec(8, False))
    Percentile().choose(stats[name], QuantSpec(8, False))
print(stats.samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(source: Path, samples: int) -> int:
    command = [sys.executable, "-c", CHILD, str(source), str(samples)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen, peak = done.stdout.split()
    assert int(seen) == samples
    return int(peak)


def make_npz(folder: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (512, 224, 224, 3), np.uint8)
    np.savez(folder / "d.npz", x=x, y=np.zeros(512, np.int64))
    return folder / "d.npz"


def make_folder(folder: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    for i in range(512):
        Image.fromarray(np.roll(x, i, axis=0)).save(folder / f"{i:03}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_npz, make_folder])
def test_512_images_take_no_more_memory_than_32(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path)
    few, many = peak_kib(source, 32), peak_kib(source, 512)

    assert many <= 1.1 * few

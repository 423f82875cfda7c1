"""Data files that the benchmarks make, and a reader of them for onnxruntime's quantizer."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image

from benchmarks.common import data_path
from onnxptq.calibrate.preprocess import Preprocess

CALIBRATION_EVERY = 4
"""Images whose ImageNet index is divisible by this are for calibration, the others are not."""


class NpzReader(CalibrationDataReader):
    """The images of an .npz one by one, preprocessed as ours are, bit for bit."""

    def __init__(self, model: Path, data: Path, preprocess: str) -> None:
        self._name = str(onnxruntime.InferenceSession(str(model)).get_inputs()[0].name)
        self._images = np.load(data)["x"]
        self._preprocess = Preprocess.parse(preprocess)
        self._rows = self._read()

    def _read(self) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        for image in self._images:
            yield {self._name: self._preprocess.apply(image[None], "the benchmark's images")}

    def get_next(self) -> dict[str, Any]:
        return next(self._rows, None)  # pyright: ignore[reportReturnType] - None ends the data

    def __len__(self) -> int:
        return len(self._images)


def imagenet(work: Path, count: int) -> tuple[Path, Path]:
    """`count` calibration images, evenly spread, and all evaluation images, as two .npz files."""
    folder = data_path("imagenet_sample")
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["file"], int(row["label"])) for row in csv.DictReader(file)]
    calibration = [row for row in rows if row[1] % CALIBRATION_EVERY == 0]
    chosen = [calibration[i * len(calibration) // count] for i in range(count)]
    evaluation = [row for row in rows if row[1] % CALIBRATION_EVERY]
    calib, test = work / f"imagenet_calib{count}.npz", work / "imagenet_eval.npz"
    for path, wanted in ((calib, chosen), (test, evaluation)):
        if not path.is_file():
            pixels = [np.asarray(Image.open(folder / name).convert("RGB")) for name, _ in wanted]
            labels = np.array([label for _, label in wanted], np.int64)
            np.savez(path, x=np.stack(pixels), y=labels)
    return calib, test


def cifar10(work: Path, count: int) -> tuple[Path, Path]:
    """The first `count` calibration images of CIFAR-10, and its test file."""
    source, test = data_path("cifar10", "calib.npz"), data_path("cifar10", "test.npz")
    calib = work / f"cifar10_calib{count}.npz"
    if not calib.is_file():
        with np.load(source) as arrays:
            np.savez(calib, x=arrays["x"][:count], y=arrays["y"][:count])
    return calib, test

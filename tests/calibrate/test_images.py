"""Folders of images and their labels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxptq.calibrate.data import Data, PortInfo, open_data
from onnxptq.errors import CalibrationError

FLOAT = np.dtype(np.float32)
IMAGE = (PortInfo("input", FLOAT, ("N", 3, 8, 8)),)
PLAIN = "mean=0,layout=NCHW"


def pixels(n: int = 5, side: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, 3), np.uint8)


def all_of(data: Data, name: str, batch_size: int = 2) -> np.ndarray[Any, Any]:
    return np.concatenate([batch[name] for batch in data.batches(batch_size)])


def image_folder(folder: Path, names: list[str], side: int = 8) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(len(names), side)[i]).save(folder / name)
    return folder


def test_folder_with_labels_csv(tmp_path: Path) -> None:
    image_folder(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "labels.csv").write_text("file,label\nc.png,7\na.png,3\n")

    data = open_data(tmp_path, IMAGE, PLAIN)

    assert data.labels is not None
    assert data.labels.tolist() == [7, 3]
    expected = pixels(3)[[2, 0]].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_array_equal(all_of(data, "input"), expected)


def test_folder_with_sub_folders_numbers_classes_by_name(tmp_path: Path) -> None:
    image_folder(tmp_path, ["n02/a.png", "n01/b.png", "n01/c.png"])

    data = open_data(tmp_path, IMAGE, PLAIN)

    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = open_data(image_folder(tmp_path, ["a.png", "b.jpg"]), IMAGE, PLAIN)

    assert data.labels is None
    assert len(data) == 2


def test_samples_are_spread_over_a_folder(tmp_path: Path) -> None:
    image_folder(tmp_path, [f"{c}/{i}.png" for c in range(3) for i in range(4)])

    data = open_data(tmp_path, IMAGE, PLAIN, samples=3)

    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("preprocess", [PLAIN, None])
def test_empty_folder_is_refused(tmp_path: Path, preprocess: str | None) -> None:
    with pytest.raises(CalibrationError, match="no image in this folder or its sub-folders"):
        open_data(tmp_path, IMAGE, preprocess)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)

    with pytest.raises(CalibrationError, match=r"broken.jpg: not a readable image"):
        list(open_data(tmp_path, IMAGE, PLAIN).batches(1))


def test_truncated_image_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 64)[0]).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:900])

    with pytest.raises(CalibrationError, match=r"cut.jpg: not a readable image.*truncated"):
        list(open_data(tmp_path, IMAGE, "resize=8").batches(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.png,1\n", "first line is 'name,class', expected file,label"),
        ("file,label\na.png,cat\n", r"labels.csv, line 2: 'a.png','cat' must be an image"),
        ("file,label\nz.png,1\n", r"line 2: 'z.png','1' must be an image of this folder"),
        ("file,label\n", "lists no image"),
    ],
)
def test_bad_labels_csv_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    image_folder(tmp_path, ["a.png"])
    (tmp_path / "labels.csv").write_text(text)

    with pytest.raises(CalibrationError, match=message):
        open_data(tmp_path, IMAGE, PLAIN)


def test_images_of_different_sizes_ask_for_resize(tmp_path: Path) -> None:
    ports = (PortInfo("input", FLOAT, ("N", 3, "H", "W")),)
    image_folder(tmp_path / "a", ["a.png"], side=8)
    image_folder(tmp_path / "b", ["b.png"], side=9)

    with pytest.raises(CalibrationError, match=r"different sizes .*add resize= and crop="):
        list(open_data(tmp_path, ports, PLAIN).batches(2))


def test_folder_for_two_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"images feeds one input, the model has 2"):
        open_data(image_folder(tmp_path, ["a.png"]), IMAGE * 2, PLAIN)

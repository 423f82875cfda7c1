"""Digests of all forms of data, and what open_data refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxptq.calibrate.data import Data, PortInfo, open_data
from onnxptq.errors import SpecError

FLOAT = np.dtype(np.float32)
IMAGE = (PortInfo("input", FLOAT, ("N", 3, 8, 8)),)
VECTOR = (PortInfo("v", FLOAT, ("N", 4)),)
PLAIN = "mean=0,layout=NCHW"


def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def pixels(n: int = 5, side: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, 3), np.uint8)


def image_folder(folder: Path, names: list[str], side: int = 8) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(len(names), side)[i]).save(folder / name)
    return folder


FEEDS = [{"v": floats(2, 4) + i} for i in range(3)]


def sources(folder: Path) -> Iterator[Data]:
    np.savez(folder / "d.npz", x=pixels(), y=np.arange(5))
    yield open_data(folder / "d.npz", IMAGE, PLAIN)
    yield open_data(folder / "d.npz", IMAGE, PLAIN, samples=4)
    yield open_data(folder / "d.npz", IMAGE, "mean=1,layout=NCHW")
    yield open_data(image_folder(folder / "images", ["a.png", "b.png"]), IMAGE, PLAIN)
    yield open_data(folder / "images", IMAGE, "mean=1,layout=NCHW")
    yield open_data({"x": pixels()}, IMAGE, PLAIN)
    yield open_data({"v": floats(5, 4)}, VECTOR)
    yield open_data({"v": floats(5, 4) + 1}, VECTOR)
    yield open_data(FEEDS, VECTOR)


def test_digests_tell_sources_preprocessing_and_samples_apart(tmp_path: Path) -> None:
    digests = [data.digest() for data in sources(tmp_path)]
    (tmp_path / "again").mkdir()

    assert len(set(digests)) == len(digests)
    assert "" not in digests


def test_digest_is_of_the_content_not_the_path(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=pixels())

    first, second = (
        open_data(tmp_path / name, IMAGE, PLAIN).digest() for name in ("a.npz", "b.npz")
    )

    assert first == second


def test_preprocess_errors_come_through() -> None:
    with pytest.raises(SpecError, match="unknown preprocess key 'men'"):
        open_data({"x": pixels()}, IMAGE, "men=3")

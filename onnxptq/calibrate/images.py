"""A folder of images, with labels from labels.csv or from ImageNet-style sub-folders."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from onnxptq.calibrate.arrays import feed_pixels
from onnxptq.calibrate.ports import Array, Batch, PortInfo
from onnxptq.calibrate.preprocess import U8, Preprocess
from onnxptq.calibrate.source import I64, Data, digest_of, digest_of_files
from onnxptq.errors import CalibrationError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
LABELS_FILE = "labels.csv"


class ImageFolder(Data):
    """Images read, resized and cropped one by one."""

    def __init__(
        self, folder: Path, port: PortInfo, preprocess: Preprocess, samples: int | None
    ) -> None:
        self._folder, self._port, self._preprocess = folder, port, preprocess
        paths, labels = list_images(folder)
        # Spread over the folder: its first images may all be of one class.
        wanted = len(paths) if samples is None else min(samples, len(paths))
        wanted -= wanted % (port.batch or 1)
        if wanted == 0:
            raise CalibrationError(
                f"{folder}: {len(paths)} images, the model's batch is {port.batch or 1}; "
                f"at least one batch is needed"
            )
        chosen = [i * len(paths) // wanted for i in range(wanted)]
        self._paths = [paths[i] for i in chosen]
        self._labels = None if labels is None else labels[chosen]

    @property
    def count(self) -> int | None:
        """Number of images."""
        return len(self._paths)

    @property
    def labels(self) -> I64 | None:
        """Classes, if labels.csv or sub-folders give them."""
        return self._labels

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Preprocessed images."""
        size = self._port.batch or max(1, batch_size)
        for first in range(start, len(self._paths), size):
            paths = self._paths[first : first + size]
            feeds = [self._feed(path) for path in paths]
            shapes = {feed.shape for feed in feeds}
            if len(shapes) > 1:
                raise CalibrationError(
                    f"{self._folder}: images have different sizes after preprocessing "
                    f"({self._preprocess.text}); add resize= and crop= to --preprocess"
                )
            yield {self._port.name: np.concatenate(feeds)}

    def _feed(self, path: Path) -> Array:
        pixels = read_image(path, self._preprocess)
        one = PortInfo(self._port.name, self._port.dtype, _free_batch(self._port))
        return feed_pixels(pixels[None], one, self._preprocess, str(path))[self._port.name]

    def feed_samples(self, batch: Batch) -> int:
        """Images in a batch."""
        return int(batch[self._port.name].shape[0])

    def digest(self) -> str:
        """Digest of the images' contents and of the preprocessing."""
        return digest_of(digest_of_files(self._paths), self._preprocess.text)


def _free_batch(port: PortInfo) -> tuple[int | str | None, ...] | None:
    return None if port.shape is None else (None, *port.shape[1:])


def read_image(path: Path, preprocess: Preprocess) -> U8:
    """Pixels [H, W, C] in RGB (or grey), already resized as `preprocess` says.

    Raises:
        CalibrationError: The file is no readable image.
    """
    mode = "L" if preprocess.color == "GRAY" else "RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about EXIF details that change no pixel
            with Image.open(path) as picture:
                pixels = np.asarray(preprocess.resize_picture(picture.convert(mode)))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise CalibrationError(
            f"{path}: not a readable image ({error}); remove it or replace it"
        ) from error
    except Image.DecompressionBombError as error:
        raise CalibrationError(f"{path}: refused ({error})") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def list_images(folder: Path) -> tuple[list[Path], I64 | None]:
    """Paths of the images and their classes: labels.csv first, then sub-folders, else no classes.

    Raises:
        CalibrationError: There is no image, or labels.csv is malformed.
    """
    if (folder / LABELS_FILE).is_file():
        return _from_csv(folder / LABELS_FILE)
    flat = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if flat:
        return flat, None
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    paths: list[Path] = []
    labels: list[int] = []
    for label, child in enumerate(classes):
        images = sorted(path for path in child.rglob("*") if path.suffix.lower() in SUFFIXES)
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise CalibrationError(
            f"{folder}: no image in this folder or its sub-folders "
            f"(looked for {', '.join(sorted(SUFFIXES))})"
        )
    return paths, np.asarray(labels, np.int64)


def _from_csv(path: Path) -> tuple[list[Path], I64]:
    paths: list[Path] = []
    labels: list[int] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise CalibrationError(
                f"{path}: first line is {','.join(reader.fieldnames or ())!r}, expected file,label"
            )
        for row in reader:
            name, label = row["file"] or "", row["label"] or ""
            if not label.strip().isdigit() or not (path.parent / name).is_file():
                raise CalibrationError(
                    f"{path}, line {reader.line_num}: {name!r},{label!r} must be an image of this "
                    f"folder and its class as a whole number"
                )
            paths.append(path.parent / name)
            labels.append(int(label))
    if not paths:
        raise CalibrationError(f"{path}: lists no image")
    return paths, np.asarray(labels, np.int64)

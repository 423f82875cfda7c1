"""open_data: the one door to calibration and evaluation data, whatever form it has."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnxptq.calibrate.arrays import ArrayData, PixelData, is_pixels, need_preprocess
from onnxptq.calibrate.columns import Column, memory_columns, npy_column, npz_columns
from onnxptq.calibrate.feeds import (
    DataReader,
    Feeds,
    from_reader,
    from_test_folders,
    test_data_sets,
)
from onnxptq.calibrate.images import ImageFolder, list_images
from onnxptq.calibrate.ports import Array, Batch, PortInfo
from onnxptq.calibrate.preprocess import Preprocess, load_preprocess
from onnxptq.calibrate.source import Data, digest_of, digest_of_files
from onnxptq.errors import CalibrationError

__all__ = ["Array", "Batch", "Data", "PortInfo", "open_data"]

FORMS = (
    "an .npz or .npy file, a folder of images, a folder with test_data_set_*, "
    "or in Python arrays, dicts or a CalibrationDataReader"
)


def open_data(
    source: object,
    inputs: Sequence[PortInfo],
    preprocess: str | Preprocess | None = None,
    samples: int | None = None,
) -> Data:
    """Data for a model from any of the forms that the command line and Python take.

    Nothing is read yet but headers, labels and the list of files.

    Args:
        source: Path of an .npz (arrays named as the inputs, or uint8 `x` with labels `y`), an .npy
            (one input), a folder of images, a folder of ONNX test_data_set_*; or a dict of arrays,
            an array, an iterable of dicts, an onnxruntime CalibrationDataReader, or `Data` itself.
        inputs: The model's inputs.
        preprocess: What turns images into the input: its text or a name of zoo.toml. Arrays that
            are ready to feed do not use it.
        samples: Use only so many: the first ones, or from an image folder every n-th.

    Raises:
        CalibrationError: The source does not exist, has no form we know, or does not fit the model.
        SpecError: The preprocessing text is wrong.
    """
    if samples is not None and samples < 1:
        raise CalibrationError(f"samples is {samples}; at least 1 is needed")
    if isinstance(preprocess, str):
        preprocess = load_preprocess(preprocess)
    if isinstance(source, Data):
        return source
    if isinstance(source, str | Path):
        return _from_path(Path(source), inputs, preprocess, samples)
    if isinstance(source, np.ndarray):
        source = {"x": source}
    if isinstance(source, Mapping):
        columns = memory_columns(cast("Mapping[str, Any]", source))
        where = ("the data", _content(columns))
        return _from_columns(columns, inputs, preprocess, samples, where)
    if isinstance(source, DataReader):
        return from_reader(source, inputs, samples)
    if isinstance(source, Iterable):
        return Feeds(cast("Iterable[Any]", source), inputs, samples)
    raise CalibrationError(f"data is a {type(source).__name__}, expected {FORMS}")


def _from_path(
    path: Path, inputs: Sequence[PortInfo], preprocess: Preprocess | None, samples: int | None
) -> Data:
    if path.is_dir():
        return _from_folder(path, inputs, preprocess, samples)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder; data is {FORMS}")
    source = (str(path), lambda: digest_of_files([path]))
    if path.suffix == ".npz":
        return _from_columns(npz_columns(path), inputs, preprocess, samples, source)
    if path.suffix == ".npy":
        if len(inputs) != 1:
            names = ", ".join(port.name for port in inputs)
            raise CalibrationError(
                f"{path}: an .npy holds one array, the model has {len(inputs)} inputs ({names}); "
                f"save them by name in an .npz"
            )
        columns = {"x": npy_column(path, "x")}
        return _from_columns(columns, inputs, preprocess, samples, source)
    raise CalibrationError(f"{path}: unknown kind of data; expected {FORMS}")


def _from_folder(
    folder: Path, inputs: Sequence[PortInfo], preprocess: Preprocess | None, samples: int | None
) -> Data:
    tests = test_data_sets(folder)
    if tests:
        return from_test_folders(tests, inputs, samples)
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs)
        raise CalibrationError(
            f"{folder}: a folder of images feeds one input, the model has {len(inputs)} ({names})"
        )
    if preprocess is None:
        list_images(folder)  # a folder without images needs those first
    return ImageFolder(folder, inputs[0], need_preprocess(preprocess, str(folder)), samples)


def _from_columns(
    columns: Mapping[str, Column],
    inputs: Sequence[PortInfo],
    preprocess: Preprocess | None,
    samples: int | None,
    source: tuple[str, Callable[[], str]],
) -> Data:
    if is_pixels(columns, inputs):
        chosen = need_preprocess(preprocess, source[0])
        return PixelData(columns, inputs[0], chosen, samples, source)
    return ArrayData(columns, inputs, source, samples)


def _content(columns: Mapping[str, Column]) -> Callable[[], str]:
    def content() -> str:
        digests: list[str] = []
        for name in sorted(columns):
            column = columns[name]
            rows = column.read(column.shape[0], 0, column.shape[0]) if column.shape else iter(())
            digests += [name, f"{column.dtype}{column.shape}", *(digest_of(row) for row in rows)]
        return digest_of(*digests)

    return content

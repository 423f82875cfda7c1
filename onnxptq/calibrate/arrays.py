"""Data from columns: arrays named as the model's inputs, or pixels `x` with labels `y`."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxptq.calibrate.columns import Column
from onnxptq.calibrate.ports import Array, Batch, PortInfo, cast, checked, missing
from onnxptq.calibrate.preprocess import EXAMPLE, Preprocess
from onnxptq.calibrate.source import I64, Data, digest_of, integer_labels
from onnxptq.errors import CalibrationError

LABELS = ("y", "labels")


class ArrayData(Data):
    """Ready-to-feed arrays, one column an input."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        inputs: Sequence[PortInfo],
        source: tuple[str, Callable[[], str]],
        samples: int | None,
    ) -> None:
        self._inputs, (self._where, self._content) = inputs, source
        where = self._where
        self._columns = {port.name: _column(columns, port, inputs, where) for port in inputs}
        self._whole = any(self._is_whole(port) for port in inputs)
        self._batch = None if self._whole else _fixed_batch(inputs, where)
        available = _common_count(self._columns, where)
        self._count = available if samples is None else min(samples, available)
        if self._batch:
            self._count -= self._count % self._batch
        if self._count == 0:
            raise CalibrationError(
                f"{where}: {available} samples, the model's batch is {self._batch or 1}; "
                f"at least one batch is needed"
            )
        self._labels = _labels(columns, self._columns, self._count, where)
        for port in inputs:
            self._check_shape(port)

    def _is_whole(self, port: PortInfo) -> bool:
        """Whether each sample of this column is a complete input, batch axis and all."""
        column = self._columns[port.name]
        return port.shape is not None and len(column.shape) == len(port.shape) + 1

    def _check_shape(self, port: PortInfo) -> None:
        column = self._columns[port.name]
        shape = column.shape[1:] if self._whole else (self._batch or 1, *column.shape[1:])
        if not port.fits(shape):
            raise CalibrationError(
                f"{self._where}: array {column.name!r} has shape {list(column.shape)}, "
                f"the model's input {port.name!r} takes {port.shape_text()}"
            )
        cast(np.zeros(0, column.dtype), port, f"{self._where} (read as {column.name!r})")

    @property
    def count(self) -> int | None:
        """Number of samples."""
        return self._count

    @property
    def labels(self) -> I64 | None:
        """The array `y` or `labels`, if there is one that is not an input."""
        return self._labels

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Rows of all columns side by side."""
        size = 1 if self._whole else self._batch or max(1, batch_size)
        names = list(self._columns)
        streams = [column.read(size, start, self._count) for column in self._columns.values()]
        for row, arrays in enumerate(zip(*streams, strict=True)):
            rows = [array[0] for array in arrays] if self._whole else arrays
            first = start + row * size
            where = f"{self._where}, samples {first}..{first + len(arrays[0]) - 1}"
            yield checked(dict(zip(names, rows, strict=True)), self._inputs, where)

    def feed_samples(self, batch: Batch) -> int:
        """Rows of a batch."""
        return 1 if self._whole else int(batch[self._inputs[0].name].shape[0])

    def digest(self) -> str:
        """Digest of the content and of how many samples are used."""
        return digest_of(self._content(), str(self._count), ",".join(self._columns))


class PixelData(Data):
    """Pixels, uint8 [count, H, W, C] or [count, H, W], that are preprocessed batch by batch."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        port: PortInfo,
        preprocess: Preprocess,
        samples: int | None,
        source: tuple[str, Callable[[], str]],
    ) -> None:
        self._where, self._content = source
        self._column, self._port, self._preprocess = columns["x"], port, preprocess
        available = self._column.shape[0]
        self._count = available if samples is None else min(samples, available)
        self._count -= self._count % (port.batch or 1)
        if self._count == 0:
            raise CalibrationError(
                f"{self._where}: array 'x' has {available} samples, "
                f"the model's batch is {port.batch or 1}; at least one batch is needed"
            )
        self._labels = _labels(columns, {"x": self._column}, self._count, self._where)

    @property
    def count(self) -> int | None:
        """Number of images."""
        return self._count

    @property
    def labels(self) -> I64 | None:
        """The array `y`, if there is one."""
        return self._labels

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Preprocessed images."""
        size = self._port.batch or max(1, batch_size)
        for pixels in self._column.read(size, start, self._count):
            yield feed_pixels(pixels, self._port, self._preprocess, f"{self._where}: array 'x'")

    def feed_samples(self, batch: Batch) -> int:
        """Images in a batch."""
        return int(batch[self._port.name].shape[0])

    def digest(self) -> str:
        """Digest of the content, the preprocessing and how many samples are used."""
        return digest_of(self._content(), str(self._count), self._preprocess.text)


def feed_pixels(pixels: Array, port: PortInfo, preprocess: Preprocess, where: str) -> Batch:
    """One batch for the model from uint8 pixels [N, H, W, C] or [N, H, W].

    Raises:
        CalibrationError: What comes out does not have the shape of the model's input.
    """
    images = pixels.astype(np.uint8, copy=False)
    images = images[..., None] if images.ndim == 3 else images
    array = preprocess.apply(images, where).astype(port.dtype, copy=False)
    if not port.fits(array.shape):
        raise CalibrationError(
            f"{where}: preprocessing ({preprocess.text}) gives {list(array.shape)}, "
            f"the model's input {port.name!r} takes {port.shape_text()}; "
            f"correct resize, crop or layout in --preprocess"
        )
    return {port.name: array}


def is_pixels(columns: Mapping[str, Column], inputs: Sequence[PortInfo]) -> bool:
    """Whether `x` holds images to preprocess rather than something ready to feed."""
    if "x" not in columns or len(inputs) != 1:
        return False
    column = columns["x"]
    ready = column.dtype == inputs[0].dtype
    return column.dtype == np.uint8 and len(column.shape) in (3, 4) and not ready


def need_preprocess(preprocess: Preprocess | None, where: str) -> Preprocess:
    """The preprocessing; images without one are refused, because a guess would spoil all ranges.

    Raises:
        CalibrationError: There is none.
    """
    if preprocess is None:
        raise CalibrationError(
            f"{where}: images need a preprocessing: give --preprocess {EXAMPLE}, "
            f"or the name of a model whose preprocessing is known, such as resnet18"
        )
    return preprocess


def _column(
    columns: Mapping[str, Column], port: PortInfo, inputs: Sequence[PortInfo], where: str
) -> Column:
    if port.name in columns:
        return columns[port.name]
    if len(inputs) == 1 and "x" in columns:
        return columns["x"]
    raise missing(port.name, list(columns), where)


def _fixed_batch(inputs: Sequence[PortInfo], where: str) -> int | None:
    fixed = {port.name: port.batch for port in inputs if port.batch is not None}
    if len(set(fixed.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in fixed.items())
        raise CalibrationError(
            f"{where}: the first axes of the model's inputs differ ({text}), "
            f"so rows are no samples; add an axis in front, each entry of which is a complete input"
        )
    return next(iter(fixed.values()), None)


def _common_count(columns: Mapping[str, Column], where: str) -> int:
    counts = {column.name: column.shape[0] for column in columns.values() if column.shape}
    if len(counts) < len(columns):
        scalar = next(column.name for column in columns.values() if not column.shape)
        raise CalibrationError(
            f"{where}: array {scalar!r} is one number; its first axis must be samples"
        )
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CalibrationError(f"{where}: arrays have different numbers of samples ({text})")
    return next(iter(counts.values()))


def _labels(
    columns: Mapping[str, Column], used: Mapping[str, Column], count: int, where: str
) -> I64 | None:
    names = [name for name in LABELS if name in columns and name not in used]
    if not names:
        return None
    column = columns[names[0]]
    available = next(iter(used.values())).shape[0]
    if column.shape != (available,):
        raise CalibrationError(
            f"{where}: labels {names[0]!r} have shape {list(column.shape)}, "
            f"expected one whole number for each of {available} samples"
        )
    labels = np.concatenate([np.zeros(0, column.dtype), *column.read(count, 0, count)])
    return integer_labels(labels, f"{where}: array {names[0]!r}", count)

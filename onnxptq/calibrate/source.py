"""Data: batches a model can be fed, more than once where the source allows."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from onnxptq.calibrate.ports import Array, Batch
from onnxptq.errors import CalibrationError

I64 = npt.NDArray[np.int64]


class Data(ABC):
    """Samples for a model, read as they are needed; memory does not grow with their number."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many samples there are; None if the source does not know before it was read."""

    @property
    def labels(self) -> I64 | None:
        """Class of each sample, [count]; None if the source has none."""
        return None

    @abstractmethod
    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of up to `batch_size` samples from sample `start` on, checked against the model.

        A model with a fixed batch, and sources of ready feeds, set the size themselves.

        Raises:
            CalibrationError: Bad data, or a second pass over a source that can be read only once.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what the batches are made from; empty if the source can be read only once."""

    @abstractmethod
    def feed_samples(self, batch: Batch) -> int:
        """How many samples a batch of this source holds."""

    def take(self, n: int) -> "Data":
        """The first `n` samples, held in memory (later batches of this source still include them).

        For a source that can be read only once, take before the pass.
        """
        feeds: list[Batch] = []
        kept = 0
        for batch in self.batches(1):
            if kept >= n:
                break
            feeds.append(batch)
            kept += self.feed_samples(batch)
        labels = None if self.labels is None else self.labels[:kept]
        return Taken(feeds, labels, kept, digest_of(self.digest(), f"take {n}"))

    def __len__(self) -> int:
        count = self.count
        if count is None:
            raise CalibrationError(
                "this data source does not know its length; read it to the end, or give --samples"
            )
        return count


class Taken(Data):
    """A few feeds in memory."""

    def __init__(self, feeds: list[Batch], labels: I64 | None, count: int, digest: str) -> None:
        self._feeds, self._labels, self._count, self._digest = feeds, labels, count, digest
        self._each = count // len(feeds) if feeds else 1

    @property
    def count(self) -> int | None:
        """Number of samples."""
        return self._count

    @property
    def labels(self) -> I64 | None:
        """Labels of the samples, if the source had them."""
        return self._labels

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """The feeds as they were taken; `batch_size` does not regroup them."""
        _ = batch_size
        yield from self._feeds[start // self._each :]

    def digest(self) -> str:
        """Digest of the source and of how many were taken."""
        return self._digest

    def feed_samples(self, batch: Batch) -> int:
        """Samples in one feed."""
        _ = batch
        return self._each


class Part(Data):
    """Some of the samples of another source, which must be readable more than once."""

    def __init__(self, source: Data, start: int, stop: int) -> None:
        self._source, self._start, self._stop = source, start, stop

    @property
    def count(self) -> int | None:
        """Number of samples."""
        return self._stop - self._start

    @property
    def labels(self) -> I64 | None:
        """Labels of the samples, if the source has them."""
        labels = self._source.labels
        return None if labels is None else labels[self._start : self._stop]

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Whole batches of the source, up to the end of the part."""
        seen = self._start + start
        for batch in self._source.batches(batch_size, seen):
            if seen >= self._stop:
                return
            seen += self._source.feed_samples(batch)
            yield batch

    def digest(self) -> str:
        """Digest of the source and of the part's ends."""
        return digest_of(self._source.digest(), f"part {self._start} {self._stop}")

    def feed_samples(self, batch: Batch) -> int:
        """How many samples a batch of the source holds."""
        return self._source.feed_samples(batch)


def split(data: Data, batch_size: int, share: float) -> tuple[Data, Data | None]:
    """The first samples, and the last `share` of them; None where there are too few to share.

    Both consist of whole batches; where a batch takes fewer samples than asked for, the cut is
    where it would be with full ones.

    Raises:
        CalibrationError: The source does not know its length or cannot be read again.
    """
    first = next(data.batches(batch_size), None)
    size = 1 if first is None else max(1, data.feed_samples(first))
    size *= max(1, batch_size // size) if batch_size % size == 0 else 1
    whole = len(data) // size
    kept = whole - int(whole * share)
    if kept in (0, whole):
        return data, None
    return Part(data, 0, kept * size), Part(data, kept * size, len(data))


def digest_of(*parts: str | bytes | Array) -> str:
    """SHA-256 of texts, bytes and arrays, each with its length; empty if one is ''."""
    if any(isinstance(part, str) and not part for part in parts):
        return ""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the contents of files, in order.

    Raises:
        CalibrationError: A file cannot be read.
    """
    sha = hashlib.sha256()
    for path in paths:
        with open_binary(path) as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
    return sha.hexdigest()


def open_binary(path: Path) -> IO[bytes]:
    """Open a data file for reading.

    Raises:
        CalibrationError: It cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error


def integer_labels(labels: Array, where: str, count: int) -> I64:
    """Labels as int64 [count].

    Raises:
        CalibrationError: They are not whole numbers, or not one a sample.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise CalibrationError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}, "
            f"expected one whole number for each of {count} samples"
        )
    return labels.astype(np.int64)

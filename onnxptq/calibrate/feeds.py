"""Data from ready feeds: iterables of dicts, a CalibrationDataReader, test_data_set folders."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnxptq.calibrate.ports import Batch, PortInfo, checked
from onnxptq.calibrate.source import Data, Taken, digest_of, digest_of_files, open_binary
from onnxptq.errors import CalibrationError


@runtime_checkable
class DataReader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Any] | None:
        """The next feed, None at the end."""
        ...


class Feeds(Data):
    """Feeds from an iterable; each dict is one sample and goes to the model as it is."""

    def __init__(
        self, source: Iterable[Any], inputs: Sequence[PortInfo], samples: int | None
    ) -> None:
        self._source, self._inputs, self._samples = source, inputs, samples
        self._iterator: Iterator[Any] | None = None
        self._front: list[Batch] = []
        self._again = iter(source) is not source
        self._passes = 0

    @property
    def count(self) -> int | None:
        """Length of the iterable, if it has one."""
        try:
            length = len(self._source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None
        return length if self._samples is None else min(length, self._samples)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """The feeds, checked; `batch_size` does not regroup them."""
        _ = batch_size
        for position, feed in enumerate(self._feeds()):
            if position == self._samples:
                return
            if position >= start:
                yield feed

    def _feeds(self) -> Iterator[Batch]:
        if self._again:
            iterator = iter(self._source)
            yield from (self._checked(feed, i) for i, feed in enumerate(iterator))
            return
        self._passes += 1
        if self._passes > 1:
            raise CalibrationError(
                "the data iterator was read already and cannot be rewound; "
                "pass a list, or an object whose __iter__ starts anew"
            )
        yield from self._front
        position = len(self._front)
        for feed in self._once():
            yield self._checked(feed, position)
            position += 1

    def _once(self) -> Iterator[Any]:
        if self._iterator is None:
            self._iterator = iter(self._source)
        return self._iterator

    def take(self, n: int) -> Data:
        """The first `n` feeds; an iterator's are remembered, so that its one pass has them too.

        Raises:
            CalibrationError: The one pass over an iterator is over.
        """
        if self._again:
            return super().take(n)
        if self._passes:
            raise CalibrationError(
                "the data iterator was read already; take samples before the pass"
            )
        while len(self._front) < n:
            feed = next(self._once(), None)
            if feed is None:
                break
            self._front.append(self._checked(feed, len(self._front)))
        kept = self._front[:n]
        return Taken(kept, None, len(kept), digest_of_feeds(kept))

    def _checked(self, feed: Any, position: int) -> Batch:
        where = f"feed {position} of the data"
        if not isinstance(feed, Mapping):
            if len(self._inputs) != 1:
                raise CalibrationError(
                    f"{where}: is a {type(feed).__name__}, expected a dict with the model's inputs"
                )
            feed = {self._inputs[0].name: feed}
        return checked(dict(feed), self._inputs, where)

    def feed_samples(self, batch: Batch) -> int:
        """A feed is one sample."""
        _ = batch
        return 1

    def digest(self) -> str:
        """Digest of all feeds; empty for an iterator, which must not be read for it."""
        return digest_of_feeds(self.batches(1)) if self._again else ""


def digest_of_feeds(feeds: Iterable[Batch]) -> str:
    """SHA-256 over names, shapes, types and numbers of feeds."""
    parts: list[str] = ["feeds"]
    for feed in feeds:
        for name in sorted(feed):
            array = feed[name]
            parts.append(digest_of(name, f"{array.dtype}{array.shape}", array))
    return digest_of(*parts)


class _Rewound:
    """A reader that can start again, as an iterable."""

    def __init__(self, reader: Any) -> None:
        self._reader, self._used = reader, False

    def __iter__(self) -> Iterator[Any]:
        if self._used:
            self._reader.rewind()
        self._used = True
        yield from iter(self._reader.get_next, None)


def from_reader(reader: DataReader, inputs: Sequence[PortInfo], samples: int | None) -> Feeds:
    """Data from an onnxruntime CalibrationDataReader; with `rewind` it can be read repeatedly."""
    if hasattr(reader, "rewind"):
        return Feeds(_Rewound(reader), inputs, samples)
    return Feeds(iter(reader.get_next, None), inputs, samples)


def test_data_sets(folder: Path) -> list[Path]:
    """The ONNX test_data_set_* folders in `folder`, or itself if it is one; in numeric order."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    return sorted((path for path in folder.glob("test_data_set_*") if path.is_dir()), key=_number)


class TestDataSets:
    """The inputs of ONNX test_data_set_* folders, read as they are needed."""

    __test__ = False  # pytest takes classes of this name for tests

    def __init__(self, folders: Sequence[Path], inputs: Sequence[PortInfo]) -> None:
        self._folders, self._inputs = folders, inputs

    def __len__(self) -> int:
        return len(self._folders)

    def __iter__(self) -> Iterator[Batch]:
        for folder in self._folders:
            yield self._feed(folder)

    def digest_files(self) -> str:
        """SHA-256 of the input files."""
        return digest_of_files(path for folder in self._folders for path in _input_files(folder))

    def _feed(self, folder: Path) -> Batch:
        feed: Batch = {}
        for position, path in enumerate(_input_files(folder)):
            tensor = onnx.TensorProto()
            with open_binary(path) as file:
                try:
                    tensor.ParseFromString(file.read())
                    array = numpy_helper.to_array(tensor)
                except (DecodeError, ValueError, TypeError, KeyError) as error:
                    raise CalibrationError(f"{path}: not an ONNX tensor ({error})") from error
            names = [port.name for port in self._inputs]
            name = names[position] if position < len(names) else tensor.name
            feed[tensor.name if tensor.name in names else name] = array
        return checked(feed, self._inputs, str(folder))


def from_test_folders(
    folders: Sequence[Path], inputs: Sequence[PortInfo], samples: int | None
) -> Feeds:
    """Data from ONNX test folders; each folder is one sample."""
    return Feeds(TestDataSets(folders, inputs), inputs, samples)


def _input_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("input_*.pb"), key=_number)


def _number(path: Path) -> int:
    match = re.search(r"(\d+)(\.pb)?$", path.name)
    return int(match[1]) if match else 0

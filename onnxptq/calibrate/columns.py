"""Columns: arrays whose first axis is samples, read in batches from memory, .npy or .npz."""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from onnxptq.calibrate.ports import Array
from onnxptq.errors import CalibrationError

SKIP_BYTES = 1 << 20


class Column(ABC):
    """One named array, [count, ...]."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @abstractmethod
    def read(self, size: int, start: int, stop: int) -> Iterator[Array]:
        """Rows start..stop in arrays of `size` rows (the last may be shorter)."""


class MemoryColumn(Column):
    """An array that is in memory already."""

    def __init__(self, name: str, array: Array) -> None:
        self.name, self._array = name, array
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, size: int, start: int, stop: int) -> Iterator[Array]:
        """Slices of the array."""
        for row in range(start, stop, size):
            yield self._array[row : min(row + size, stop)]


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class StreamColumn(Column):
    """An array in .npy format, read through a stream from front to back; never whole."""

    def __init__(self, name: str, where: str, open_stream: Callable[[], IO[bytes]]) -> None:
        self.name, self._where, self._open = name, where, open_stream
        with self._open() as stream:
            header = self._header(stream)
        self.shape, self.dtype = header.shape, header.dtype

    def read(self, size: int, start: int, stop: int) -> Iterator[Array]:
        """Rows as the stream brings them; `start` is reached by reading over what is before it."""
        with self._open() as stream:
            self._header(stream)
            row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
            self._skip(stream, start * row_bytes)
            for row in range(start, stop, size):
                rows = min(size, stop - row)
                data = self._exactly(stream, rows * row_bytes)
                array = np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
                yield array.astype(self.dtype.newbyteorder("="), copy=False)

    def _header(self, stream: IO[bytes]) -> _Header:
        try:
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(stream)
        except (ValueError, KeyError, *BROKEN) as error:
            raise CalibrationError(
                f"{self._where}: not an array in .npy format ({error})"
            ) from error
        if dtype.hasobject:
            raise CalibrationError(
                f"{self._where}: holds Python objects; save numbers, not a list of ragged arrays"
            )
        if fortran and len(shape) > 1:
            raise CalibrationError(
                f"{self._where}: stored in Fortran order, which cannot be read sample by sample; "
                f"save np.ascontiguousarray of it"
            )
        return _Header(shape, cast("np.dtype[np.generic]", dtype))

    def _skip(self, stream: IO[bytes], n_bytes: int) -> None:
        while n_bytes > 0:
            n_bytes -= len(self._exactly(stream, min(n_bytes, SKIP_BYTES)))

    def _exactly(self, stream: IO[bytes], n_bytes: int) -> bytes:
        try:
            data = stream.read(n_bytes)
        except BROKEN as error:
            raise CalibrationError(
                f"{self._where}: damaged ({error}); make the file again"
            ) from error
        if len(data) != n_bytes:
            raise CalibrationError(
                f"{self._where}: ends early, its header says {list(self.shape)} {self.dtype}; "
                f"make the file again"
            )
        return data


BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What zipfile raises on damaged, encrypted or strangely compressed members."""


def npz_columns(path: Path) -> dict[str, Column]:
    """The arrays of an .npz file, none of which is read yet beyond its header.

    Raises:
        CalibrationError: Not a zip file, or a member is not an array.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = [info.filename for info in file.infolist()]
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error})") from error
    except BROKEN as error:
        raise CalibrationError(f"{path}: not an .npz file ({error})") from error
    columns: dict[str, Column] = {}
    for member in members:
        name = member.removesuffix(".npy")
        columns[name] = StreamColumn(name, f"{path}: array {name!r}", _member(path, member))
    return columns


def _member(path: Path, member: str) -> Callable[[], IO[bytes]]:
    def open_stream() -> IO[bytes]:
        try:
            # The member keeps the archive open until it is closed itself.
            return zipfile.ZipFile(path).open(member)
        except BROKEN as error:
            raise CalibrationError(
                f"{path}: array {member!r} cannot be read ({error}); make the file again"
            ) from error

    return open_stream


def npy_column(path: Path, name: str) -> Column:
    """The array of an .npy file, to be fed to the input `name`.

    Raises:
        CalibrationError: Not an .npy file.
    """

    def open_stream() -> IO[bytes]:
        try:
            return path.open("rb")
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error

    return StreamColumn(name, str(path), open_stream)


def memory_columns(arrays: Mapping[str, Any]) -> dict[str, Column]:
    """Arrays given in Python."""
    return {name: MemoryColumn(name, np.asarray(array)) for name, array in arrays.items()}

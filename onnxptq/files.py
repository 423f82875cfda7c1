"""Output files: replaced whole or not at all."""

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from onnxptq.errors import ModelError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def writable(path: Path) -> None:
    """Check that `path` can be written, before long work starts.

    Raises:
        ModelError: The folder does not exist or cannot be written, or the path is a folder.
    """
    if path.is_dir():
        raise ModelError(f"cannot write {path}: it is a folder. Give the name of a file in it")
    if _is_device(path):
        return
    folder = path.resolve().parent
    if not folder.exists():
        raise ModelError(
            f"cannot write {path}: folder {folder} does not exist. Make it with: mkdir -p {folder}"
        )
    if not folder.is_dir():
        raise ModelError(f"cannot write {path}: {folder} is a file, not a folder")
    probe = _beside(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ModelError(
            f"cannot write {path}: folder {folder} is not writable ({error.strerror}). "
            "Choose another output folder or change its permissions"
        ) from error


def write_atomically(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write beside `path`, then rename: a killed run leaves the old file or the new one whole.

    Args:
        path: File to create or replace. A link is followed, a device is written to directly.
        data: The bytes, or a function that writes them to the open file.

    Raises:
        ModelError: The file cannot be written. What was at `path` is then unchanged.
    """
    writable(path)
    if _is_device(path):
        with path.open("wb") as device:
            _fill(device, data)
        return
    target = path.resolve()
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            _fill(file, data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        # When the disk is failing altogether, the first error is the one to show.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fill(file: BinaryIO, data: bytes | Callable[[BinaryIO], None]) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data)


def _beside(path: Path) -> Path:
    target = path.resolve()
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _write_error(path: Path, error: OSError) -> ModelError:
    before = " The file that was there is unchanged." if path.exists() else ""
    mend = (
        "Free some space or choose another output folder"
        if error.errno in _NO_SPACE
        else "Choose another output folder"
    )
    return ModelError(f"cannot write {path}: {error.strerror or error}.{before} {mend}")

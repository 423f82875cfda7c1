"""Kept: what long methods put by, so that an interrupted run goes on where it was."""

import hashlib
from pathlib import Path
from typing import Protocol

from onnxptq.files import write_atomically


class Kept(Protocol):
    """Texts by key; equal keys stand for equal work, so what is found may be used as it is."""

    def load(self, key: str) -> str | None:
        """What was saved under a key, None if nothing was."""
        ...

    def save(self, key: str, text: str) -> None:
        """Put a text by, in the place of what was there."""
        ...


class Nothing:
    """Keeps nothing."""

    def load(self, key: str) -> str | None:
        """Nothing was saved."""
        _ = key

    def save(self, key: str, text: str) -> None:
        """Nothing is saved."""

    def clear(self) -> None:
        """Nothing is there."""


class Folder:
    """Keeps each text in a file of a folder, which is made when it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, key: str) -> str | None:
        """What was saved under a key, also by a process that was killed since."""
        file = self._file(key)
        return file.read_text(encoding="utf-8") if file.exists() else None

    def save(self, key: str, text: str) -> None:
        """Replace the file as a whole: a kill leaves the old text or the new one."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(key), text.encode())

    def clear(self) -> None:
        """Remove all that was saved, once the work is done."""
        for file in self.path.glob("*.json") if self.path.is_dir() else ():
            file.unlink()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _file(self, key: str) -> Path:
        return self.path / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

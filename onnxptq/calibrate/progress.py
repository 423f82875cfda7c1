"""Progress: how long work tells the user where it is; a bar on a terminal, nothing in a pipe."""

import warnings
from typing import Any, Protocol


class Progress(Protocol):
    """What calibration and methods report to; `Silent` is the default."""

    def start(self, what: str, total: int | None) -> None:
        """Begin a task of `total` steps (None: not known)."""
        ...

    def advance(self, steps: int = 1) -> None:
        """Some steps of the task are done."""
        ...

    def note(self, text: str) -> None:
        """How the task goes, in a few words that take the place of the last ones."""
        ...

    def finish(self) -> None:
        """The task is over, well or not."""
        ...

    def warn(self, message: str) -> None:
        """Say something the user should know, which does not stop the work."""
        ...


class Silent:
    """Shows no bar; warnings go through Python's `warnings`."""

    def start(self, what: str, total: int | None) -> None:
        """Nothing to show."""

    def advance(self, steps: int = 1) -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Nothing to show."""

    def finish(self) -> None:
        """Nothing to show."""

    def warn(self, message: str) -> None:
        """A Python warning, so that callers of the library can filter it."""
        warnings.warn(message, UserWarning, stacklevel=3)


class Quiet(Silent):
    """Says nothing at all, for what is only tried."""

    def warn(self, message: str) -> None:
        """What is done in the end will say it."""


class Bar:
    """A rich progress bar on standard error if that is a terminal; warnings go there anyway.

    Attributes:
        by_itself: Whether a thread draws it all the time; else it is drawn at each step, and
            nothing runs between steps, where times are measured.
    """

    def __init__(self, *, by_itself: bool = True) -> None:
        from rich.console import Console  # noqa: PLC0415 - 50 ms that a library call need not pay

        self.by_itself = by_itself
        self._console: Any = Console(stderr=True)
        self._bar: Any = None
        self._task: Any = None
        self._what = ""

    def start(self, what: str, total: int | None) -> None:
        """Show the bar, unless in a pipe."""
        if not self._console.is_terminal:
            return
        from rich.progress import Progress as RichProgress  # noqa: PLC0415

        self._what = what
        self._bar = RichProgress(console=self._console, transient=True, auto_refresh=self.by_itself)
        self._task = self._bar.add_task(what, total=total)
        self._bar.start()

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._task, steps)
            if not self.by_itself:
                self._bar.refresh()

    def note(self, text: str) -> None:
        """Words behind the task's name."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._what}: {text}")

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def warn(self, message: str) -> None:
        """One line on standard error."""
        self._console.print(f"warning: {message}", markup=False, highlight=False)

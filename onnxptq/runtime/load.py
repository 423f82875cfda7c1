"""How busy other work keeps the machine while something is measured."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
COMPUTING = (0, 1, 2, 5, 6, 7)
"""Columns of the first line: user, nice, system, both kinds of interrupts, and what the host of a
virtual machine took. Source: proc_stat(5)."""


class OtherLoad:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._others = _others_seconds()

    def cores(self) -> float | None:
        """Cores that others used on average; None where the system does not tell."""
        now, elapsed = _others_seconds(), time.perf_counter() - self._begun
        if now is None or self._others is None or elapsed <= 0:
            return None
        return max(0.0, (now - self._others) / elapsed)


def _others_seconds() -> float | None:
    """Core seconds of everyone but this process, since the machine was started."""
    try:
        columns = STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ticks = sum(int(columns[place]) for place in COMPUTING)
        return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
    except (OSError, ValueError, IndexError, AttributeError):
        return None

"""Virtual environments for packages that must not mix with ours (pip needs network, or wheels)."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.common import MissingError


def environment(folder: Path, *steps: Sequence[str], renew: bool = False) -> Path:
    """The Python of an environment in `folder`, made once.

    Args:
        folder: Where it lies or is to lie.
        *steps: What pip is asked for, one call after the other.
        renew: Ask pip again although all is there, for packages without a version.

    Raises:
        MissingError: pip could not install it; the message has pip's last line.
    """
    python, done = folder / "bin" / "python", folder / "complete"
    if done.is_file() and not renew:
        return python
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for wanted in steps:
        common.progress(f"installing {' '.join(wanted)}")
        ran = subprocess.run(
            [*pip, "--upgrade", *wanted], check=False, capture_output=True, text=True
        )
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MissingError(f"pip could not install {' '.join(wanted)} here: {last}")
    done.touch()
    return python

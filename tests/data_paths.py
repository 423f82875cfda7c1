"""Where optional test data lies, and why a test that needs them was skipped."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ONNXPTQ_DATA") or ROOT.parent / "shared" / "data")
"""Folder of images and checkpoints; the project's own tests pass without it."""


def data_path(*parts: str) -> Path:
    """The path of one data file or folder; skips the test that asks for it if it is absent."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}; set ONNXPTQ_DATA to the data folder")
    return path

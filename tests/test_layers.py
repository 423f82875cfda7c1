"""The packages that are built are the packages that exist, and imports point down."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.data_paths import ROOT


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> set[str]:
    """Import names of all folders with Python files that pyproject.toml maps into the package."""
    mapping: dict[str, str] = settings()["tool"]["setuptools"]["package-dir"]
    names: set[str] = set()
    for package, folder in mapping.items():
        for file in (ROOT / folder).rglob("*.py"):
            parents = file.parent.relative_to(ROOT / folder).parts
            names.add(".".join([package, *parents]))
    return names


def test_listed_packages_are_the_folders() -> None:
    listed = settings()["tool"]["setuptools"]["packages"]

    # Some versions of Python walk into the link onnxptq/kernels; its target is mapped anyway.
    assert set(listed) == folders()


def test_every_package_has_an_init_file() -> None:
    packages = [path for path in (ROOT / "onnxptq").rglob("*") if path.is_dir()]

    missing = [
        str(path.relative_to(ROOT))
        for path in packages
        if any(path.glob("*.py")) and not (path / "__init__.py").exists()
    ]

    assert missing == []


def test_kernels_folder_is_linked_for_type_checkers() -> None:
    link = ROOT / "onnxptq" / "kernels"
    if link.is_file():
        pytest.skip("this checkout has no symbolic links; builds do not need them")

    assert link.resolve() == ROOT / "kernels"


def test_imports_point_down() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    if not tool.exists():
        pytest.skip("needs import-linter, of the dev extra")

    result = subprocess.run(
        [tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr

"""What all tests share: seeds, hypothesis profiles, golden files, skipping of torch tests."""

import importlib.util
import os
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from onnxptq.errors import ModelError
from tests.ort_versions import IS_OLD

SEED = 20_240_229

# deadline=None: compiling and busy machines make single examples slow, which is no defect.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=50)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write golden text files anew instead of comparing with them; review the diff",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    skip = pytest.mark.skip(reason="needs the torch extra: pip install 'onnxptq[torch]'")
    for item in items:
        if "torch" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip what an old onnxruntime has no kernel for."""
    try:
        return (yield)
    except ModelError as error:
        if IS_OLD and str(error).startswith("onnxruntime "):
            pytest.skip(str(error))
        raise


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run and in every order of tests."""
    return np.random.default_rng(SEED)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Path], None]:
    """Compare a text with a golden file; with --update-golden, write the file."""
    update = bool(request.config.getoption("--update-golden"))

    def check(text: str, path: Path) -> None:
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; write it with --update-golden"
        assert text == path.read_text(encoding="utf-8")

    return check

import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from torch import nn

from onnxptq.errors import SpecError
from onnxptq.export.builder import load_builder

pytestmark = pytest.mark.torch

MODEL = "from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_function_of_a_file_builds_its_module(tmp_path: Path) -> None:
    path = write(tmp_path / "my-model.py", MODEL)

    module = load_builder(f"{path}:build")()

    assert isinstance(module, nn.Linear)
    assert module.in_features == 3


def test_files_of_two_folders_each_import_their_own_neighbour(tmp_path: Path) -> None:
    for folder, width in (("a", 5), ("b", 7)):
        write(tmp_path / folder / "sizes.py", f"WIDTH = {width}\n")
        write(
            tmp_path / folder / "model.py",
            "from torch import nn\nimport sizes\n"
            "def build():\n    return nn.Linear(sizes.WIDTH, 1)\n",
        )

    modules = [load_builder(f"{tmp_path}/{folder}/model.py:build")() for folder in "ab"]

    assert [module.in_features for module in modules] == [5, 7]
    assert "sizes" not in sys.modules


def test_a_neighbour_may_be_imported_late_and_relatively(tmp_path: Path) -> None:
    write(tmp_path / "late_sizes.py", "WIDTH = 4\n")
    path = write(
        tmp_path / "model.py",
        "from torch import nn\n"
        "from .late_sizes import WIDTH\n"
        "def build():\n"
        "    import late_sizes\n"
        "    return nn.Linear(WIDTH, late_sizes.WIDTH)\n",
    )

    module = load_builder(f"{path}:build")()

    assert (module.in_features, module.out_features) == (4, 4)


def test_dataclasses_with_postponed_annotations_work(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    width: int = 3\n"
    )
    path = write(tmp_path / "model.py", text + MODEL)

    assert isinstance(load_builder(f"{path}:build")(), nn.Linear)


@pytest.mark.parametrize("source", ["model.py", "timm:", ":build", ""])
def test_another_form_of_source_is_refused_with_the_right_ones(source: str) -> None:
    with pytest.raises(SpecError, match=r"expected path/to/file\.py:function .* or timm:NAME"):
        load_builder(source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such Python file .*nothing\.py"):
        load_builder(f"{tmp_path}/nothing.py:build")


def test_a_missing_function_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "model.py", MODEL)

    with pytest.raises(SpecError, match=r"unknown function of .*model\.py.*did you mean build\?"):
        load_builder(f"{path}:biuld")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import does_not_exist_at_all\n", "ModuleNotFoundError: No module named 'does_not"),
        ("def build(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "model.py", text)
    before = set(sys.modules)

    with pytest.raises(SpecError, match=f"model.py': importing it failed: {message}"):
        load_builder(f"{path}:build")

    assert not [name for name in set(sys.modules) - before if name.startswith("_onnxptq")]


def test_a_function_that_fails_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "model.py", "def build():\n    return {}['key']\n")

    with pytest.raises(SpecError, match=r"model\.py:build' failed: KeyError: 'key'"):
        load_builder(f"{path}:build")()


def test_a_function_that_returns_no_module_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.py", "def build():\n    return 5\n")

    with pytest.raises(SpecError, match=r"returned int, expected a torch\.nn\.Module"):
        load_builder(f"{path}:build")()


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A timm that knows one model; returns the arguments it was called with."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        calls.append({"name": name, **options})
        return nn.Linear(2, 2)

    known = ["resnet18"]
    fake = types.ModuleType("timm")
    vars(fake).update(
        create_model=create_model, is_model=known.__contains__, list_models=known.copy
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return calls


@pytest.mark.parametrize("pretrained", [True, False])
def test_timm_models_are_built_traceable(timm: list[dict[str, Any]], pretrained: bool) -> None:
    module = load_builder("timm:resnet18", pretrained=pretrained)()

    assert isinstance(module, nn.Linear)
    assert timm == [{"name": "resnet18", "pretrained": pretrained, "exportable": True}]


@pytest.mark.usefixtures("timm")
def test_an_unknown_timm_model_is_answered_with_a_close_one() -> None:
    with pytest.raises(SpecError, match="no such model; did you mean resnet18"):
        load_builder("timm:resnet81")


def test_a_missing_timm_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(
        SpecError, match=r"'timm:resnet18' needs timm .*pip install timm torchvision"
    ):
        load_builder("timm:resnet18")

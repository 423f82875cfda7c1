"""Finds the function that builds a module: `path/to/file.py:function` or `timm:NAME`.

A file is loaded by its path and gets no import name, so a user's own model and those under
`models/` are treated alike.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from onnxptq.errors import SpecError
from onnxptq.spec import unknown

Builder = Callable[[], nn.Module]


def load_builder(source: str, *, pretrained: bool = False) -> Builder:
    """The function named by `source`, wrapped: it returns an `nn.Module` or raises SpecError.

    Args:
        source: "path/to/file.py:function", or "timm:NAME" for a model of the timm package.
        pretrained: Whether timm fetches its published weights; a file's function decides itself.

    Raises:
        SpecError: The text has another form, the file or the function does not exist, importing the
            file fails, or timm is missing. Calling the builder raises it when the function
            fails or returns something else.
    """
    place, colon, name = source.rpartition(":")
    if not colon or not place or not name:
        raise SpecError(
            f"{source!r}: expected path/to/file.py:function (for example models/resnet.py:build) "
            "or timm:NAME"
        )
    if place == "timm":
        return _checked(_timm_builder(name, pretrained), source)
    return _checked(_file_builder(Path(place), name), source)


def _checked(make: Callable[[], object], source: str) -> Builder:
    def build() -> nn.Module:
        try:
            module = make()
        except SpecError:
            raise
        except Exception as error:
            raise SpecError(f"{source!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise SpecError(
                f"{source!r} returned {type(module).__name__}, expected a torch.nn.Module"
            )
        return module

    return build


def _timm_builder(name: str, pretrained: bool) -> Callable[[], object]:
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch: RuntimeError
        raise SpecError(
            f"'timm:{name}' needs timm and the torchvision that fits the installed torch; "
            f"importing them failed ({error}): pip install timm torchvision"
        ) from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise SpecError(
            f"'timm:{name}': timm has no such model; "
            + (f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()")
        )
    # exportable: timm then avoids the layers that tracing cannot follow.
    return lambda: timm.create_model(name, pretrained=pretrained, exportable=True)


def _file_builder(path: Path, name: str) -> Callable[[], object]:
    if path.suffix != ".py" or not path.is_file():
        raise SpecError(f"'{path}:{name}': no such Python file '{path}'")
    module = _load(path.resolve())
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if _is_own_function(value, module)]
        raise unknown(f"function of '{path}'", name, own)

    def make() -> object:
        with _neighbours(path.resolve().parent):  # a builder may import while it runs
            return function()

    return make


def _is_own_function(value: object, module: types.ModuleType) -> bool:
    return isinstance(value, types.FunctionType) and value.__module__ == module.__name__


def _load(path: Path) -> types.ModuleType:
    """Runs the file as a module of a nameless package, so that `from . import x` works too."""
    package = "_onnxptq_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    parent = types.ModuleType(package)
    parent.__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Classes look their module up by name (dataclasses, pickling): it must be registered.
    sys.modules.update({package: parent, module.__name__: module})
    try:
        with _neighbours(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        for key in [key for key in sys.modules if key.split(".")[0] == package]:
            del sys.modules[key]
        raise SpecError(
            f"'{path}': importing it failed: {type(error).__name__}: {error}"
        ) from error
    return module


@contextmanager
def _neighbours(folder: Path) -> Generator[None]:
    """Lets `import x` find x.py of `folder`, and forgets it afterwards.

    Another folder may have an x.py as well, and must get its own.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for key in set(sys.modules) - before:
            file = getattr(sys.modules[key], "__file__", None)
            if file is not None and Path(file).parent == folder and not key.startswith("_onnxptq_"):
                del sys.modules[key]

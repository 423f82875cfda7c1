"""Small networks quantized in every layout, for `ort_versions` to try."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import version_converter

from benchmarks import common
from benchmarks.common import MissingError
from onnxptq import demo_data
from onnxptq.calibrate.preprocess import Preprocess
from onnxptq.errors import CalibrationError
from onnxptq.graph import io
from onnxptq.pipeline import quantize
from onnxptq.recipe import Recipe
from onnxptq.runtime.targets import NEEDS

WIDTHS = ("w8a8", "w7a8", "w6a8", "w5a8", "w4a8", "w3a8", "w2a8", "w4a4", "w2a2")
NEWER_OPSET = 23


@dataclass(frozen=True, slots=True)
class Network:
    """A small float model, images to calibrate with, and an input to compare outputs on."""

    name: str
    model: Path
    data: Path
    preprocess: str | None
    feeds: Path


def digits(work: Path) -> Network:
    try:
        calibration, test, _ = demo_data.load()
    except CalibrationError as error:
        raise MissingError(str(error)) from error
    data, feeds = work / "digits_calib.npz", work / "digits_feeds.npz"
    np.savez(data, allow_pickle=False, **{demo_data.INPUT_NAME: calibration[:64]})
    np.savez(feeds, allow_pickle=False, **{demo_data.INPUT_NAME: test[:64]})
    return Network("digits", demo_data.model_path(), data, None, feeds)


def resnet20(work: Path) -> Network:
    model = common.data_path("models", "resnet20_cifar10.onnx")
    with np.load(common.data_path("cifar10", "calib.npz")) as arrays:
        images = arrays["x"][:80]
    data, feeds = work / "resnet20_calib.npz", work / "resnet20_feeds.npz"
    np.savez(data, allow_pickle=False, x=images[:64])
    pixels = Preprocess.parse(common.CIFAR_PREPROCESS).apply(images[64:], "CIFAR-10")
    np.savez(feeds, allow_pickle=False, input=pixels)
    return Network("resnet20", model, data, common.CIFAR_PREPROCESS, feeds)


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized file, the same one with `--storage int8` (or itself), and what is special in it.

    `holds` names what a version may not know; `plain` marks what every supported version must run.
    """

    path: Path
    twin: Path
    feeds: Path
    holds: str
    plain: bool = True


def make_files(network: Network, work: Path) -> dict[str, Made]:
    """Quantize one network in all layouts."""
    files: dict[str, Made] = {}
    for bits in WIDTHS:
        files[bits] = _make(network, work, bits, bits=bits)
    for bits, target in (("w4a8", None), ("w2a8", "1.29.0")):
        source = Recipe.load(work / f"{network.name}-{bits}.json")
        for kind, step in (("plain", 0), ("shifted", 1)):
            recipe = work / f"{network.name}-{bits}-{kind}.json"
            recipe.write_text(_with_grids(source, step).to_json(), encoding="utf-8")
            made = _make(network, work, f"{bits}-{kind}-file", recipe=recipe, target_ort=target)
            name = f"{bits}, {kind} grids" + (f" --target-ort {target}" if target else "")
            files[name] = replace(made, plain=target is None)
    files["w4a8 --target-ort 1.22"] = _make(
        network, work, "w4a8-for1.22", bits="w4a8", target_ort="1.22.0"
    )
    newer = work / f"{network.name}-opset{NEWER_OPSET}.onnx"
    proto = version_converter.convert_version(onnx.load(network.model), NEWER_OPSET)
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    onnx.save(proto, newer)
    raised = replace(network, name=newer.stem, model=newer)
    files[f"w8a8 of an opset {NEWER_OPSET} model"] = replace(
        _make(raised, work, "w8a8", bits="w8a8"), plain=False
    )
    return {f"{network.name} {name}": made for name, made in files.items()}


def _make(network: Network, work: Path, name: str, **options: Any) -> Made:
    path, twin = work / f"{network.name}-{name}.onnx", work / f"{network.name}-{name}.int8.onnx"
    data = None if "recipe" in options else network.data
    common.progress(f"making {path.name}")
    options = {"quality": "quick", "report_samples": 0, **options}
    made = quantize(network.model, data, preprocess=network.preprocess, **options)
    made.save(path)
    recipe = work / f"{network.name}-{name}.json"
    recipe.write_text(made.recipe.to_json(), encoding="utf-8")
    same = quantize(network.model, recipe=recipe, storage="int8", report_samples=0)
    same.save(twin)
    kinds = {
        value.dtype.name
        for value in made.model.graph.initializers.values()
        if value.dtype is not None and value.dtype in NEEDS
    }
    opset = io.opset(made.model)
    shifted = sum(_is_shifted(made.recipe, tensor.value) for tensor in made.recipe.weights())
    notes = [*sorted(kinds), *([f"opset {opset}"] if opset != 21 else [])]
    notes += [f"{shifted} shifted"] if shifted else []
    return Made(path, twin, network.feeds, ", ".join(notes))


def _is_shifted(recipe: Recipe, value: str) -> bool:
    params = recipe.tensors[value].params
    return params.spec.bits < 8 and bool((params.code_lo != params.spec.default_code_lo).any())


def _with_grids(recipe: Recipe, step: int) -> Recipe:
    """The recipe with the windows of every second channel of low-bit weights moved up by `step`.

    With 0 all windows are where INT4 and INT2 have theirs.
    """
    tensors = dict(recipe.tensors)
    for tensor in recipe.weights():
        params = tensor.params
        if params.spec.bits < 8:
            moved = np.arange(params.code_lo.size, dtype=np.int32) % 2 * step
            code_lo = params.spec.default_code_lo + moved.reshape(params.code_lo.shape)
            tensors[tensor.value] = replace(tensor, params=replace(params, code_lo=code_lo))
    return replace(recipe, tensors=tensors)

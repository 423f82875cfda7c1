"""Each family: published parameter counts, the names of public checkpoints, a clean graph."""

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("torch")

import torch

from onnxptq.export.builder import load_builder
from onnxptq.export.torch_onnx import export_module

pytestmark = pytest.mark.torch

MODELS = Path(__file__).resolve().parents[2] / "models"
ZOO: dict[str, dict[str, Any]] = tomllib.loads((MODELS / "zoo.toml").read_text())
CLEAN = {
    "Add",
    "BatchNormalization",
    "Clip",
    "Conv",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "MaxPool",
    "Pad",
    "Relu",
    "Slice",
}
QUICK = {
    "digits",
    "resnet20_cifar10",
    "resnet18",
    "mobilenet_v2",
    "regnetx_600mf",
    "efficientnet_lite0",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share their cores: torch's threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(builder: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return load_builder(f"{MODELS}/{builder}")()


def with_statistics(module: torch.nn.Module, shape: tuple[int, ...]) -> torch.nn.Module:
    """BatchNorm measured on noise: untrained networks else let their activations explode."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(torch.randn(4, *shape))
    return module


@pytest.mark.parametrize("name", ZOO)
def test_parameter_count_is_the_published_one(name: str) -> None:
    module = build(ZOO[name]["builder"])

    assert sum(parameter.numel() for parameter in module.parameters()) == ZOO[name]["parameters"]


@pytest.mark.parametrize(
    ("builder", "names"),
    [
        (
            "resnet.py:build",
            "conv1.weight bn1.running_var layer1.0.downsample.0.weight layer1.0.downsample.1.bias "
            "layer3.5.conv3.weight layer4.2.bn3.num_batches_tracked fc.bias",
        ),
        ("resnet.py:build_resnet18", "layer2.0.downsample.1.weight layer4.1.conv2.weight"),
        (
            "mobilenet_v2.py:build",
            "features.0.0.weight features.0.1.running_mean features.1.conv.0.0.weight "
            "features.1.conv.1.weight features.1.conv.2.bias features.2.conv.0.0.weight "
            "features.17.conv.2.weight features.18.1.weight classifier.1.weight",
        ),
        (
            "regnet.py:build",
            "stem.conv.weight stem.bn.bias s1.b1.proj.weight s1.b1.bn.weight s4.b7.f.a.weight "
            "s4.b7.f.a_bn.running_var s4.b7.f.b.weight s4.b7.f.c_bn.bias head.fc.weight",
        ),
        (
            "efficientnet_lite.py:build",
            "_conv_stem.weight _bn0.weight _blocks.0._depthwise_conv.weight _blocks.0._bn1.bias "
            "_blocks.1._expand_conv.weight _blocks.1._bn0.running_mean "
            "_blocks.15._project_conv.weight _conv_head.weight _bn1.bias _fc.weight",
        ),
        (
            "resnet_cifar.py:build",
            "conv1.weight bn1.weight layer1.0.conv1.weight layer3.2.bn2.running_var linear.bias",
        ),
    ],
)
def test_names_are_those_of_public_checkpoints(builder: str, names: str) -> None:
    state = build(builder).state_dict()

    assert set(names.split()) <= state.keys()


@pytest.mark.parametrize("builder", ["resnet_cifar.py:build_resnet20", "resnet.py:build_resnet18"])
def test_shortcuts_of_option_a_and_identities_have_no_parameters(builder: str) -> None:
    state = build(builder).state_dict()

    assert not [name for name in state if "shortcut" in name or "layer1.0.downsample" in name]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in ZOO]
)
def test_exported_graph_is_clean(name: str, tmp_path: Path) -> None:
    """That it equals torch is for the exporter to check: it raises otherwise."""
    # Small images where the network takes any: the graph is the same, the test ten times faster.
    channels, height, width = ZOO[name]["input"][1:]
    shape = (channels, min(height, 32), min(width, 32))
    module = with_statistics(build(ZOO[name]["builder"]), shape)

    exported = export_module(module, tmp_path / "m.onnx", (1, *shape))

    graph = onnx.load(exported.path).graph
    kinds = Counter(node.op_type for node in graph.node)
    norms = sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in module.modules())
    paths = {path for path, _ in module.named_modules()}
    assert kinds.keys() <= CLEAN
    assert kinds["BatchNormalization"] == kinds["Conv"] == norms
    assert {n.name for n in graph.node if n.op_type in {"Conv", "Gemm", "Relu"}} <= paths
    assert exported.nodes == len(graph.node)


def test_lite_pads_below_and_right_where_a_stride_meets_an_even_size() -> None:
    lite0 = build("efficientnet_lite.py:build_lite0")

    assert lite0.get_submodule("_conv_stem.pad").padding == (0, 1, 0, 1)
    assert lite0.get_submodule("_blocks.3._depthwise_conv.pad").padding == (1, 2, 1, 2)


def test_lite_pads_all_sides_alike_where_a_stride_meets_an_odd_size() -> None:
    lite1 = build("efficientnet_lite.py:build_lite1")  # 240 / 16 = 15

    conv = next(m for m in reversed(list(lite1.modules())) if getattr(m, "stride", 1) == (2, 2))

    assert conv.padding == (2, 2)
    assert isinstance(conv.get_submodule("pad"), torch.nn.Identity)

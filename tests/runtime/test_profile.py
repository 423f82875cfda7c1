"""Layers of a network: their products add up, and each has the limit that the machine sets."""

from typing import Any

import numpy as np
import pytest

from onnxptq import demo_data, ort, pipeline
from onnxptq.kernels.dispatch import NUMBERS
from onnxptq.kernels.peak import Peak, Read
from onnxptq.program import IntegerProgram
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.generated import generated_feeds
from onnxptq.runtime.lower import lower
from onnxptq.runtime.profile import profile
from onnxptq.runtime.shares import works
from tests.networks import Conv, Net

PEAK = Peak("test", 1e11, (Read("cache", 1e10, 1 << 20, 1), Read("memory", 1e9, None, 1)))
SLOW = Peak("test", 1.0, (Read("memory", 1e15, None, 1),))
NARROW = Peak("test", 1e15, (Read("memory", 1.0, None, 1),))

CONVOLUTIONS = {name for name in NUMBERS if "conv" in name or name[:5] in ("depth", "winog")}


@pytest.fixture(scope="module")
def digits() -> IntegerProgram:
    images = demo_data.load()[0][:16]
    return lower(pipeline.quantize(demo_data.model_path(), images, report_samples=0).model)


def feeds_for(program: IntegerProgram) -> dict[str, Any]:
    return next(generated_feeds(program, 1, np.random.default_rng(0)))


def macs(program: IntegerProgram, feeds: dict[str, Any]) -> int:
    arrays = Executor(program).trace(feeds)
    known = {i: arrays[v.name] for i, v in enumerate(program.values) if v.name in arrays}
    return sum(work.macs for work in works(program, known))


def test_products_of_layers_are_those_of_the_network(digits: IntegerProgram) -> None:
    feeds = feeds_for(digits)

    layers = profile(digits, feeds, 2, PEAK).layers

    assert sum(layer.macs for layer in layers) == macs(digits, feeds) > 0


def test_every_layer_names_its_node_and_its_kernel(digits: IntegerProgram) -> None:
    found = profile(digits, feeds_for(digits), 2, PEAK)

    nodes = {ort.plain_name(instr.node) for instr in digits.instrs}
    assert {layer.node for layer in found.layers} <= nodes
    convolutions = [layer for layer in found.layers if layer.op == "conv"]
    assert {layer.kernel for layer in convolutions} <= CONVOLUTIONS
    assert all(layer.macs for layer in convolutions)
    assert convolutions[0].shape == "2x8x8x1 * 32x1x3x3 -> 2x8x8x32"


def test_shares_of_time_are_all_of_it(digits: IntegerProgram) -> None:
    found = profile(digits, feeds_for(digits), 3, PEAK)

    assert sum(layer.share_of_time for layer in found.layers) == pytest.approx(1.0)
    assert found.total_ms == pytest.approx(sum(layer.ms for layer in found.layers))
    assert 0 < found.overhead_us < 1000
    for layer in found.layers:
        assert layer.ms > 0
        assert layer.gmac_per_s == pytest.approx(layer.macs / layer.ms / 1e6)
        assert layer.share_of_peak == pytest.approx(layer.gmac_per_s / 100)


@pytest.mark.parametrize(("peak", "bound"), [(SLOW, {""}), (NARROW, {"memory"})])
def test_the_bound_is_what_the_machine_has_least_of(
    digits: IntegerProgram, peak: Peak, bound: set[str]
) -> None:
    layers = profile(digits, feeds_for(digits), 1, peak).layers

    assert {layer.bound for layer in layers if layer.macs} == bound
    assert {layer.bound for layer in layers if not layer.macs} == {"memory"}


def test_a_layer_that_is_slow_though_its_bytes_are_few_is_bound_by_products(
    digits: IntegerProgram,
) -> None:
    fast = Peak("test", 1e15, (Read("memory", 1e20, None, 1),))

    layers = profile(digits, feeds_for(digits), 1, fast).layers

    assert {layer.bound for layer in layers if layer.macs} == {"compute"}


def test_bytes_come_from_where_the_network_fits(digits: IntegerProgram) -> None:
    found = profile(digits, feeds_for(digits), 1, PEAK)

    assert found.working_set_bytes < 1 << 20
    assert found.bytes_per_s == 1e10


def test_islands_are_layers_too() -> None:
    net = Net(blocks=(Conv(4), Conv(12), Conv(4)), head="none")
    proto = net.model()
    options: dict[str, Any] = {**net.options(proto), "layer_bits": ()}
    middle = [node.name for node in proto.graph.node if node.op_type == "Conv"][1]
    options["float_patterns"] = (middle,)
    program = lower(pipeline.quantize(proto, {"x": net.images()}, **options).model)
    feeds = feeds_for(program)

    layers = profile(program, feeds, 2, PEAK).layers

    islands = [layer for layer in layers if layer.kernel == "onnxruntime"]
    assert len(islands) == len(program.islands) == 1
    assert islands[0].macs == 4 * 12 * 9 * 6 * 5
    assert sum(layer.macs for layer in layers) == macs(program, feeds)

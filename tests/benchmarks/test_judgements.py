"""What the benchmarks conclude from what they measured."""

from typing import Any

import onnx
import pytest
from onnx import helper

from benchmarks import common, ort_probe, ort_versions, startup

WORKING = {
    "loads": True,
    "float": [],
    "unfolded": [],
    "equal_int8": True,
    "equal_newest": True,
}
REFUSED = {"loads": False, "error": "Unsupported model IR version"}


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    weight = helper.make_tensor("w", onnx.TensorProto.INT8, [1], [3])
    return helper.make_graph(list(nodes), "g", [], [], [weight])


@pytest.mark.parametrize(
    ("cpu", "slug"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "intel-xeon-2.50ghz-2c"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-64-core-2c"),
    ],
)
def test_a_machine_becomes_part_of_a_file_name(cpu: str, slug: str) -> None:
    assert common.slug(cpu, 2) == slug


def test_computing_between_codes_counts_as_integer() -> None:
    chain = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q", "lo", "hi"], ["c"]),
        helper.make_node("QLinearConv", ["c"], ["y"]),
        helper.make_node("DequantizeLinear", ["y", "s", "z"], ["out"]),
    ]

    found = ort_probe.running(graph(*chain))

    assert (found["float"], found["unfolded"]) == ([], [])


def test_computing_on_real_numbers_counts_as_float() -> None:
    chain = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("MaxPool", ["x"], ["y"]),
    ]

    assert ort_probe.running(graph(*chain))["float"] == ["MaxPool"]


def test_nodes_of_constants_that_were_not_folded_are_named() -> None:
    chain = [helper.make_node("Cast", ["w"], ["a"]), helper.make_node("Add", ["a", "w"], ["b"])]

    assert ort_probe.running(graph(*chain))["unfolded"] == ["Cast", "Add"]


def test_the_first_version_is_the_one_from_which_all_later_ones_work() -> None:
    table: dict[str, dict[str, dict[str, Any]]] = {
        "a": {"1.22.1": WORKING, "1.23.2": REFUSED, "1.24.4": WORKING, "1.31.1": WORKING},
        "b": {"1.22.1": WORKING, "1.23.2": WORKING, "1.24.4": WORKING, "1.31.1": WORKING},
    }

    assert ort_versions.first_working(["a", "b"], table) == "1.24.4"
    assert ort_versions.first_working(["b"], table) == "1.22.1"


def test_there_is_no_first_version_if_the_newest_fails() -> None:
    table: dict[str, dict[str, dict[str, Any]]] = {
        "a": {"1.24.4": WORKING, "1.31.1": WORKING | {"float": ["MaxPool"]}}
    }

    assert ort_versions.first_working(["a"], table) is None


@pytest.mark.parametrize(
    ("changed", "peak_mb", "met"),
    [({}, 200, True), ({"cold": 26}, 200, False), ({"onnx": 5}, 200, False), ({}, 251, False)],
)
def test_a_start_meets_its_targets_by_its_quickest_run(
    changed: dict[str, float], peak_mb: float, met: bool
) -> None:
    seconds = {"cold": 9.0, "npz": 1.0, "onnx": 3.0, "onnxruntime": 0.3} | changed
    peaks = {kind: 100 if kind == "onnxruntime" else peak_mb for kind in seconds}
    runs = {
        kind: [common.Ran({"peak_rss_mb": peaks[kind], "load_s": t}, t, 1) for t in (least, 90)]
        for kind, least in seconds.items()
    }

    row = startup.summary(runs)

    assert row["met"] == met
    assert row["more_mb"] == peak_mb - 100
    assert row["cold_parts"] == {"load_s": seconds["cold"]}

"""W8A8 on trained networks, ours against onnxruntime's quantize_static on the same images.

Accuracy and SQNR on held-out images, what runs in integers, latency in onnxruntime at one thread
(runs of the three models in turn), and the time of quantizing (processes of the two in turn).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common, feeds
from benchmarks.common import Row
from onnxptq import ort
from onnxptq.calibrate.preprocess import Preprocess
from onnxptq.calibrate.progress import Silent
from onnxptq.report.evaluate import evaluate_file
from onnxptq.report.inputs import DataOptions
from onnxptq.runtime.lint import lint

ENGINES = ("float", "ours", "onnxruntime")
JOBS: dict[str, tuple[str, Row]] = {
    "ours": ("quantize", {"quality": "quick"}),
    "onnxruntime": ("quantize_static", {}),
}
"""Both take ranges from statistics and round to nearest."""


@dataclass(frozen=True, slots=True)
class Network:
    """A float model, the images to quantize it with, and others to measure it on."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    preprocess: str


def resnet20(options: argparse.Namespace) -> Network:
    calib, test = feeds.cifar10(options.work, options.cifar_images)
    path = common.data_path("models", "resnet20_cifar10.onnx")
    return Network("resnet20", path, calib, test, common.CIFAR_PREPROCESS)


def efficientnet(options: argparse.Namespace) -> Network:
    calib, test = feeds.imagenet(options.work, options.images)
    path = common.model("efficientnet_lite0", options.work)
    return Network("efficientnet_lite0", path, calib, test, common.EFFICIENTNET_PREPROCESS)


def measure(network: Network, options: argparse.Namespace) -> Row:
    """Everything about one network."""
    files = {"float": network.model}
    for engine in ENGINES[1:]:
        files[engine] = options.work / f"{network.name}.{engine}.onnx"
    times = quantizing_times(network, files, options.repeats)
    result: Row = {
        "quality": quality(network, files),
        "lint": lint_summary(files),
        "quantizing": times,
        "latency": latency(network, files, options.runs),
    }
    report(network, result)
    return result


def quantizing_times(network: Network, files: dict[str, Path], repeats: int) -> Row:
    """Quantize with both, in turn; the first turn fills caches on disk and does not count."""
    runs: dict[str, list[Row]] = {"ours": [], "onnxruntime": []}
    for turn in range(repeats + 1):
        for engine, rows in runs.items():
            common.progress(f"{network.name}: quantizing, {engine}, turn {turn} of {repeats}")
            job, options = JOBS[engine]
            ran = common.run_job(
                job,
                model=network.model,
                data=network.calibration,
                output=files[engine],
                preprocess=network.preprocess,
                **options,
            )
            if turn or not repeats:
                rows.append({**ran.answer, "wall_s": ran.wall_s, "cpu_s": ran.cpu_s})
    keys = ("wall_s", "cpu_s", "call_wall_s", "call_cpu_s", "peak_rss_mb")
    medians = {
        engine: {key: statistics.median(row[key] for row in rows) for key in keys}
        for engine, rows in runs.items()
    }
    ratios = {key: medians["ours"][key] / medians["onnxruntime"][key] for key in keys}
    return {"median": medians, "ratio": ratios, "runs": runs}


def quality(network: Network, files: dict[str, Path]) -> list[Row]:
    """Top-1, agreement and SQNR of each file on the evaluation images."""
    rows: list[Row] = []
    for engine, path in files.items():
        common.progress(f"{network.name}: evaluating {engine}")
        reference = None if engine == "float" else network.model
        options = DataOptions(network.preprocess, batch_size=10)
        result = evaluate_file(path, str(network.evaluation), reference, options, Silent())
        rows.append({"model": engine, **asdict(result), "bytes": path.stat().st_size})
    return rows


def lint_summary(files: dict[str, Path]) -> list[Row]:
    """How many nodes of the quantized files run in integers, and which do not."""
    rows: list[Row] = []
    for engine in ENGINES[1:]:
        found = lint(files[engine])
        inside = [node.node for node in found.float_nodes if node.inside]
        rows.append(
            {
                "model": engine,
                "integer_nodes": len(found.integer_nodes),
                "float_nodes": [f"{node.op} {node.node}" for node in found.float_nodes],
                "float_inside": inside,
                "saturation_risk": len(found.saturation_risk),
            }
        )
    return rows


def latency(network: Network, files: dict[str, Path], runs: int) -> list[Row]:
    """Milliseconds of one image at one thread, the models in turn."""
    common.progress(f"{network.name}: latency, {runs} runs of each")
    with np.load(network.evaluation) as arrays:
        image = Preprocess.parse(network.preprocess).apply(arrays["x"][:1], "evaluation images")
    sessions = {engine: ort.session(path, threads=1) for engine, path in files.items()}
    seconds: dict[str, list[float]] = {engine: [] for engine in sessions}
    for turn in range(runs + 3):  # three to warm up
        for engine, session in sessions.items():
            feed = {session.inputs[0].name: image}
            started = time.perf_counter()
            session.run(feed)
            if turn >= 3:
                seconds[engine].append(time.perf_counter() - started)
    base = np.array(seconds["float"])
    return [
        {
            "model": engine,
            "median_ms": 1e3 * statistics.median(times),
            "min_ms": 1e3 * min(times),
            "of_float": statistics.median(times) / float(np.median(base)),
            "of_float_paired": float(np.median(np.array(times) / base)),
        }
        for engine, times in seconds.items()
    ]


def report(network: Network, result: Row) -> None:
    """The tables of one network."""
    latencies = {row["model"]: row for row in result["latency"]}
    table = [
        {
            "model": row["model"],
            "n": row["n"],
            "top-1 %": 100 * row["top1"],
            "agreement %": 100 * row["agreement"] if row["agreement"] is not None else None,
            "SQNR dB": row["sqnr_db"],
            "MB": row["bytes"] / 1e6,
            "ms": latencies[row["model"]]["median_ms"],
            "x float": latencies[row["model"]]["of_float"],
        }
        for row in result["quality"]
    ]
    common.show(f"{network.name}, W8A8", table)
    lints = [{**row, "float_nodes": ", ".join(row["float_nodes"])} for row in result["lint"]]
    common.show("what onnxruntime runs", lints)
    medians = result["quantizing"]["median"]
    rows = [{"quantize": engine, **row} for engine, row in medians.items()]
    rows.append({"quantize": "ratio", **result["quantizing"]["ratio"]})
    common.show("time and memory of quantizing (medians)", rows)


def verdicts(results: dict[str, Any]) -> list[Row]:
    """The targets and whether they are met."""
    rows: list[Row] = []

    def add(target: str, found: float, met: bool) -> None:
        rows.append({"target": target, "found": found, "met": met})

    for name, result in results.items():
        plain, ours, theirs = result["quality"]
        inside = len(result["lint"][0]["float_inside"])
        add(f"{name}: float nodes inside = 0", inside, inside == 0)
        lost = 100 * (plain["top1"] - ours["top1"])
        if name == "resnet20":
            add("resnet20: top-1 lost <= 0.3 points", lost, lost <= 0.3)
            continue
        gain = ours["sqnr_db"] - theirs["sqnr_db"]
        add(f"{name}: SQNR over onnxruntime's >= 0 dB", gain, gain >= 0)
        more = 100 * (ours["agreement"] - theirs["agreement"])
        add(f"{name}: agreement over onnxruntime's >= 0 points", more, more >= 0)
        speed = result["latency"][1]["of_float"]
        add(f"{name}: latency <= 0.55x float", speed, speed <= 0.55)
        for key in ("wall_s", "cpu_s"):
            share = result["quantizing"]["ratio"][key]
            add(f"{name}: quantizing {key} <= 0.4x onnxruntime's", share, share <= 0.4)
    return rows


def main() -> None:
    parser = common.parser(__doc__, "real_models")
    parser.add_argument("--images", type=int, default=64, help="ImageNet calibration images")
    parser.add_argument("--cifar-images", type=int, default=256, help="CIFAR calibration images")
    parser.add_argument("--repeats", type=int, default=3, help="counted turns of quantizing")
    parser.add_argument("--runs", type=int, default=60, help="latency runs of each model")
    parser.add_argument("--only", choices=("resnet20", "efficientnet_lite0"), default=None)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    networks: dict[str, Callable[[argparse.Namespace], Network]] = {
        "resnet20": resnet20,
        "efficientnet_lite0": efficientnet,
    }
    wanted = {name: make for name, make in networks.items() if options.only in (None, name)}
    results = common.each(
        {name: lambda make=make: measure(make(options), options) for name, make in wanted.items()}
    )
    targets = verdicts(results)
    common.show("targets", targets)
    common.write_results("real_models", {**results, "targets": targets}, options.out)


if __name__ == "__main__":
    main()

"""Latency of real networks: float and int8 in onnxruntime, and the executor, in turns.

    python -m benchmarks.latency [--only resnet20 --bits w8a8 --runs 30]

Each network is measured as float, at W8A8 and at W4A4, on 1 and 2 threads, all in turns in one
process, as `onnxptq bench --layers` does it; then ResNet-50 on 1 thread against 2. Ranges come from
a few samples, and networks without a published checkpoint have random weights: neither changes what
is computed. A part is one network: `--only resnet20 --scaling-runs 0` takes a minute.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from scipy import stats

import onnxptq
from benchmarks import bit_exact, common
from benchmarks.common import Row
from onnxptq import ort
from onnxptq.calibrate.progress import Silent
from onnxptq.report.bench import Bench, BenchOptions, bench_files
from onnxptq.report.bench_feeds import FeedOptions, feeds_for
from onnxptq.runtime.interleave import interleaved, ratio

NETWORKS = (
    *("resnet20", "efficientnet_lite0", "resnet18", "resnet50", "mobilenet_v2", "regnetx_600mf"),
)
BITS = ("w8a8", "w4a4")
SCALED = "resnet50"
"""The network on which one thread is compared with two."""
SLOW_LAYERS = 8
"""Layers that are shown; the result file has all."""


def quantized(path: Path, feeds: list[bit_exact.Feeds], bits: str, work: Path, name: str) -> Path:
    """The network at a width."""
    common.progress(f"{name}: quantizing at {bits}")
    output = work / f"{name}_{bits}.onnx"
    result = onnxptq.quantize(path, list(feeds), bits=bits, method="minmax", report_samples=0)
    result.save(output)
    return output


def measure(
    name: str, make: Callable[[], tuple[Path, list[bit_exact.Feeds]]], options: argparse.Namespace
) -> Row:
    """One network at all widths and numbers of threads."""
    path, feeds = make()
    files = [quantized(path, feeds, bits, options.work, name) for bits in options.bits]
    common.progress(f"{name}: {options.runs} rounds")
    wanted = BenchOptions(tuple(options.threads), options.runs, layers=options.layers)
    found = bench_files([path, *files], wanted, Silent())
    show(name, found)
    result: Row = {"bits": dict(zip(options.bits, (file.name for file in files), strict=True))}
    if name == SCALED and options.scaling_runs:
        result["scaling"] = [scaling(file, options.scaling_runs) for file in files]
        common.show(f"{name}, 1 thread by 2 threads", result["scaling"])
    return {**found.answer(), **result}


def scaling(path: Path, runs: int) -> Row:
    """How much faster two threads are than one, in each engine: ratio of medians, 95 % interval."""
    common.progress(f"{path.name}: {runs} pairs of 1 and 2 threads")
    feeds = feeds_for(ort.session(path).inputs, FeedOptions())
    executors = [onnxptq.Executor(path, threads=count) for count in (1, 2)]
    sessions = [ort.session(path, threads=count) for count in (1, 2)]
    seconds = interleaved(
        [
            *(partial(executor.run, None, feeds) for executor in executors),
            *(partial(session.run, feeds) for session in sessions),
        ],
        runs,
    )
    row: Row = {"model": path.name, "pairs": runs}
    for engine, (one, two) in (("executor", seconds[:2]), ("onnxruntime", seconds[2:])):
        found = ratio(one, two)
        row |= {engine: found.ratio, f"{engine}_low": found.low, f"{engine}_high": found.high}
    return row


def show(name: str, found: Bench) -> None:
    """Times, ratios and the layers that take longest."""
    common.show(name, [asdict(row) for row in found.rows])
    ratios = [{"ratio of": key, **asdict(value)} for key, value in found.ratios.items()]
    common.show(f"{name}, ratios of medians", ratios)
    for model, profile in found.profiles.items():
        longest = sorted(profile.layers, key=lambda layer: -layer.ms)[:SLOW_LAYERS]
        keys = ("node", "kernel", "shape", "ms", "gmac_per_s", "share_of_peak", "share_of_time")
        rows = [{key: getattr(layer, key) for key in keys} for layer in longest]
        common.show(f"{model}, layers that take longest on 1 thread", rows)


def geometric_means(results: Mapping[str, Row]) -> list[Row]:
    """Executor by onnxruntime over the networks, for each width and number of threads."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for result in results.values():
        widths = {file: bits for bits, file in result["bits"].items()}
        for key, value in result["ratios"].items():
            what, model, threads = key.split(":")
            groups.setdefault((widths[model], what, threads), []).append(value["ratio"])
    return [
        {
            "bits": bits,
            "ratio of": what,
            "threads": int(threads),
            "networks": len(ratios),
            "geometric mean": float(stats.gmean(ratios)),
            "worst": max(ratios),
        }
        for (bits, what, threads), ratios in sorted(groups.items())
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = common.parser(__doc__, "latency")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="repeatable")
    parser.add_argument("--bits", action="append", help="a width such as w4a4; repeatable")
    parser.add_argument("--threads", action="append", type=int, help="repeatable")
    parser.add_argument("--runs", type=int, default=30, help="counted runs of each")
    parser.add_argument("--scaling-runs", type=int, default=100, help="pairs on resnet50; 0: none")
    parser.add_argument("--layers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    options.bits = options.bits or list(BITS)
    options.threads = options.threads or [1, 2]
    return options


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = options.only or NETWORKS
    made = {name: make for name, make in bit_exact.networks(options.work) if name in wanted}
    parts: dict[str, Callable[[], Any]] = {
        name: lambda n=name: measure(n, made[n], options) for name in NETWORKS if name in made
    }
    results = common.each(parts)
    means = geometric_means(results)
    common.show("geometric means over the networks", means)
    common.write_results("latency", {**results, "geometric_means": means}, options.out)


if __name__ == "__main__":
    main()

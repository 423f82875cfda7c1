"""Learned borders of every form and grain: accuracy, and how much slower they run.

ResNet-20 as in benchmarks/lowbit.py. Borders by channel that are constant or linear are biases and
scales of a plain file; the others are tables of thresholds behind convolutions. Times are medians
of interleaved runs in one process, one thread, over those of the file without borders ("qdrop").
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks import accuracy, common, lowbit
from benchmarks.common import Row
from benchmarks.real_models import Network, resnet20
from onnxptq import ort
from onnxptq.calibrate.preprocess import Preprocess
from onnxptq.calibrate.progress import Silent
from onnxptq.report.bench import BenchOptions, bench_files
from onnxptq.runtime.execute import Executor

PLAIN = "qdrop"
IMAGES = 256
"""On which outputs of executor and onnxruntime are compared."""
ARMS = (PLAIN, "aquant-constant", "aquant", *lowbit.BORDERS)


def measure(network: Network, bits: str, plain: Row, options: argparse.Namespace) -> list[Row]:
    """All forms at one pair of widths."""
    seed = options.seeds[0]
    rows = [lowbit.made(network, arm, bits, seed, options) for arm in options.arms]
    paths = [lowbit.file_of(network, arm, bits, seed, options) for arm in options.arms]
    found = bench_files(paths, BenchOptions(runs=options.runs), Silent())
    times = {(row.model, row.engine): row.median_ms for row in found.rows}
    lines: list[Row] = []
    for row, path in zip(rows, paths, strict=True):
        line: Row = {"bits": bits, "borders": row["arm"], "top-1 %": 100 * row["top1"]}
        line["lost"] = 100 * (plain["top1"] - row["top1"])
        for engine in ("executor", "onnxruntime"):
            line[f"{engine} ms"] = times[path.name, engine]
            line[f"{engine} ratio"] = times[path.name, engine] / times[paths[0].name, engine]
        line["differing outputs"] = differing(path, network)
        lines.append(line | {"bytes": path.stat().st_size})
    return lines


def differing(path: Path, network: Network) -> int:
    """Outputs that the executor computes otherwise than onnxruntime with exact sums."""
    images = np.load(network.evaluation)["x"][:IMAGES]
    x = Preprocess.parse(network.preprocess).apply(images, str(network.evaluation))
    session, executor = ort.exact_session(path), Executor(path)
    (name,) = (port.name for port in session.inputs)
    (expected,) = session.run({name: x}).values()
    return int((executor.run(None, {name: x})[0] != expected).sum())


def main() -> None:
    parser = lowbit.parser_of(__doc__, "borders", ARMS)
    parser.add_argument("--runs", type=int, default=40, help="counted runs of each file")
    parser.set_defaults(bits=["w2a2"], iterations=500)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.cifar_images = options.calibration_images
    network = resnet20(options)
    plain = accuracy.evaluated(network.model, network)
    results = {bits: measure(network, bits, plain, options) for bits in options.bits}
    for bits, lines in results.items():
        common.show(f"ResNet-20 {bits}, float {100 * plain['top1']:.2f} %", lines)
    common.write_results("borders", {"float": plain, **results}, options.out)


if __name__ == "__main__":
    main()

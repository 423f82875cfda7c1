"""What a first result costs: compiling, starting, memory, each in a process of its own.

    python -m benchmarks.startup [--model quantized.onnx ...]

Without files, networks of `benchmarks.bit_exact` are quantized to W8A8. Times are those of whole
processes, from the start of Python to its end behind the first result, the least of several; peaks
are of resident memory. "cold" is with an empty cache of Numba, which the other runs find filled.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import onnxptq
from benchmarks import bit_exact, common
from benchmarks.common import Row
from onnxptq.program import IntegerProgram
from onnxptq.runtime.generated import generated_feeds
from onnxptq.runtime.lower import lower

NETWORKS = ("resnet20", "resnet50", "mobilenet_v2")
TARGETS = {"cold_s": 25.0, "npz_s": 1.5, "onnx_s": 4.0, "more_mb": 150.0}
"""At most; `more_mb` is the peak from an .npz less onnxruntime's."""


def quantized(name: str, work: Path) -> Path:
    """A network of bit_exact at W8A8."""
    path = work / f"{name}_w8a8.onnx"
    if not path.is_file():
        common.progress(f"{name}: quantizing")
        model, feeds = dict(bit_exact.networks(work))[name]()
        made = onnxptq.quantize(model, feeds, bits="w8a8", method="minmax", report_samples=0)
        made.save(path)
    return path


def measure(path: Path, repeats: int) -> Row:
    """Everything about one quantized file."""
    program = lower(path)
    with tempfile.TemporaryDirectory() as folder:
        saved, feeds, cache = (Path(folder) / name for name in ("p.program.npz", "x.npz", "cache"))
        program.save(saved)
        np.savez(feeds, allow_pickle=False, **one_sample(program))
        cold: list[common.Ran] = []
        for turn in range(2):
            common.progress(f"{path.name}: empty cache, turn {turn + 1} of 2")
            fresh = cache / str(turn)
            cold.append(common.run_job("executor", source=saved, feeds=feeds, cache=fresh))
        runs: dict[str, list[common.Ran]] = {"npz": [], "onnx": [], "onnxruntime": []}
        for turn in range(repeats):
            common.progress(f"{path.name}: filled cache, turn {turn + 1} of {repeats}")
            for source, name in ((saved, "npz"), (path, "onnx")):
                ran = common.run_job("executor", source=source, feeds=feeds, cache=cache / "0")
                runs[name].append(ran)
            runs["onnxruntime"].append(common.run_job("session", source=path, feeds=feeds))
    return summary({"cold": cold, **runs})


def one_sample(program: IntegerProgram) -> dict[str, Any]:
    """Made-up inputs, one sample where the batch is free."""
    (made,) = generated_feeds(program, 1, np.random.default_rng(0))
    free = [
        port.name for port in program.inputs if port.shape and not isinstance(port.shape[0], int)
    ]
    return made | {name: made[name][:1] for name in free}


def summary(runs: dict[str, list[common.Ran]]) -> Row:
    """Least and median seconds and the highest peak of each kind; parts of the quickest run."""
    row: Row = {}
    for kind, rans in runs.items():
        best = min(rans, key=lambda ran: ran.wall_s)
        row |= {
            f"{kind}_s": best.wall_s,
            f"{kind}_median_s": statistics.median(ran.wall_s for ran in rans),
            f"{kind}_cpu_s": min(ran.cpu_s for ran in rans),
            f"{kind}_mb": max(ran.answer["peak_rss_mb"] for ran in rans),
            f"{kind}_parts": {k: v for k, v in best.answer.items() if k.endswith("_s")},
        }
    row["more_mb"] = row["npz_mb"] - row["onnxruntime_mb"]
    return row | {"met": all(row[name] <= limit for name, limit in TARGETS.items())}


def main() -> int:
    """Measure all files; 1 if a target is missed."""
    parser = common.parser(__doc__, "startup")
    parser.add_argument("--model", type=Path, nargs="+", help="quantized .onnx files")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network; repeatable")
    parser.add_argument("--repeats", type=int, default=5, help="runs with a filled cache")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = common.each(parts(options))
    table = [
        {
            "model": name,
            **{k: v for k, v in row.items() if not k.endswith(("_parts", "_median_s"))},
        }
        for name, row in results.items()
    ]
    common.show(f"first result, at most {TARGETS}", table)
    common.write_results("startup", {"targets": TARGETS, **results}, options.out)
    return int(not all(row["met"] for row in results.values()))


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """What is to be measured, by name."""
    if options.model:
        return {path.stem: lambda p=path: measure(p, options.repeats) for path in options.model}
    return {
        name: lambda n=name: measure(quantized(n, options.work), options.repeats)
        for name in options.only or NETWORKS
    }


if __name__ == "__main__":
    sys.exit(main())

"""What each technique brings, alone and together, at seven pairs of widths, without gradients.

Every file is made by a process of its own from 128 calibration images, first and last layer at 8
bits, and measured in onnxruntime on images that were not used. "naive" covers all values and
rounds to nearest; each single technique stands on ranges by mse, "fast" is the default of
`quantize`. Prints the targets that the project set itself, and whether they are met.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks import common
from benchmarks.common import Row
from benchmarks.real_models import Network, efficientnet, resnet20
from onnxptq.calibrate.progress import Silent
from onnxptq.methods import QUALITIES
from onnxptq.report.evaluate import evaluate_file
from onnxptq.report.inputs import DataOptions

NETWORKS: dict[str, Callable[[argparse.Namespace], Network]] = {
    "resnet20": resnet20,
    "efficientnet_lite0": efficientnet,
}
WIDTHS = ("w8a8", "w8a4", "w4a8", "w4a4", "w3a3", "w2a8", "w2a4")
ARMS = {
    "naive": "minmax,weights-minmax",
    "mse": "mse,weights-mse",
    "aciq": "aciq,weights-mse",
    "allocate-bits": "mse,allocate-bits",
    "bias-correction": "mse,weights-mse,bias-correction",
    "equalize": "equalize,mse,weights-mse",
    "zero-point": "mse,weights-mse,zero-point",
    "gptq": "mse,weights-mse,gptq",
    "aciq+allocate+bias": "aciq,allocate-bits,bias-correction{kind=weights},bias-correction",
    "fast": QUALITIES["fast"],
}
ALLOCATED = 4
"""Bits up to which `allocate-bits` does anything."""
LOST = {
    ("resnet20", "w8a8"): 0.2,
    ("resnet20", "w4a8"): 0.4,
    ("resnet20", "w4a4"): 1.0,
    ("resnet20", "w3a3"): 5.0,
    ("resnet20", "w2a8"): 8.0,
    ("resnet20", "w2a4"): 12.0,
    ("efficientnet_lite0", "w4a8"): 3.0,
}
"""Most points of top-1 that "fast" may lose."""
SECONDS = {"resnet20": 60.0, "efficientnet_lite0": 360.0}
"""Most that "fast" may take at W4A8."""
MEGABYTES = 3000.0
SQNR_DB = 22.0
DISAGREEMENTS = 3


def applies(arm: str, bits: str) -> bool:
    """Whether an arm can differ from "mse" at these widths."""
    return "allocate" not in arm or int(bits[1 : bits.index("a")]) <= ALLOCATED


def measure(network: Network, options: argparse.Namespace) -> Row:
    """All arms at all widths of one network."""
    plain = evaluated(network.model, network)
    rows: list[Row] = []
    for bits in options.bits:
        found = [
            made(network, arm, bits, options.work) for arm in options.arms if applies(arm, bits)
        ]
        for row in found:
            row["lost"] = 100 * (plain["top1"] - row["top1"])
        common.show(f"{network.name} {bits}, float {100 * plain['top1']:.2f} %", table(found))
        rows += found
    return {"float": plain, "rows": rows}


def made(network: Network, arm: str, bits: str, work: Path) -> Row:
    """One file: how it was made, and how good it is."""
    common.progress(f"{network.name} {bits}: {arm}")
    output = work / f"{network.name}.{arm}.{bits}.onnx"
    ran = common.run_job(
        "quantize",
        model=network.model,
        data=network.calibration,
        output=output,
        preprocess=network.preprocess,
        bits=bits,
        method=ARMS[arm],
    )
    row: Row = {"bits": bits, "arm": arm, "method": ARMS[arm], "bytes": output.stat().st_size}
    row |= {"seconds": ran.answer["call_wall_s"], "peak_rss_mb": ran.answer["peak_rss_mb"]}
    row |= {"float_nodes": ran.answer["float_nodes"], "steps": ran.answer["steps"]}
    return row | evaluated(output, network)


def evaluated(path: Path, network: Network, engine: str = "onnxruntime") -> Row:
    """Accuracy, and distance from the float network."""
    options = DataOptions(network.preprocess, batch_size=25)
    found = evaluate_file(
        path, str(network.evaluation), network.model, options, Silent(), engine=engine
    )
    row = asdict(found)
    row["disagreements"] = round(found.n * (1 - (found.agreement or 0.0)))
    return row


def table(rows: list[Row]) -> list[Row]:
    """What people read of the rows."""
    return [
        {
            "bits": row["bits"],
            "arm": row["arm"],
            "top-1 %": 100 * row["top1"],
            "lost": row["lost"],
            "disagreements": row["disagreements"],
            "SQNR dB": row["sqnr_db"],
            "KL": row["kl"],
            "kB": row["bytes"] / 1e3,
            "s": row["seconds"],
            "MB of memory": row["peak_rss_mb"],
        }
        for row in rows
    ]


def verdicts(results: dict[str, Row]) -> list[Row]:
    """The targets of "fast" and whether they are met."""
    found: list[Row] = []

    def add(target: str, number: float, met: bool) -> None:
        found.append({"target": target, "found": number, "met": met})

    for name, result in results.items():
        for row in result["rows"]:
            bits = row["bits"]
            if row["arm"] != "fast":
                continue
            most = LOST.get((name, bits))
            if most is not None:
                add(f"{name} {bits}: top-1 lost <= {most}", row["lost"], row["lost"] <= most)
            if name == "efficientnet_lite0" and bits == "w8a8":
                db, differ = row["sqnr_db"], row["disagreements"]
                add(f"{name} {bits}: SQNR >= {SQNR_DB} dB", db, db >= SQNR_DB)
                add(f"{name} {bits}: disagreements <= 3", differ, differ <= DISAGREEMENTS)
            if bits == "w4a8":
                seconds, memory = row["seconds"], row["peak_rss_mb"]
                add(f"{name}: <= {SECONDS[name]} s", seconds, seconds <= SECONDS[name])
                add(f"{name}: <= {MEGABYTES} MB", memory, memory <= MEGABYTES)
    return found


def main() -> None:
    parser = common.parser(__doc__, "accuracy")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--images", type=int, default=128, help="ImageNet calibration images")
    parser.add_argument("--cifar-images", type=int, default=128, help="CIFAR calibration images")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = common.each(
        {
            name: lambda make=NETWORKS[name]: measure(make(options), options)
            for name in options.networks
        }
    )
    targets = verdicts(results)
    common.show("targets", targets)
    # A part has a file of its own, so that it replaces no more than it measured.
    asked = ((options.networks, NETWORKS), (options.bits, WIDTHS))
    parts = [name for some, every in asked if set(some) != set(every) for name in some]
    name = "-".join(["accuracy", *parts])
    common.write_results(name, {**results, "targets": targets}, options.out)


if __name__ == "__main__":
    main()

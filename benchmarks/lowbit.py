"""Methods that learn by gradients at few bits: the ladder from rounding to nearest to "best".

CIFAR-10, ResNet-20, 1,024 calibration images, of which 128 are held out. As in the papers the
network's input, the first and last layer's weights and the last layer's input have 8 bits (with
--second-input-8 the second layer's input too, as in BRECQ); weights per channel, activations per
tensor. Every file is made by a process of its own and evaluated on all test images by the executor,
whose results are onnxruntime's on CPUs with VNNI. A row found in the work folder is not made anew.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from benchmarks import accuracy, common
from benchmarks.common import Row
from benchmarks.real_models import Network, resnet20
from onnxptq.methods import QUALITIES, methods_of, with_iterations

NEAREST = "mse,weights-mse"
ARMS = {
    "naive": "minmax,weights-minmax",
    "nearest": NEAREST,
    "fast": QUALITIES["fast"],
    "adaround": f"{NEAREST},adaround",
    "brecq": f"{NEAREST},brecq",
    "brecq-fisher": f"{NEAREST},brecq{{loss=fisher}}",
    "qdrop": f"{NEAREST},qdrop",
    "qdrop-slow": f"{NEAREST},qdrop{{rate=0.05}}",
    "genie": f"{NEAREST},qdrop{{scales=true}}",
    "pd-quant": f"{NEAREST},pd-quant",
    "aquant-constant": f"{NEAREST},aquant{{border=constant}}",
    "aquant": f"{NEAREST},aquant",
    "best": "",
}
BORDERS = {
    f"aquant-{form}-{grain}": f"{NEAREST},aquant{{border={form},grain={grain}}}"
    for form in ("constant", "linear", "quadratic")
    for grain in ("channel", "group", "tensor")
    if form == "quadratic" or grain != "channel"
}
"""Borders that become tables (`benchmarks/borders.py`)."""
LEARNED = (*(arm for arm in ARMS if arm not in ("naive", "nearest", "fast")), *BORDERS)
BASE = "qdrop"
GAINS = {"pd-quant": 1.0, "aquant": 3.0}
"""Points over QDrop at W2A2 that the project set itself."""
LOST = {"w4a4": 0.5, "w3a3": 2.5, "w2a4": 6.0, "w2a2": 15.0}
"""Most points of top-1 that "best" may lose."""
SEVERAL = "w2a2"
"""Widths at which files are made with every seed; at others with the first one."""
SECONDS = 45 * 60.0
CONFIDENCE = 0.95


def text_of(arm: str, bits: str, iterations: int) -> str:
    """The methods of an arm."""
    fewest = min(int(width) for width in bits[1:].split("a"))
    text = {**ARMS, **BORDERS}[arm] or methods_of("best", fewest)
    return with_iterations(text, iterations) if arm in LEARNED else text


def file_of(network: Network, arm: str, bits: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a file is made."""
    convention = "-second8" if options.second_input_8 else ""
    name = f"{network.name}-{arm}-{bits}-{options.iterations}-{seed}{convention}"
    return options.work / f"{name}.onnx"


def made(network: Network, arm: str, bits: str, seed: int, options: argparse.Namespace) -> Row:
    """One file: how it was made, and how good it is."""
    output = file_of(network, arm, bits, seed, options)
    known = output.with_suffix(".json")
    if known.is_file():
        return json.loads(known.read_text(encoding="utf-8"))
    text = text_of(arm, bits, options.iterations)
    for row in options.known:
        if [row[key] for key in ("bits", "method", "seed")] == [bits, text, seed]:
            return row
    common.progress(f"{bits}: {arm}, seed {seed}")
    ran = common.run_job(
        "quantize",
        model=network.model,
        data=network.calibration,
        output=output,
        preprocess=network.preprocess,
        bits=bits,
        method=text,
        seed=seed,
        second_input_8=options.second_input_8,
        samples=options.calibration_images,
        report_samples=0,
    )
    row: Row = {"bits": bits, "arm": arm, "seed": seed, "method": text}
    row["machine"] = common.machine_facts()["slug"]
    row |= {"seconds": ran.answer["call_wall_s"], "cpu_s": ran.answer["call_cpu_s"]}
    row |= {"peak_rss_mb": ran.answer["peak_rss_mb"], "bytes": output.stat().st_size}
    row |= {"steps": ran.answer["steps"]} | accuracy.evaluated(output, network, "integer")
    known.write_text(json.dumps(row, default=str), encoding="utf-8")
    return row


def summary(rows: Sequence[Row], plain: Row) -> list[Row]:
    """Means over seeds, and how far each arm is from QDrop, with an interval for several seeds."""
    found: list[Row] = []
    for bits, arm in dict.fromkeys((row["bits"], row["arm"]) for row in rows):
        ours = _of(rows, bits, arm)
        top1 = [100 * row["top1"] for row in ours]
        line: Row = {"bits": bits, "arm": arm, "seeds": len(ours), "top-1 %": _mean(top1)}
        line["lost"] = 100 * plain["top1"] - _mean(top1)
        base = [100 * row["top1"] for row in _of(rows, bits, BASE)]
        if base and arm in LEARNED and arm != BASE:
            line |= difference(top1, base)
        for title, key in (
            ("KL", "kl"),
            ("SQNR dB", "sqnr_db"),
            ("s", "seconds"),
            ("CPU s", "cpu_s"),
        ):
            line[title] = _mean([row[key] for row in ours])
        line["MB of memory"] = max(row["peak_rss_mb"] for row in ours)
        found.append(line)
    return found


def difference(ours: Sequence[float], base: Sequence[float]) -> Row:
    """Difference of means, with Welch's interval where both have several seeds."""
    row: Row = {"to qdrop": _mean(ours) - _mean(base)}
    if min(len(ours), len(base)) > 1:
        test = stats.ttest_ind(ours, base, equal_var=False)
        low, high = test.confidence_interval(CONFIDENCE)  # pyright: ignore[reportAttributeAccessIssue]
        row["95 %"] = f"{low:+.2f} to {high:+.2f}"
        row["interval"] = [float(low), float(high)]
    return row


def verdicts(lines: Sequence[Row]) -> list[Row]:
    """The targets and whether they are met."""
    found: list[Row] = []
    for line in lines:
        bits, arm = line["bits"], line["arm"]
        if arm == "best" and bits in LOST:
            most, lost = LOST[bits], line["lost"]
            found.append(_verdict(f"{bits}: best loses <= {most}", lost, lost <= most))
            if bits == "w2a2":
                found.append(
                    _verdict(f"{bits}: best takes <= {SECONDS} s", line["s"], line["s"] <= SECONDS)
                )
        if bits == "w2a2" and arm in GAINS and "to qdrop" in line:
            gain = line["to qdrop"]
            found.append(
                _verdict(f"{bits}: {arm} over qdrop >= {GAINS[arm]}", gain, gain >= GAINS[arm])
            )
    return found


def _verdict(target: str, number: float, met: bool) -> Row:
    return {"target": target, "found": number, "met": met}


def _of(rows: Sequence[Row], bits: str, arm: str) -> list[Row]:
    return [row for row in rows if row["bits"] == bits and row["arm"] == arm]


def _rows(file: str) -> list[Row]:
    return json.loads(Path(file).read_text(encoding="utf-8"))["results"]["rows"]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def parser_of(
    description: str | None, name: str, arms: Sequence[str] = tuple(ARMS)
) -> argparse.ArgumentParser:
    """What is asked of this benchmark, and of others that make files by some of its arms."""
    parser = common.parser(description, name)
    parser.add_argument("--bits", nargs="+", default=list(LOST))
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="at w2a2; else the first")
    parser.add_argument("--iterations", type=int, default=2000, help="of each block")
    parser.add_argument("--calibration-images", type=int, default=1024)
    parser.add_argument(
        "--known", type=_rows, default=[], help="a result file whose rows are taken as they are"
    )
    parser.add_argument("--second-input-8", action="store_true", help="BRECQ's convention")
    return parser


def rows_of(network: Network, options: argparse.Namespace) -> list[Row]:
    """All files asked for: several seeds only at `SEVERAL`, of arms that draw at random."""
    return [
        made(network, arm, bits, seed, options)
        for seed in options.seeds
        for bits in options.bits
        for arm in options.arms
        if seed == options.seeds[0] or (arm in LEARNED and bits == SEVERAL)
    ]


def main() -> None:
    options = parser_of(__doc__, "lowbit").parse_args()
    Path(options.work).mkdir(parents=True, exist_ok=True)
    options.cifar_images = options.calibration_images
    network = resnet20(options)
    plain = accuracy.evaluated(network.model, network)
    rows = rows_of(network, options)
    lines = summary(rows, plain)
    common.show(f"ResNet-20, float {100 * plain['top1']:.2f} %", lines)
    targets = verdicts(lines)
    common.show("targets", targets)
    results = {"float": plain, "rows": rows, "summary": lines, "targets": targets}
    common.write_results(f"lowbit-{options.iterations}", results, options.out)


if __name__ == "__main__":
    main()

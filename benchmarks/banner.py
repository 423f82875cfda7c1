"""The ablation of Banner et al. 2019: what clipping, bit allocation and bias correction each gain.

Twice: as the paper has it, simulated with a grid for every channel of activations, and in the files
that are written, whose activations have one grid a tensor. First and last layers have 8 bits.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from benchmarks import common, simulation
from benchmarks.common import Row
from benchmarks.real_models import Network, efficientnet, resnet20
from benchmarks.simulation import Arm
from onnxptq import ort, passes
from onnxptq.calibrate.progress import Silent
from onnxptq.calibrate.source import Data
from onnxptq.graph import io
from onnxptq.pipeline import quantize
from onnxptq.report.evaluate import Pair, evaluate
from onnxptq.report.inputs import DataOptions, open_for
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place

WIDTHS = ("w8a4", "w4a8", "w4a4", "w3a3")
FORMS = ("simulated", "deployed")
PAPER = {
    "ACIQ": 3.2,
    "bias correction": 6.0,
    "allocation of weights": 6.3,
    "allocation of activations": 2.85,
}
"""Average gains in points that the paper names (arXiv:1810.05723, introduction)."""
COUNTED = (3.0, 60.0)
"""Points that the naive arm must lose for a width to count: less is noise, more is ruin."""
BATCH = 25
RECOVERED = 0.85
"""Share of the loss at W4A4 that all parts together should win back."""

TOGETHER = Arm(allocate_activations=True, allocate_weights=True, correct_bias=True)
SIMULATED = {
    "naive": Arm(),
    "ACIQ": Arm(aciq=True),
    "ACIQ, best": Arm(best=True),
    "allocation of activations": Arm(allocate_activations=True),
    "allocation of weights": Arm(allocate_weights=True),
    "bias correction": Arm(correct_bias=True),
    "all": replace(TOGETHER, aciq=True),
    "all, best": replace(TOGETHER, best=True),
}
DEPLOYED = {
    "naive": "minmax,weights-minmax",
    "ACIQ": "aciq,weights-minmax",
    "ACIQ by channel": "aciq{per_channel=true},weights-minmax",
    "search of weight scales": "minmax,weights-mse",
    "allocation of weights": "minmax,allocate-bits",
    "bias correction": "minmax,weights-minmax,bias-correction",
    "bias correction, weights": "minmax,weights-minmax,bias-correction{kind=weights}",
    "bias correction, both": "minmax,weights-minmax,bias-correction{kind=weights},bias-correction",
    "all": "aciq,allocate-bits,bias-correction{kind=weights},bias-correction",
}
OF_ACTIVATIONS = ("ACIQ", "ACIQ, best", "ACIQ by channel", "allocation of activations")
OF_WEIGHTS = (
    "search of weight scales",
    "allocation of weights",
    "bias correction, weights",
)


def changes(arm: str, bits: str) -> bool:
    """Whether an arm differs from the naive one at these widths."""
    weights, _, activations = bits.removeprefix("w").partition("a")
    if arm in OF_ACTIVATIONS:
        return int(activations) < 8
    return int(weights) < 8 or arm not in OF_WEIGHTS


def measure(network: Network, options: argparse.Namespace) -> Row:
    """Top-1 of all arms at all widths of one network."""
    prepared = passes.prepare(io.load(network.model)).model
    ports = ort.inputs(prepared)
    reading = DataOptions(network.preprocess)
    calibration = open_for(prepared, ports, network.calibration, reading)
    test = open_for(prepared, ports, network.evaluation, reading)
    plain = top1(prepared, test)
    rows: list[Row] = []
    for bits in options.bits:
        found: list[Row] = []
        if "simulated" in options.forms:
            found += simulated(network, prepared, (calibration, test), bits)
        if "deployed" in options.forms:
            stats = options.work / f"{network.name}.banner.stats.npz"
            found += deployed(network, test, bits, stats)
        rows += with_gains(found, plain)
        common.show(f"{network.name} {bits}, float {plain:.2f} %", rows[-len(found) :])
    return {"float": plain, "rows": rows}


def simulated(
    network: Network, prepared: ir.Model, data: tuple[Data, Data], bits: str
) -> list[Row]:
    """The arms as the paper has them."""
    recipe = place(prepared, Placing(bits=bits))
    measured = simulation.measure(prepared, recipe, data[0])
    rows: list[Row] = []
    for arm, switches in SIMULATED.items():
        if changes(arm, bits):
            common.progress(f"{network.name} {bits}: simulated, {arm}")
            grids = simulation.activation_grids(prepared, recipe, measured, data[0], switches)
            made = simulation.simulated(prepared, recipe, grids, switches)
            rows.append({"bits": bits, "as": "simulated", "arm": arm, "top1": top1(made, data[1])})
    return rows


def deployed(network: Network, test: Data, bits: str, stats: Path) -> list[Row]:
    """The arms as files; one calibration serves all of them."""
    rows: list[Row] = []
    for arm, method in DEPLOYED.items():
        if not changes(arm, bits):
            continue
        common.progress(f"{network.name} {bits}: deployed, {arm}")
        made = quantize(
            network.model,
            str(network.calibration),
            bits=bits,
            method=method,
            preprocess=network.preprocess,
            stats=stats,
            report_samples=0,
        )
        row: Row = {"bits": bits, "as": "deployed", "arm": arm, "top1": top1(made.model, test)}
        row |= {"seconds": made.report.seconds, "bytes": made.report.bytes_quantized}
        for step in made.recipe.steps:
            row |= {name: n for name, n in step.numbers.items() if name != "tensors"}
        rows.append(row)
    return rows


def top1(model: ir.Model, data: Data) -> float:
    """Top-1 accuracy in percent."""
    found = evaluate(Pair(ort.session(model)), data, BATCH, Silent()).top1
    assert found is not None
    return 100 * found


def with_gains(rows: list[Row], plain: float) -> list[Row]:
    """The rows with points over the naive arm, and the share of its loss that is won back."""
    naive = {row["as"]: row["top1"] for row in rows if row["arm"] == "naive"}
    for row in rows:
        lost = plain - naive[row["as"]]
        row["gain"] = row["top1"] - naive[row["as"]]
        row["recovered"] = row["gain"] / lost if lost > 0 else None
        row["counted"] = COUNTED[0] <= lost <= COUNTED[1]
    return rows


def summary(results: dict[str, Row]) -> list[Row]:
    """Average gain of each arm over the networks and widths that count, beside the paper's."""
    rows = [row for result in results.values() for row in result["rows"]]
    table: list[Row] = []
    for arm in dict.fromkeys([*SIMULATED, *DEPLOYED]):
        line: Row = {"arm": arm, "paper": PAPER.get(arm)}
        for kind in ("simulated", "deployed"):
            gains = [
                row["gain"]
                for row in rows
                if row["arm"] == arm and row["as"] == kind and row["counted"]
            ]
            line[kind] = sum(gains) / len(gains) if gains else None
            line[f"{kind}, cases"] = len(gains)
        if arm != "naive":
            table.append(line)
    return table


def verdicts(results: dict[str, Row]) -> list[Row]:
    """Whether all parts together win back enough at W4A4."""
    table: list[Row] = []
    for name, result in results.items():
        for row in result["rows"]:
            everything = row["bits"] == "w4a4" and row["arm"] in ("all", "all, best")
            if everything and row["recovered"] is not None:
                target = (
                    f"{name}, {row['as']}, {row['arm']}: loss recovered at W4A4 >= {RECOVERED:.0%}"
                )
                found = row["recovered"]
                table.append({"target": target, "found": found, "met": found >= RECOVERED})
    return table


def main() -> None:
    parser = common.parser(__doc__, "banner")
    parser.add_argument("--images", type=int, default=128, help="ImageNet calibration images")
    parser.add_argument("--cifar-images", type=int, default=128, help="CIFAR calibration images")
    parser.add_argument("--bits", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
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
    gains, targets = summary(results), verdicts(results)
    common.show("gain in points, averaged where the naive arm loses 3 to 60", gains)
    common.show("targets", targets)
    parts = ["banner", *[part for part in (options.only,) if part is not None]]
    parts += options.forms if tuple(options.forms) != FORMS else []
    name = "-".join(parts)
    common.write_results(name, {**results, "gains": gains, "targets": targets}, options.out)


if __name__ == "__main__":
    main()

"""Mixed widths of weights against equal ones, at the same bytes of the file.

    python -m benchmarks.mixed_precision [--only resnet20 --forms local --roundings nearest]

The budget is the file of equal 4-bit or 3-bit weights. Widths are chosen once, with activations of
8 bits, and used with those of 4 bits too. Then the rank correlation (Spearman) of what each form
calls the harm of a layer with what it costs on evaluation images to narrow only that layer.

Mixed widths also have zero points adjusted, as in Chen 2023; clipping and rounding are the same.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from scipy import stats

from benchmarks import common
from benchmarks.common import Row
from benchmarks.real_models import Network, efficientnet, resnet20
from onnxptq import quantize
from onnxptq.calibrate.progress import Silent
from onnxptq.methods.weights import WeightsMse, channel_rows
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.report.evaluate import evaluate_file
from onnxptq.report.inputs import DataOptions

FORMS = {
    "A local": "form=local",
    "A local, probed": "form=local,omega=probe",
    "B terminal": "form=terminal",
    "C greedy": "form=greedy",
}
ROUNDINGS = {"nearest": "mse,{}weights-mse", "gptq": "mse,{}weights-mse,gptq"}
ADJUSTED = {"nearest": "mse,{}weights-mse,zero-point", "gptq": "mse,{}weights-mse,zero-point,gptq"}
"""The same with zero points, for mixed widths."""
NETWORKS = {"resnet20": resnet20, "efficientnet_lite0": efficientnet}
PROBE = 3
"""Bits at which single layers are narrowed."""
GOAL = 1.7
"""Points of top-1 over equal widths, where those lose 3 to 30."""


class Bench:
    """One network with its options."""

    def __init__(self, network: Network, options: argparse.Namespace) -> None:
        self.network, self.options = network, options
        self.file = options.work / f"{network.name}.mixed.onnx"

    def made(self, method: str, bits: str, **options: Any) -> tuple[Recipe, Row]:
        """Quantize and measure."""
        network = self.network
        result = quantize(
            network.model,
            str(network.calibration),
            bits=bits,
            method=method,
            preprocess=network.preprocess,
            report_samples=0,
            jobs=2,
            **options,
        )
        result.save(self.file)
        row = {
            "bytes": self.file.stat().st_size,
            "average bits": result.report.average_weight_bits,
            "seconds": result.report.seconds,
            **self.quality(self.file, self.options.images),
        }
        return result.recipe, row

    def quality(self, path: Path, samples: int | None) -> Row:
        """Accuracy, and distance from the float network."""
        network = self.network
        options = DataOptions(network.preprocess, samples, 50)
        found = evaluate_file(path, str(network.evaluation), network.model, options, Silent())
        return {key: value for key, value in asdict(found).items() if key != "top5"}

    def rows(self) -> list[Row]:
        """Equal and mixed widths for each rounding and budget."""
        base = self.quality(self.network.model, self.options.images)["top1"]
        found: list[Row] = []
        for rounding in self.options.roundings:
            for bits in self.options.bits:
                common.progress(f"{self.network.name}: {rounding}, {bits} bits")
                found += self.budget(rounding, bits)
        for row in found:
            row["lost"] = 100 * (base - row["top1"])
        return found

    def budget(self, rounding: str, bits: int) -> list[Row]:
        """One budget: equal widths, then each form, with wide and with narrow activations."""
        plain, adjusted = (methods[rounding].format("") for methods in (ROUNDINGS, ADJUSTED))
        equal: dict[int, Row] = {}
        found: list[Row] = []
        for wide in self.options.activations:
            _, row = self.made(plain, f"w{bits}a{wide}")
            equal[wide] = self._named(rounding, bits, wide, "equal") | row
            found.append(equal[wide])
        for form in self.options.forms:
            common.progress(f"{self.network.name}: {rounding}, {bits} bits, {form}")
            method = ADJUSTED[rounding].format(f"ofm-similarity{{{FORMS[form]}}},")
            most = {"max_bytes": equal[self.options.activations[0]]["bytes"]}
            pareto = self.pareto(form, rounding)
            recipe, row = self.made(method, "w8a8", pareto=pareto, **most)
            for wide in self.options.activations:
                named = [f"{t.value}=w{t.params.spec.bits}" for t in recipe.weights()]
                if wide != 8:
                    _, row = self.made(adjusted, f"w8a{wide}", layer_bits=named)
                gain = 100 * (row["top1"] - equal[wide]["top1"])
                widths = {t.value: t.params.spec.bits for t in recipe.weights()}
                extra = {"gain": gain, "more bytes": row["bytes"] - equal[wide]["bytes"]}
                name = self._named(rounding, bits, wide, form)
                found.append(name | row | extra | {"widths": widths})
                common.progress(f"{form}, a{wide}: {gain:+.2f} points")
        return found

    def _named(self, rounding: str, bits: int, wide: int, form: str) -> Row:
        return {"rounding": rounding, "budget": f"w{bits}", "a": wide, "widths of": form}

    def pareto(self, form: str, rounding: str) -> Path:
        """The file of a form's harms."""
        return self.options.work / f"{self.network.name}.{form}.{rounding}.json"

    def correlations(self) -> list[Row]:
        """Of the forms' harms with what single layers cost, to nearest."""
        files = {form: self.pareto(form, "nearest") for form in self.options.forms}
        harms = {
            form: json.loads(path.read_text())["harm"]
            for form, path in files.items()
            if path.is_file()
        }
        harms = {form: harm for form, harm in harms.items() if harm}
        if not harms:
            return []
        names = sorted(next(iter(harms.values())))
        measured = [self.single(name) for name in names]
        return [
            {
                "widths of": form,
                **{
                    f"with {loss}": spearman(
                        [harm[name][str(PROBE)] for name in names], [row[loss] for row in measured]
                    )
                    for loss in ("kl", "lost")
                },
            }
            for form, harm in harms.items()
        ]

    def single(self, weight: str) -> Row:
        """What it costs to narrow one weight of the float network."""
        common.progress(f"{self.network.name}: only {weight}")
        proto = onnx.load(str(self.network.model))
        tensor = next(t for t in proto.graph.initializer if t.name == weight)
        array = numpy_helper.to_array(tensor)
        axis = 0 if array.ndim == 4 else array.ndim - 1
        spec = QuantSpec(PROBE, signed=True, axis=axis)
        scale, code_lo = WeightsMse().fit(channel_rows(array, axis), spec)
        params = QParams(spec, scale, 0 * code_lo, code_lo)
        tensor.CopyFrom(numpy_helper.from_array(params.round_trip(array), weight))
        path = self.options.work / f"{self.network.name}.single.onnx"
        onnx.save(proto, str(path))
        found = self.quality(path, self.options.single_images)
        return {"kl": found["kl"], "lost": -found["top1"]}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    found: Any = stats.spearmanr(first, second)
    return float(found.statistic)


def measure(network: Network, options: argparse.Namespace) -> Row:
    """Everything about one network."""
    bench = Bench(network, options)
    rows = bench.rows()
    shown = [
        {k: v for k, v in row.items() if k not in ("widths", "n", "agreement")} for row in rows
    ]
    common.show(network.name, shown)
    correlations = bench.correlations() if options.correlate else []
    common.show(f"{network.name}, rank correlation at {PROBE} bits", correlations)
    return {"rows": rows, "rank correlations": correlations}


def verdicts(results: dict[str, Row]) -> list[Row]:
    """The goal, for each budget at which equal widths lose 3 to 30 points."""
    found: list[Row] = []
    for name, result in results.items():
        equal: dict[tuple[str, str, int], Row] = {}
        for row in result["rows"]:
            key = (row["rounding"], row["budget"], row["a"])
            if row["widths of"] == "equal":
                equal[key] = row
            elif 3 <= equal[key]["lost"] <= 30:
                target = f"{name} {row['budget']}a{row['a']} {row['rounding']}, {row['widths of']}"
                met = row["gain"] >= GOAL
                found.append(
                    {"target": f"{target}: gain >= {GOAL}", "found": row["gain"], "met": met}
                )
    return found


def parse() -> argparse.Namespace:
    """What is asked for."""
    parser = common.parser(__doc__, "mixed_precision")
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--roundings", nargs="+", choices=ROUNDINGS, default=list(ROUNDINGS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3], help="of equal weights")
    parser.add_argument("--activations", nargs="+", type=int, default=[8, 4], help="bits")
    parser.add_argument("--cifar-images", type=int, default=128, help="calibration images")
    parser.add_argument("--imagenet-images", type=int, default=128, help="calibration images")
    parser.add_argument("--images", type=int, default=None, help="evaluation images; all")
    parser.add_argument("--single-images", type=int, default=None, help="for single layers; all")
    parser.add_argument("--correlate", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = {name: make for name, make in NETWORKS.items() if options.only in (None, name)}

    def one(name: str) -> Row:
        images = options.cifar_images if name == "resnet20" else options.imagenet_images
        network = wanted[name](
            argparse.Namespace(work=options.work, images=images, cifar_images=images)
        )
        return measure(network, options)

    results = common.each({name: lambda name=name: one(name) for name in wanted})
    targets = verdicts(results)
    common.show("targets", targets)
    name = "mixed_precision" if options.only is None else f"mixed_precision-{options.only}"
    common.write_results(name, {**results, "targets": targets}, options.out)


if __name__ == "__main__":
    main()

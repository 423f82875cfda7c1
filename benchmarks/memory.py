"""Peak memory of `quantize`: with many calibration images it must be that with few.

Each run is a process of its own, without the comparison of layers, which may need more than the
calibration that is meant. Images are 224x224; they come from an .npz of uint8 pixels
("pixels"), an .npz that is ready to feed ("feeds"), and a folder of JPEG files ("folder").
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks import common
from benchmarks.common import Row

SIDE = 224
TARGET = 1.1
NETWORK = "efficientnet_lite0"
PREPROCESS = "mean=127,std=128,layout=NCHW"
SOURCES = ("pixels", "feeds", "folder")
METHODS = ("minmax", "percentile", "mse")


def pictures(count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Random images [224, 224, 3], smooth ones with some noise, the same for every call."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noise = rng.normal(scale=8, size=(SIDE, SIDE, 3))
        yield np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def make_data(source: str, count: int, work: Path) -> Path:
    """A file or folder with `count` images; each count has its own, so that none is read in part.

    Not `--samples`: a reader that loads whole files would then need as much for few as for many.
    """
    path = work / f"{source}{count}"
    if source == "folder":
        path.mkdir(exist_ok=True)
        if len(list(path.iterdir())) != count:
            for index, picture in enumerate(pictures(count)):
                Image.fromarray(picture).save(path / f"{index:04}.jpg", quality=92)
        return path
    path = path.with_suffix(".npz")
    if not path.is_file():
        pixels = np.stack(list(pictures(count)))
        if source == "pixels":
            np.savez(path, x=pixels)
        else:
            ready = (pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
            np.savez(path, input=ready)
    return path


def measure(work: Path, counts: list[int], runs: list[str]) -> list[Row]:
    """One row per source and method."""
    model = common.model(NETWORK, work)
    folder = work / "memory"
    folder.mkdir(exist_ok=True)
    rows: list[Row] = []
    for run in runs:
        source, _, method = run.partition(":")
        row: Row = {"data": source, "method": method}
        peaks: list[float] = []
        for count in counts:
            data = make_data(source, count, folder)
            common.progress(f"{method} on {count} images, {source}")
            ran = common.run_job(
                "quantize",
                model=model,
                data=data,
                output=folder / "quantized.onnx",
                preprocess=PREPROCESS,
                method=method,
                report_samples=0,
            )
            peaks.append(ran.answer["peak_rss_mb"])
            row[f"MB, {count} images"] = peaks[-1]
            row[f"s, {count} images"] = ran.wall_s
        rows.append(row | {"ratio": peaks[-1] / peaks[0], "met": peaks[-1] <= TARGET * peaks[0]})
    return rows


def main() -> None:
    parser = common.parser(__doc__, "memory")
    parser.add_argument(
        "--counts", type=int, nargs=2, default=[32, 512], help="few and many images"
    )
    every = [f"{source}:{method}" for source in SOURCES for method in METHODS]
    parser.add_argument(
        "--runs", nargs="+", metavar="SOURCE:METHOD", choices=every, default=every, help="which"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    done = common.each({NETWORK: lambda: measure(options.work, options.counts, options.runs)})
    rows = done[NETWORK]
    common.show(f"peak memory of quantize, {NETWORK}, at most {TARGET}x", rows)
    common.write_results("memory", {"target": TARGET, "rows": rows}, options.out)


if __name__ == "__main__":
    main()

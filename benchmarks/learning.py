"""How long an iteration of all blocks takes that learn by gradients, and in how large parts.

`qdrop` at W4A4 with few iterations and with more, so that what is done once a block drops out. Next
to the size of parts that the product has, all samples of an iteration at once. Runs in turns, in
one process; medians.
"""

import argparse
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np

from benchmarks import common
from benchmarks.common import Row
from benchmarks.real_models import Network, efficientnet, resnet20
from onnxptq.methods.reconstruction import objective
from onnxptq.pipeline import quantize

NETWORKS = {"resnet20": resnet20, "efficientnet_lite0": efficientnet}
PARTS = {"as it is": objective.PART_BYTES, "all samples at once": 1 << 40}
BATCH = 32


@contextmanager
def parts_of(size: int) -> Generator[None]:
    """Values of at most so many bytes at a time, while it lasts."""
    before = objective.PART_BYTES
    objective.PART_BYTES = size
    try:
        yield
    finally:
        objective.PART_BYTES = before


def learning_s(network: Network, iterations: int) -> float:
    """Seconds of `qdrop`, with what it does once."""
    done = quantize(
        network.model,
        network.calibration,
        preprocess=network.preprocess,
        bits="w4a4",
        method=f"mse,weights-mse,qdrop{{iterations={iterations}}}",
        samples=2 * BATCH,
        report_samples=0,
    )
    return next(step.seconds for step in done.recipe.steps if step.method.startswith("qdrop"))


def iteration_s(network: Network, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an iteration of all blocks, for each size of parts."""
    few, many = options.iterations
    found: dict[str, list[float]] = {title: [] for title in PARTS}
    for _ in range(options.repeats):
        for title, size in PARTS.items():
            with parts_of(size):
                longer = learning_s(network, many) - learning_s(network, few)
            found[title].append(longer / (many - few))
    return {title: float(np.median(times)) for title, times in found.items()}


def main() -> None:
    parser = common.parser(__doc__, "learning")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--iterations", nargs=2, type=int, default=[2, 12], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.images, options.cifar_images = 250, 2 * BATCH
    rows: list[Row] = []
    for name in options.models:
        common.progress(name)
        times = iteration_s(NETWORKS[name](options), options)
        one, whole = times.values()
        rows.append({"model": name, **{f"{title}, s": t for title, t in times.items()}})
        rows[-1]["ratio"] = whole / one
    common.show(f"an iteration of all blocks, {BATCH} samples", rows)
    common.write_results("learning", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()

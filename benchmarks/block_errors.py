"""Where files of few bits lose what they lose: the error behind each residual sum of ResNet-20.

Files of benchmarks/lowbit.py, made unless they lie in the work folder. Of each sum, and of the
network's outputs, the squared error over the mean square of the float network, on the calibration
images, seven eighths of which were learned from, and on as many test images. "floor" is that of the
float network's own values rounded to as many levels, at the step that does best on them: with
weights and all before it in float, no choice of borders between these levels does better.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from benchmarks import common, lowbit
from benchmarks.common import Row
from benchmarks.real_models import Network, resnet20
from onnxptq import ort, passes
from onnxptq.calibrate.preprocess import Preprocess
from onnxptq.calibrate.progress import Silent
from onnxptq.graph import io
from onnxptq.report.inputs import DataOptions
from onnxptq.report.pages import measure_file
from onnxptq.rewrite.regions import CLAMPS

SHOWN = ("Add", "Gemm")
"""Operators whose outputs are compared."""
STEPS = 100


def errors(path: Path, source: Path, network: Network, images: int) -> list[float]:
    """Relative squared error behind each sum and of the outputs, in the graph's order."""
    options = DataOptions(network.preprocess, images, batch_size=64)
    found = measure_file(path, str(source), network.model, options, Silent())
    return [
        10 ** (-row.sqnr_db / 10)
        for row in found.layers
        if row.op in SHOWN and row.sqnr_db is not None
    ]


def lines_of(arm: str, network: Network, options: argparse.Namespace) -> list[Row]:
    """One line for the images learned from and one for others."""
    bits, seed = options.bits[0], options.seeds[0]
    lowbit.made(network, arm, bits, seed, options)
    path = lowbit.file_of(network, arm, bits, seed, options)
    found: list[Row] = []
    for title, source in (("calibration", network.calibration), ("test", network.evaluation)):
        of_blocks = errors(path, source, network, options.calibration_images)
        line: Row = {"arm": arm, "images": title}
        found.append(line | {str(number): error for number, error in enumerate(of_blocks, 1)})
    return found


def floors(network: Network, bits: str, images: int) -> list[float]:
    """Relative squared error of the float sums, rounded to the levels of activations."""
    model = passes.prepare(io.load(network.model)).model
    sums = [coded(node) for node in model.graph if node.op_type == SHOWN[0]]
    session = ort.session(ort.with_outputs(model, sums))
    x = np.load(network.evaluation)["x"][:images]
    feeds = {session.inputs[0].name: Preprocess.parse(network.preprocess).apply(x, "test images")}
    levels = 2 ** int(bits.partition("a")[2]) - 1
    return [floor(values.ravel(), levels) for values in session.run(feeds, sums).values()]


def coded(node: ir.Node) -> str:
    """The value that becomes codes: a sum, or what a Relu makes of it."""
    readers = [reader for reader in node.outputs[0].consumers() if reader.op_type in CLAMPS]
    return str((readers[0] if readers else node).outputs[0].name)


def floor(values: npt.NDArray[np.float32], levels: int) -> float:
    """Relative squared error of values from 0 on, rounded to multiples up to `levels` steps."""
    steps = np.linspace(0, values.max() / levels, STEPS + 1, dtype=np.float32)[1:]
    apart = (np.clip(np.rint(values / step), 0, levels) * step - values for step in steps)
    return min(float(np.square(a).mean()) for a in apart) / float(np.square(values).mean())


def main() -> None:
    parser = lowbit.parser_of(__doc__, "block_errors")
    arms = ["nearest", "adaround", "brecq", "qdrop", "aquant", "pd-quant", "best"]
    parser.set_defaults(bits=["w2a2"], arms=arms)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.cifar_images = options.calibration_images
    network = resnet20(options)
    of_floors = floors(network, options.bits[0], options.calibration_images)
    floor: Row = {"arm": "floor", "images": "test"}
    floor |= {str(number): error for number, error in enumerate(of_floors, 1)}
    lines = [floor]
    lines += [line for arm in options.arms for line in lines_of(arm, network, options)]
    common.show(f"ResNet-20 {options.bits[0]}, relative error behind each sum", lines)
    common.write_results(f"block_errors-{options.bits[0]}", {"rows": lines}, options.out)


if __name__ == "__main__":
    main()

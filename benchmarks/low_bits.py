"""Low bits on ResNet-50 with random weights: size of the files, and what onnxruntime makes of them.

Packed weights must give onnxruntime the very graph that `--storage int8` gives it; below 8 bits of
activations, every code that a convolution reads must lie in its window of codes.
"""

import argparse
import hashlib
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from benchmarks import common
from benchmarks.common import Row
from onnxptq import ort
from onnxptq.graph import io
from onnxptq.pipeline import quantize
from onnxptq.runtime.lint import lint

TARGETS = {"w2a8": 0.084, "w3a8": 0.1145, "w4a8": 0.145, "w6a8": 0.206, "w2a8 all": 0.069}
"""Of the float file; w3 and w6 lie on the line through w2 and w4. "all": no 8-bit ends."""
NETWORK = "resnet50"
Content = tuple[str, tuple[int, ...], bytes]
MOVERS = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Transpose")
LAYERS = ("Conv", "Gemm", "MatMul")


def images(work: Path, count: int, side: int) -> Path:
    """Ready-to-feed random images with some structure: smooth fields plus noise."""
    path = work / f"random{count}x{side}.npz"
    if not path.is_file():
        rng = np.random.default_rng(0)
        coarse = rng.normal(size=(count, 3, 7, 7)).astype(np.float32)
        smooth = coarse.repeat(side // 7, axis=2).repeat(side // 7, axis=3)
        noise = rng.normal(scale=0.3, size=smooth.shape).astype(np.float32)
        np.savez(path, input=smooth + noise)
    return path


def make(model: Path, data: Path, bits: str, options: argparse.Namespace) -> dict[str, Path]:
    """The packed file, and from its recipe the one with int8 codes."""
    width, _, whole = bits.partition(" ")
    stem = options.work / f"{NETWORK}-{bits.replace(' ', '-')}"
    packed, plain = stem.with_suffix(".packed.onnx"), stem.with_suffix(".int8.onnx")
    if options.reuse and packed.is_file() and plain.is_file():
        return {"packed": packed, "int8": plain}
    common.progress(f"quantizing {bits}")
    made = quantize(
        model,
        data,
        bits=width,
        method=options.method,
        keep_first_last=not whole,
        report_samples=0,
    )
    made.save(packed)
    recipe = stem.with_suffix(".json")
    recipe.write_text(made.recipe.to_json(), encoding="utf-8")
    quantize(model, recipe=recipe, storage="int8", report_samples=0).save(plain)
    return {"packed": packed, "int8": plain}


def compare(model: Path, files: dict[str, Path], feeds: dict[str, Any], bits: str) -> Row:
    """Size of the packed file, and whether it becomes what the plain one becomes."""
    common.progress(f"comparing the layouts of {bits}")
    share = files["packed"].stat().st_size / model.stat().st_size
    target = TARGETS.get(bits)
    graphs = [ort.optimized(files[layout]).graph for layout in ("packed", "int8")]
    outputs = [ort.session(files[layout]).run(feeds) for layout in ("packed", "int8")]
    found = lint(files["packed"])
    return {
        "bits": bits,
        "MB": files["packed"].stat().st_size / 1e6,
        "MB int8": files["int8"].stat().st_size / 1e6,
        "of float": share,
        "at most": target,
        "small enough": None if target is None else share <= target,
        "same nodes": nodes_of(graphs[0]) == nodes_of(graphs[1]),
        "same constants": constants_of(graphs[0]) == constants_of(graphs[1]),
        "same outputs": all(
            np.array_equal(outputs[0][name], outputs[1][name]) for name in outputs[0]
        ),
        "float nodes": len(found.float_nodes),
        "fused": found.fused,
    }


def nodes_of(graph: onnx.GraphProto) -> list[bytes]:
    """Every node with name, outputs, attributes and inputs; constants by their content.

    Of equal constants onnxruntime keeps one, and which one's name it bears is no difference.
    """
    contents = {
        tensor.name: hashlib.sha256(repr(_content(tensor)).encode()).hexdigest()
        for tensor in graph.initializer
    }
    nodes: list[bytes] = []
    for node in graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [contents.get(name, name) for name in node.input]
        nodes.append(copy.SerializeToString(deterministic=True))
    return nodes


def constants_of(graph: onnx.GraphProto) -> Counter[Content]:
    """Type, shape and bytes of all initializers, and how often each occurs."""
    return Counter(_content(tensor) for tensor in graph.initializer)


def _content(tensor: onnx.TensorProto) -> Content:
    array = numpy_helper.to_array(tensor)
    return str(array.dtype), array.shape, array.tobytes()


def load_seconds(files: dict[str, Path], rounds: int) -> dict[str, float]:
    """Median seconds to make a session of each file, in a process of their own, in turn."""
    common.progress("loading each file")
    ran = common.run_job("load_times", models=files, rounds=rounds)
    return {name: statistics.median(times) for name, times in ran.answer["seconds"].items()}


def windows(path: Path, feeds: dict[str, Any]) -> list[Row]:
    """The codes that each layer reads, and the window that the file states for them.

    The codes are tapped from the graph as onnxruntime runs it; that tapping changed nothing is seen
    by comparing the outputs.
    """
    model = io.load(path)
    read = {node: _codes_read(node) for node in model.graph if node.op_type in LAYERS}
    taps = {str(value.name) for value in read.values() if value is not None}
    plain = ort.session(model).run(feeds)
    session = ort.session(ort.with_outputs(model, sorted(taps)))
    tapped = session.run(feeds)
    unchanged = all(np.array_equal(plain[name], tapped[name]) for name in plain)
    rows: list[Row] = []
    for node, value in read.items():
        window = None if value is None else _window(value)
        codes = None if value is None else tapped[str(value.name)]
        rows.append(_layer(node, window, codes) | {"outputs unchanged by tapping": unchanged})
    return rows


def _layer(node: ir.Node, window: tuple[int, int] | None, codes: npt.NDArray[Any] | None) -> Row:
    found = None if codes is None else (int(codes.min()), int(codes.max()))
    low, high = window or (0, 255)
    return {
        "node": str(node.name),
        "window": window,
        "codes": found,
        "inside": found is not None and low <= found[0] and found[1] <= high,
    }


def _codes_read(node: ir.Node) -> ir.Value | None:
    """The codes behind a layer's first input; None where it reads real numbers."""
    value = node.inputs[0]
    dequantize = None if value is None else value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    return dequantize.inputs[0]


def _window(value: ir.Value) -> tuple[int, int] | None:
    """Bounds of the Clip on codes behind this value; None if all 256 codes may occur.

    Pools and data movers of codes bring no code that they did not get, nor do they between a
    DequantizeLinear and a QuantizeLinear of equal parameters.
    """
    producer = value.producer()
    if producer is not None and producer.op_type == "Clip":
        return _bound(producer, 1, 0), _bound(producer, 2, 255)
    if producer is not None and producer.op_type == "QuantizeLinear":
        mover = _made_by(producer, MOVERS)
        dequantize = None if mover is None else _made_by(mover, ("DequantizeLinear",))
        if dequantize is not None and _parameters(producer) == _parameters(dequantize):
            producer = dequantize
        else:
            producer = None
    elif producer is not None and producer.op_type not in MOVERS:
        producer = None
    source = None if producer is None else producer.inputs[0]
    return None if source is None else _window(source)


def _made_by(node: ir.Node, op_types: Sequence[str]) -> ir.Node | None:
    """The producer of the node's first input, if it is one of these."""
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    return producer if producer is not None and producer.op_type in op_types else None


def _parameters(node: ir.Node) -> list[bytes]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear."""
    constants = [value.const_value for value in node.inputs[1:3] if value is not None]
    return [constant.tobytes() for constant in constants if constant is not None]


def _bound(clip: ir.Node, position: int, default: int) -> int:
    value = clip.inputs[position] if position < len(clip.inputs) else None
    constant = None if value is None else value.const_value
    return default if constant is None else int(constant.numpy().item())


def window_summary(bits: str, rows: Sequence[Row], path: Path) -> Row:
    """One line about all layers of one file."""
    width = 2 ** int(bits.partition("a")[2].split()[0])
    narrow = [row for row in rows if row["window"] is not None]
    return {
        "bits": bits,
        "layers": len(rows),
        "with a window": len(narrow),
        "8-bit inputs": ", ".join(row["node"] for row in rows if row["window"] is None),
        f"window of {width} codes": all(
            row["window"][1] - row["window"][0] + 1 == width for row in narrow
        ),
        "codes inside": all(row["inside"] for row in rows),
        "whole window used by": sum(row["codes"] == row["window"] for row in narrow),
        "outputs unchanged by tapping": all(row["outputs unchanged by tapping"] for row in rows),
        "fused": lint(path).fused,
    }


def main() -> None:
    parser = common.parser(__doc__, "low_bits")
    parser.add_argument("--images", type=int, default=4, help="random calibration images")
    parser.add_argument("--side", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=3, help="times each file is loaded")
    parser.add_argument("--reuse", action="store_true", help="take files of the run before")
    parser.add_argument("--method", default=None, help="as of quantize; None for the default")
    parser.add_argument(
        "--bits",
        nargs="+",
        default=[*TARGETS, "w8a8", "w4a4", "w4a4 all"],
        help="'all' means --no-keep-first-last",
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    done = common.each({NETWORK: lambda: measure(options)})
    common.write_results("low_bits", done[NETWORK], options.out)


def measure(options: argparse.Namespace) -> Row:
    model = common.model(NETWORK, options.work)
    data = images(options.work, options.images, options.side)
    with np.load(data) as arrays:
        feeds = {"input": arrays["input"][:2]}
    files = {bits: make(model, data, bits, options) for bits in options.bits}
    rows = [compare(model, made, feeds, bits) for bits, made in files.items()]
    every = {"float": model}
    every |= {f"{b} {layout}": path for b, made in files.items() for layout, path in made.items()}
    seconds = load_seconds(every, options.rounds)
    for row in rows:
        row["load s"] = seconds[f"{row['bits']} packed"]
        row["load s int8"] = seconds[f"{row['bits']} int8"]
    common.show(f"{NETWORK}, float loads in {seconds['float']:.2f} s", rows)
    narrow = [bits for bits in options.bits if "a8" not in bits]
    layers = {bits: windows(files[bits]["packed"], feeds) for bits in narrow}
    summary = [window_summary(b, found, files[b]["packed"]) for b, found in layers.items()]
    common.show("codes that Conv and Gemm read", summary)
    return {
        "float_bytes": model.stat().st_size,
        "load_seconds": seconds,
        "files": rows,
        "windows": summary,
        "layers": layers,
    }


if __name__ == "__main__":
    main()

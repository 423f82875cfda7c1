"""What the peers' scripts share; imported inside of their environments, so onnx and numpy only.

A script is called as `python script.py REQUEST.json ANSWER.json` and answers with seconds, what was
set, the version, and either the file it wrote, the logits of its own simulator, or the error.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

LAYERS = ("Conv", "Gemm", "MatMul")
MOVERS = ("Pad", "Reshape", "Flatten", "Squeeze", "Slice", "Transpose", "MaxPool")
POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
Answer = dict[str, Any]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """One file to make: from which model and images, at which widths, with which method."""

    model: str
    calibration: str
    evaluation: str
    input: str
    weight_bits: int
    activation_bits: int
    method: str
    output: str
    logits: str
    threads: int

    @property
    def low(self) -> bool:
        """Whether anything has less than 8 bits."""
        return min(self.weight_bits, self.activation_bits) < 8

    def images(self) -> Array:
        """The calibration images, ready to feed."""
        return np.load(self.calibration)[self.input]

    def feeds(self, batch_size: int = 1, count: int | None = None) -> Iterator[dict[str, Array]]:
        """The first `count` calibration images in batches."""
        images = self.images()[:count]
        for start in range(0, len(images), batch_size):
            yield {self.input: images[start : start + batch_size]}

    def beside(self, suffix: str) -> str:
        """A path for a file on the way to the output."""
        return str(Path(self.output).with_suffix(suffix))


@dataclass(frozen=True)
class Edges:
    """What has 8 bits at every width, as in onnxptq's files.

    Attributes:
        weights: Those of the first and of the last layer.
        activations: The network's input and output, the last layer's input, and all that no layer
            reads, such as the addends of a residual sum.
    """

    weights: frozenset[str]
    activations: frozenset[str]


def edges(model: onnx.ModelProto) -> Edges:
    """Read from a float model whose batch norms are folded."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in LAYERS and node.input[1] in constants]
    made_by = {name: node for node in graph.node for name in node.output}
    read = [_behind(layer.input[0], made_by) for layer in layers[:-1]]
    network_inputs = {value.name for value in graph.input}
    low = {name for chain in read if chain[-1] not in network_inputs for name in chain}
    for node in graph.node:
        if node.op_type in MOVERS and node.input[0] in low:
            low.update(node.output)
    every = network_inputs | {name for node in graph.node for name in node.output if name}
    weights = frozenset(layer.input[1] for layer in (layers[0], layers[-1]))
    return Edges(weights, frozenset(every - low - constants))


def _behind(name: str, made_by: Mapping[str, onnx.NodeProto]) -> list[str]:
    """A value and those that it was moved from."""
    chain = [name]
    while chain[-1] in made_by and made_by[chain[-1]].op_type in MOVERS:
        chain.append(made_by[chain[-1]].input[0])
    return chain


def preprocessed(request: Request) -> str:
    """onnxruntime's `quant_pre_process`, which folds the batch norms."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415 - not all have it

    prepared = request.beside(".prepared.onnx")
    quant_pre_process(request.model, prepared, skip_symbolic_shape=True)
    return prepared


def main(package: str, quantize: Callable[[Request], str]) -> None:
    """Answer a request with a function that quantizes and says what it has set."""
    request = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    answer: Answer = {"version": metadata.version(package)}
    started, cpu = time.perf_counter(), time.process_time()
    try:
        answer["settings"] = quantize(request)
    except Exception as error:  # whatever a peer raises is its answer
        answer["error"] = f"{type(error).__name__}: {error}"
    answer["seconds"] = time.perf_counter() - started
    answer["cpu_seconds"] = time.process_time() - cpu
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")

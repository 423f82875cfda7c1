"""Small float networks from a description: a list of blocks, each of a few numbers.

Every description is a network: sizes that do not fit the image are cut to it. So hypothesis can
draw and shrink blocks one by one (`tests.strategies`), and tests can write them down.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Pair = tuple[int, int]
OPSET = 21


@dataclass(frozen=True, slots=True)
class Image:
    """A value [N, channels, height, width] of the network."""

    name: str
    channels: int
    height: int
    width: int


@dataclass
class Graph:
    """Nodes and weights of a network under construction."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    weights: list[onnx.TensorProto] = field(default_factory=list[onnx.TensorProto])

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its first output, others end in _1, _2, ..."""
        name = f"{op.lower()}_{len(self.nodes)}"
        made = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), made, f"{name}_node", **attributes))
        return name

    def constant(self, array: npt.ArrayLike) -> str:
        """Add an initializer."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        """Random weights whose channels differ in size, as those of trained networks do."""
        fan_in = max(1, math.prod(shape[1:]))
        sizes = np.exp2(self.rng.uniform(-2, 1, (shape[0], *[1] * (len(shape) - 1))))
        array = self.rng.normal(size=shape) * sizes * np.sqrt(2 / fan_in)
        return self.constant(array.astype(np.float32))

    def bias(self, channels: int) -> str:
        """Random biases."""
        return self.constant(self.rng.normal(scale=0.3, size=channels).astype(np.float32))

    def activation(self, name: str, x: str) -> str:
        """An elementwise function; `ACTIVATIONS` has their names."""
        if name == "none":
            return x
        if name == "Relu6":
            limits = (np.float32(0), np.float32(6))
            return self.node("Clip", x, *(self.constant(limit) for limit in limits))
        if name == "Swish":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if name == "Exp":
            return self.node("Exp", self.node("Tanh", x))
        return self.node(name, x)


ACTIVATIONS = (
    "none", "Relu", "Relu6", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Swish",
    "Gelu", "Elu", "Exp",
)  # fmt: skip


class Block(Protocol):
    """Adds a few nodes behind an image."""

    def add(self, graph: Graph, x: Image) -> Image:
        """The image behind the block."""
        ...


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution and an activation; `groups` is "one", "two" or "each" (depthwise)."""

    channels: int = 4
    kernel: Pair = (3, 3)
    strides: Pair = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilations: Pair = (1, 1)
    groups: str = "one"
    bias: bool = True
    then: str = "Relu"

    def add(self, graph: Graph, x: Image) -> Image:
        groups = {"one": 1, "two": 2 - x.channels % 2, "each": x.channels}[self.groups]
        channels = math.ceil(self.channels / groups) * groups
        (kernel_h, height), (kernel_w, width) = (
            self._side(axis, side) for axis, side in enumerate((x.height, x.width))
        )
        inputs = [x.name, graph.weight(channels, x.channels // groups, kernel_h, kernel_w)]
        if self.bias:
            inputs.append(graph.bias(channels))
        made = graph.node(
            "Conv", *inputs, strides=self.strides, pads=self.pads, dilations=self.dilations,
            group=groups,
        )  # fmt: skip
        return Image(graph.activation(self.then, made), channels, height, width)

    def _side(self, axis: int, side: int) -> Pair:
        """Kernel that fits, and size of the output."""
        padded = side + self.pads[axis] + self.pads[axis + 2]
        kernel = min(self.kernel[axis], (padded - 1) // self.dilations[axis] + 1)
        reach = self.dilations[axis] * (kernel - 1) + 1
        return kernel, (padded - reach) // self.strides[axis] + 1


def _point(channels: int, then: str) -> Conv:
    """A 1x1 convolution."""
    return Conv(channels, (1, 1), pads=(0, 0, 0, 0), then=then)


@dataclass(frozen=True, slots=True)
class Residual:
    """x + convolution(x), or their product, and an activation."""

    op: str = "Add"
    kernel: int = 3
    then: str = "Relu"

    def add(self, graph: Graph, x: Image) -> Image:
        side, pad = self.kernel, self.kernel // 2
        conv = Conv(x.channels, (side, side), pads=(pad, pad, pad, pad), then="none")
        other = conv.add(graph, x)
        made = graph.node(self.op, other.name, x.name)
        name = graph.activation(self.then, made)
        return Image(name, x.channels, x.height, x.width)


@dataclass(frozen=True, slots=True)
class Branches:
    """x and one or two 1x1 convolutions of it, side by side in the channels."""

    channels: int = 2
    then: tuple[str, ...] = ("Relu",)

    def add(self, graph: Graph, x: Image) -> Image:
        parts = [x]
        for then in self.then:
            parts.append(_point(self.channels, then).add(graph, x))
        made = graph.node("Concat", *(part.name for part in parts), axis=1)
        return Image(made, sum(part.channels for part in parts), x.height, x.width)


@dataclass(frozen=True, slots=True)
class Excite:
    """Squeeze and excitation: channels times a gate made of their means."""

    channels: int = 2
    then: str = "Relu"
    gate: str = "Sigmoid"

    def add(self, graph: Graph, x: Image) -> Image:
        pooled = Image(graph.node("GlobalAveragePool", x.name), x.channels, 1, 1)
        small = _point(self.channels, self.then).add(graph, pooled)
        gate = _point(x.channels, self.gate).add(graph, small)
        return Image(graph.node("Mul", x.name, gate.name), x.channels, x.height, x.width)


@dataclass(frozen=True, slots=True)
class Pool:
    """MaxPool or AveragePool."""

    op: str = "MaxPool"
    kernel: Pair = (2, 2)
    strides: Pair = (2, 2)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil_mode: int = 0
    count_include_pad: int = 0

    def add(self, graph: Graph, x: Image) -> Image:
        sides = (x.height, x.width)
        kernel = [min(size, side) for size, side in zip(self.kernel, sides, strict=True)]
        pads = [min(pad, size - 1) for pad, size in zip(self.pads, kernel * 2, strict=True)]
        extra = {} if self.op == "MaxPool" else {"count_include_pad": self.count_include_pad}
        steps = [
            side + pads[axis] + pads[axis + 2] - kernel[axis] for axis, side in enumerate(sides)
        ]
        ceil_mode = int(bool(self.ceil_mode) and self._begins_inside(sides, pads, steps))
        made = graph.node(
            self.op, x.name, kernel_shape=kernel, strides=self.strides, pads=pads,
            ceil_mode=ceil_mode, **extra,
        )  # fmt: skip
        height, width = (
            (-(-step // stride) if ceil_mode else step // stride) + 1
            for step, stride in zip(steps, self.strides, strict=True)
        )
        return Image(made, x.channels, height, width)

    def _begins_inside(self, sides: Pair, pads: list[int], steps: list[int]) -> bool:
        """Whether the last window of ceil_mode begins inside of the image, on both axes.

        Where it does not, onnxruntime's shape inference and its kernel disagree about the size.
        """
        return all(
            -(-step // stride) * stride < side + pad
            for step, stride, side, pad in zip(steps, self.strides, sides, pads[:2], strict=True)
        )


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function by itself."""

    op: str = "Sigmoid"

    def add(self, graph: Graph, x: Image) -> Image:
        return Image(graph.activation(self.op, x.name), x.channels, x.height, x.width)


@dataclass(frozen=True, slots=True)
class Move:
    """Something that only moves numbers; `MOVES` has its names."""

    kind: str = "pad"
    amount: int = 1

    def add(self, graph: Graph, x: Image) -> Image:
        return MOVES[self.kind](graph, x, self.amount)


def _pad(graph: Graph, x: Image, amount: int) -> Image:
    pads = np.array([0, 0, amount, 0, 0, 0, 1, amount], np.int64)
    made = graph.node("Pad", x.name, graph.constant(pads))
    return Image(made, x.channels, x.height + amount + 1, x.width + amount)


def _slice(graph: Graph, x: Image, amount: int) -> Image:
    start, height = min(amount, x.height - 1), -(-x.width // 2)
    bounds = ([start, 0], [x.height, x.width], [2, 3], [1, 2])
    made = graph.node("Slice", x.name, *(graph.constant(np.array(b, np.int64)) for b in bounds))
    return Image(made, x.channels, x.height - start, height)


def _transpose(graph: Graph, x: Image, amount: int) -> Image:
    del amount
    return Image(graph.node("Transpose", x.name, perm=[0, 1, 3, 2]), x.channels, x.width, x.height)


def _resize(graph: Graph, x: Image, amount: int) -> Image:
    scales = graph.constant(np.array([1, 1, amount, 2], np.float32))
    made = graph.node(
        "Resize", x.name, "", scales, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    return Image(made, x.channels, x.height * amount, x.width * 2)


def _swap_halves(graph: Graph, x: Image, amount: int) -> Image:
    """Split and Concat the other way round."""
    del amount
    if x.channels < 2:
        return x
    sizes = graph.constant(np.array([1, x.channels - 1], np.int64))
    first = graph.node("Split", x.name, sizes, outputs=2, axis=1)
    made = graph.node("Concat", f"{first}_1", first, axis=1)
    return Image(made, x.channels, x.height, x.width)


def _reshape(graph: Graph, x: Image, amount: int) -> Image:
    """Height and width in one."""
    del amount
    shape = graph.constant(np.array([0, x.channels, 1, -1], np.int64))
    return Image(graph.node("Reshape", x.name, shape), x.channels, 1, x.height * x.width)


MOVES = {
    "pad": _pad,
    "slice": _slice,
    "transpose": _transpose,
    "resize": _resize,
    "swap": _swap_halves,
    "reshape": _reshape,
}


@dataclass(frozen=True, slots=True)
class Net:
    """A network, and how it is quantized.

    Attributes:
        blocks: One behind the other.
        shape: Channels, height and width of the input.
        head: "none", "pooled" (means), "gemm", "matmul" (with bias), "relu" (a Gemm and a Relu,
            whose result is quantized) or "softmax".
        classes: Of the head.
        tapped: The position of a block whose result is an output too; None for one output.
        free_batch: Whether the batch size is free.
        bits: Of all layers.
        layer_bits: Position of a convolution, its bits; cut to the convolutions that there are.
        per_channel: Granularity of weights.
        symmetric: Weights without zero points.
        keep_first_last: 8 bits at both ends.
        seed: Of weights and calibration data.
    """

    blocks: tuple[Block, ...] = (Conv(),)
    shape: tuple[int, int, int] = (3, 6, 5)
    head: str = "gemm"
    classes: int = 3
    tapped: int | None = None
    free_batch: bool = False
    bits: str = "w8a8"
    layer_bits: tuple[tuple[int, str], ...] = ()
    per_channel: bool = True
    symmetric: bool = True
    keep_first_last: bool = False
    seed: int = 0

    SAMPLES: ClassVar[int] = 4

    def options(self, model: onnx.ModelProto) -> dict[str, Any]:
        """Options of `quantize`."""
        layers = [node.name for node in model.graph.node if node.op_type == "Conv"]
        chosen = {layers[at % len(layers)]: bits for at, bits in self.layer_bits if layers}
        weights = "weights-minmax" if self.symmetric else "weights-asymmetric"
        return {
            "bits": self.bits,
            "layer_bits": tuple(f"{name}={bits}" for name, bits in chosen.items()),
            "method": f"minmax,{weights}",
            "per_channel": self.per_channel,
            "keep_first_last": self.keep_first_last,
            "report_samples": 0,
            "jobs": 1,
        }

    def images(self) -> npt.NDArray[np.float32]:
        """Calibration data."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.normal(size=(self.SAMPLES, *self.shape)).astype(np.float32)

    def model(self) -> onnx.ModelProto:
        """The float network."""
        graph = Graph(np.random.default_rng(self.seed))
        x, outputs = Image("x", *self.shape), list[str]()
        for position, block in enumerate(self.blocks):
            x = block.add(graph, x)
            if self.tapped is not None and position == self.tapped % len(self.blocks):
                outputs.append(x.name)
        outputs.append(_head(graph, x, self.head, self.classes))
        batch = "N" if self.free_batch else 1
        made = {name for node in graph.nodes for name in node.output}
        ranks = {**dict.fromkeys(outputs, 4), outputs[-1]: 4 if self.head in IMAGE_HEADS else 2}
        proto = helper.make_graph(
            graph.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *self.shape])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * ranks[name])
                for name in dict.fromkeys(outputs)
                if name in made
            ],
            graph.weights,
        )
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(proto, opset_imports=imports, ir_version=10)


IMAGE_HEADS = ("none", "pooled")
HEADS = ("gemm", *IMAGE_HEADS, "matmul", "relu", "softmax")


def _head(graph: Graph, x: Image, head: str, classes: int) -> str:
    if head == "none":
        return graph.node("Identity", x.name) if x.name == "x" else x.name
    if head == "pooled":
        return graph.node("GlobalAveragePool", x.name)
    flat = graph.node("Flatten", x.name)
    size = x.channels * x.height * x.width
    if head == "matmul":
        product = graph.node("MatMul", flat, graph.weight(size, classes))
        return graph.node("Add", product, graph.bias(classes))
    weight = graph.weight(classes, size)
    logits = graph.node("Gemm", flat, weight, graph.bias(classes), transB=1)
    if head == "relu":
        return graph.node("Relu", logits)
    return graph.node("Softmax", logits, axis=-1) if head == "softmax" else logits

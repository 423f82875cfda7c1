"""Layers whose accumulators become codes by tables of thresholds: borders that were learned.

In the file each is a function of its own, in integers throughout (design.md D5): ConvInteger or
MatMulInteger, then the number of thresholds that each accumulator has reached.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.ops.borders import COUNTED
from onnxptq.ops.nodes import constant, float_attribute, input_at, int_attribute
from onnxptq.quant import I32, QParams
from onnxptq.rewrite.sheet import Sheet, codes_like

DOMAIN = "onnxptq"
CONV, GEMM, MATMUL = "BorderedConv", "BorderedGemm", "BorderedMatMul"
"""Functions: the last two for a Gemm whose weight is, and is not, to be transposed."""
INT32 = np.iinfo(np.int32)


def function_of(layer: ir.Node) -> str | None:
    """The function that stands for a layer with borders; None if it is none that can have some."""
    if layer.op_type == "Conv":
        return CONV
    plain = all(float_attribute(layer, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if layer.op_type != "Gemm" or not plain or int_attribute(layer, "transA", 0):
        return None
    return GEMM if int_attribute(layer, "transB", 0) else MATMUL


def channel_axis(function: str) -> int:
    """The axis of output channels of the weight of a function."""
    return 1 if function == MATMUL else 0


def thresholds(
    borders: npt.NDArray[np.float32],
    accumulator_step: npt.NDArray[np.float64],
    bias: npt.NDArray[np.int64],
    params: QParams,
    window: tuple[int, int],
) -> I32:
    """The accumulators at which each level begins, without the bias, [C, levels].

    Args:
        borders: In steps, [C, levels].
        accumulator_step: Steps of the activation that one unit of an accumulator is worth, [C].
        bias: Codes of the bias, [C].
        params: Of the activation.
        window: First and last code that a Relu or Clip behind the layer lets through.
    """
    level = np.arange(borders.shape[1])
    first = int(params.code_lo) - int(params.zero_point)
    begins = (level + borders.astype(np.float64) + first) / accumulator_step[:, None]
    found = np.ceil(begins) - bias[:, None]
    reached = level + 1 + int(params.code_lo)
    found = np.where(reached <= window[0], INT32.min, found)
    found = np.where(reached > window[1], INT32.max, found)
    return np.clip(found, INT32.min, INT32.max).astype(np.int32)


def layer_numbers(
    layer: ir.Node, x: QParams, y: QParams
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Steps of the output that one unit of an accumulator is worth, and codes of the bias, [C].

    Raises:
        SpecError: The weight has zero points, which ConvInteger does not take channel by channel.
    """
    function = function_of(layer)
    assert function is not None
    places = ((1, 1), (1, 2), (2, 0))
    scales, zeros, bias = (_behind_dequantize(layer, *place) for place in places)
    weight = layer.inputs[1]
    assert scales is not None
    assert weight is not None
    assert weight.shape is not None
    if zeros is not None and zeros.any():
        raise SpecError(f"node {layer.name!r} has borders and zero points of weights; choose one")
    channels = weight.shape[channel_axis(function)]
    assert isinstance(channels, int)
    step = scales.astype(np.float64) * float(x.scale) / float(y.scale)
    codes = np.zeros(1, np.int64) if bias is None else bias.astype(np.int64)
    return np.broadcast_to(step, channels), np.broadcast_to(codes, channels)


def _behind_dequantize(layer: ir.Node, position: int, place: int) -> npt.NDArray[np.generic] | None:
    """An input of the DequantizeLinear that makes an input of the layer."""
    value = input_at(layer, position)
    source = None if value is None else value.producer()
    found = None if source is None else constant(source.inputs[place])
    return None if found is None else found.reshape(-1)


class BorderWriter:
    """Writes bordered layers in the place of layers between codes."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._replaced: list[ir.Node] = []

    def write(
        self, name: str, layer: ir.Node, x: tuple[ir.Value, ir.Value], table: I32, code_lo: int
    ) -> ir.Value:
        """The codes of an activation.

        Args:
            name: The activation.
            layer: The layer, its weight behind a DequantizeLinear.
            x: Codes of its input and their zero point.
            table: Thresholds, [C, levels].
            code_lo: Lowest code of the activation.
        """
        weight, function = layer.inputs[1], function_of(layer)
        assert function is not None
        assert weight is not None
        assert weight.shape is not None
        source = weight.producer()
        assert source is not None
        axes = (1,) * (len(weight.shape) - 2)
        ends = (
            self._sheet.add(f"{name}_thresholds", table.reshape(*table.shape, *axes)),
            self._sheet.add(f"{name}_code_lo", np.int32(code_lo)),
        )
        codes = codes_like(f"{name}_Borders_Output", layer.outputs[0])
        call = ir.Node(
            DOMAIN,
            function,
            [x[0], x[1], source.inputs[0], *ends],
            list(layer.attributes.values()) if function == CONV else [],
            outputs=[codes],
            name=str(layer.name),
        )
        self._sheet.graph.insert_before(layer, call)
        self._replaced.append(layer)
        return codes

    def remove_layers(self) -> None:
        """Take the layers away that nobody reads any more, with their real constants.

        The DequantizeLinear of an input stays, also where nobody reads it: it says what its codes
        stand for.
        """
        for layer in self._replaced:
            sources = [value.producer() for value in layer.inputs[1:] if value is not None]
            self._sheet.graph.remove(layer, safe=True)
            for source in sources:
                if source is not None and not any(value.uses() for value in source.outputs):
                    self._sheet.graph.remove(source, safe=True)
        self._replaced.clear()


def declare(model: ir.Model) -> None:
    """Give the model the functions that its bordered layers call."""
    called = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for name in sorted(called):
        made = function(name, model.graph.opset_imports[""])
        model.functions[made.identifier()] = made
    if called:
        model.graph.opset_imports[DOMAIN] = 1


def function(name: str, opset: int) -> ir.Function:
    """A function `(x, x_zero_point, w, thresholds, code_lo) -> codes`, uint8."""
    x, zero, w, table, lowest = (
        ir.val(name) for name in ("x", "x_zero_point", "w", "thresholds", "code_lo")
    )
    axis = ir.node("Constant", [], {"value_ints": [COUNTED]}, outputs=[ir.val("axis")])
    attributes = _conv_attributes() if name == CONV else []
    nodes = [axis, *_accumulating(name, (x, zero, w), attributes)]

    def then(op_type: str, output: str, *others: ir.Value, **attributes: int) -> ir.Value:
        inputs = [nodes[-1].outputs[0], *others]
        nodes.append(ir.node(op_type, inputs, attributes, outputs=[ir.val(output)]))
        return nodes[-1].outputs[0]

    then("Unsqueeze", "each", axis.outputs[0])
    then("GreaterOrEqual", "reached", table)
    then("Cast", "counted", to=int(ir.DataType.INT32))
    then("ReduceSum", "level", axis.outputs[0], keepdims=0)
    then("Add", "code", lowest)
    codes = then("Cast", "codes", to=int(ir.DataType.UINT8))
    graph = ir.Graph(
        [x, zero, w, table, lowest], [codes], nodes=nodes, opset_imports={"": opset}, name=name
    )
    return ir.Function(DOMAIN, name, "", graph=graph, attributes=attributes)


def _conv_attributes() -> list[ir.Attr]:
    """Those of Conv, without values."""
    ints, text, number = ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.INT
    kinds = [(name, ints) for name in ("dilations", "kernel_shape", "pads", "strides")]
    return [ir.Attr(*kind, None) for kind in (*kinds, ("auto_pad", text), ("group", number))]


def _accumulating(
    name: str, operands: tuple[ir.Value, ir.Value, ir.Value], attributes: list[ir.Attr]
) -> list[ir.Node]:
    """The nodes of a function that make accumulators; the last one gives them."""
    x, zero, w = operands
    acc = ir.val("acc")
    if name == CONV:
        refs = [ir.RefAttr(attr.name, attr.name, attr.type) for attr in attributes]
        return [ir.Node("", "ConvInteger", [x, w, zero], refs, outputs=[acc])]
    if name == MATMUL:
        return [ir.Node("", "MatMulInteger", [x, w, zero], outputs=[acc])]
    turned = ir.node("Transpose", [w], {"perm": [1, 0]}, outputs=[ir.val("w_transposed")])
    product = ir.Node("", "MatMulInteger", [x, turned.outputs[0], zero], outputs=[acc])
    return [turned, product]

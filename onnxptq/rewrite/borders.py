"""A convolution whose accumulators become codes by tables of thresholds: borders that were learned.

In the file it is a function of its own, in integers throughout (design.md D5):
ConvInteger, then the number of thresholds that each accumulator has reached.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.ops.nodes import constant, input_at
from onnxptq.quant import I32, QParams
from onnxptq.rewrite.sheet import Sheet, codes_like

DOMAIN = "onnxptq"
FUNCTION = "BorderedConv"
INT32 = np.iinfo(np.int32)

_INTS = ("dilations", "kernel_shape", "pads", "strides")


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
    places = ((1, 1), (1, 2), (2, 0))
    scales, zeros, bias = (_behind_dequantize(layer, *place) for place in places)
    weight = layer.inputs[1]
    assert scales is not None
    assert weight is not None
    assert weight.shape is not None
    if zeros is not None and zeros.any():
        raise SpecError(f"node {layer.name!r} has borders and zero points of weights; choose one")
    channels = weight.shape[0]
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
    """Writes bordered convolutions in the place of convolutions between codes."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._replaced: list[ir.Node] = []

    def write(
        self, name: str, layer: ir.Node, x: tuple[ir.Value, ir.Value], table: I32, code_lo: int
    ) -> ir.Value:
        """The codes of an activation.

        Args:
            name: The activation.
            layer: The convolution, its weight behind a DequantizeLinear.
            x: Codes of its input and their zero point.
            table: Thresholds, [C, levels].
            code_lo: Lowest code of the activation.
        """
        weight = layer.inputs[1]
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
            FUNCTION,
            [x[0], x[1], source.inputs[0], *ends],
            list(layer.attributes.values()),
            outputs=[codes],
            name=str(layer.name),
        )
        self._sheet.graph.insert_before(layer, call)
        self._replaced.append(layer)
        return codes

    def remove_layers(self) -> None:
        """Take the convolutions away that nobody reads any more, with their real constants.

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
    """Give the model the function that its bordered convolutions call."""
    made = function(model.graph.opset_imports[""])
    model.functions[made.identifier()] = made
    model.graph.opset_imports[DOMAIN] = 1


def function(opset: int) -> ir.Function:
    """`BorderedConv(x, x_zero_point, w, thresholds, code_lo) -> codes`, uint8."""
    x, zero, w, table, lowest = (
        ir.val(name) for name in ("x", "x_zero_point", "w", "thresholds", "code_lo")
    )
    refs = [ir.RefAttr(name, name, ir.AttributeType.INTS) for name in _INTS]
    refs += [
        ir.RefAttr("auto_pad", "auto_pad", ir.AttributeType.STRING),
        ir.RefAttr("group", "group", ir.AttributeType.INT),
    ]
    axis = ir.node("Constant", [], {"value_ints": [2]}, outputs=[ir.val("axis")])
    acc = ir.Node("", "ConvInteger", [x, w, zero], refs, outputs=[ir.val("acc")])
    nodes = [axis, acc]

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
        [x, zero, w, table, lowest], [codes], nodes=nodes, opset_imports={"": opset}, name=FUNCTION
    )
    attributes = [ir.Attr(name, ir.AttributeType.INTS, None) for name in _INTS]
    attributes += [
        ir.Attr("auto_pad", ir.AttributeType.STRING, None),
        ir.Attr("group", ir.AttributeType.INT, None),
    ]
    return ir.Function(DOMAIN, FUNCTION, "", graph=graph, attributes=attributes)

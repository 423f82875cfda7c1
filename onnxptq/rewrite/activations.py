"""Activations as codes: Q behind the producer, DQ in front of the readers, windows between them."""

import json
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.ops.hard_sigmoid import slope_of
from onnxptq.ops.nodes import constant, is_constant, scalar
from onnxptq.ops.op import Fusion
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe, provenance
from onnxptq.rewrite.borders import BorderWriter, function_of, layer_numbers, thresholds
from onnxptq.rewrite.clamps import Clamp, clamp_of, code_of, code_window
from onnxptq.rewrite.gates import GATE, gate_codes
from onnxptq.rewrite.place import Layout, is_derived
from onnxptq.rewrite.regions import activation_inputs, record
from onnxptq.rewrite.sheet import (
    CLAMP_KEY,
    GATE_KEY,
    PAD_KEY,
    TENSOR_KEY,
    Sheet,
    codes_like,
    real_like,
)

NO_CLAMP = Clamp(-math.inf, math.inf)


class ActivationWriter:
    """Writes the activations of a layout, one by one in graph order."""

    def __init__(self, sheet: Sheet, recipe: Recipe, layout: Layout) -> None:
        self._sheet = sheet
        self._recipe = recipe
        self._layout = layout
        self._codes: dict[str, ir.Value] = {}
        self._params: dict[str, QParams] = {}
        self._names: dict[int, str] = {}
        self._borders = BorderWriter(sheet)

    def is_dequantized(self, value: ir.Value) -> bool:
        """Whether a value is what a DequantizeLinear of ours gives."""
        return id(value) in self._names

    def write(self, name: str, value: ir.Value) -> None:
        """Give one value its codes and let its readers read them."""
        if is_constant(value):
            self._write_constant(name, value)
            return
        self._params[name] = params = self._params_of(name, value)
        readers = [(use.node, use.idx) for use in value.uses()]
        producer = value.producer()
        replaced = self._layout.folded.get(name)
        if name in self._recipe.borders:
            self._codes[name] = self._bordered(name, value, params, replaced)
        elif replaced is None and producer is not None and self._is_on_codes(producer):
            replaced = producer
            self._codes[name] = self._on_codes(name, producer, params)
        else:
            self._codes[name] = self._quantize(name, value, params, replaced)
        real = self._dequantize(name, value)
        self._reroute(value, real, readers, replaced)
        if replaced is not None:
            self._sheet.graph.remove(replaced, safe=True)
        if name in self._recipe.borders:
            self._borders.remove_layers()

    def _params_of(self, name: str, value: ir.Value) -> QParams:
        if not is_derived(value, self._layout.regions):
            return self._recipe.tensors[name].params
        gate = value.producer()
        assert gate is not None
        assert gate.inputs[0] is not None
        return gate_codes(gate, self._params[self._name_of(gate.inputs[0])]).params

    def _name_of(self, value: ir.Value) -> str:
        """The recipe's name of a value that may have been rerouted to its DequantizeLinear."""
        return self._names.get(id(value), str(value.name))

    def _is_on_codes(self, node: ir.Node) -> bool:
        op = record(node)
        return self._layout.regions.holds(node) and op is not None and op.fusion is Fusion.ON_CODES

    def _write_constant(self, name: str, value: ir.Value) -> None:
        array = constant(value)
        assert array is not None
        self._params[name] = params = self._recipe.tensors[name].params
        self._codes[name] = self._sheet.add(f"{name}_quantized", params.quantize(array))
        real = self._dequantize(name, value)
        for node, position in list(value.uses()):
            if self._layout.regions.holds(node):
                node.replace_input_with(position, real)

    def _quantize(
        self, name: str, value: ir.Value, params: QParams, clamp: ir.Node | None
    ) -> ir.Value:
        source = value if clamp is None else clamp.inputs[0]
        assert source is not None
        codes = codes_like(f"{name}_QuantizeLinear_Output", value)
        scale, zero_point = self._sheet.parameters(name, params)
        rounding = self._recipe.rounding_scales.get(name)
        if rounding is not None:
            # A border that is linear in the code: rounded by one scale, read by another.
            scale = self._sheet.add(f"{name}_rounding_scale", np.float32(rounding))
            params = params.with_scale(np.float32(rounding))
        inputs = [source, scale, zero_point]
        q = ir.node("QuantizeLinear", inputs, outputs=[codes], name=f"{name}_QuantizeLinear")
        if clamp is not None:
            q.metadata_props[CLAMP_KEY] = _clamp_text(clamp)
        self._sheet.insert_after(source, q)
        if clamp is None and self._only_moved(name, value.producer()):
            return codes
        return self._window(name, codes, params, NO_CLAMP if clamp is None else clamp_of(clamp))

    def _bordered(
        self, name: str, value: ir.Value, params: QParams, clamp: ir.Node | None
    ) -> ir.Value:
        """Codes by tables of thresholds behind the layer that makes a value."""
        source = value if clamp is None else clamp.inputs[0]
        layer = None if source is None else source.producer()
        if layer is None or function_of(layer) is None:
            raise SpecError(f"value {name!r} has borders, but no Conv or plain Gemm makes it")
        assert layer.inputs[0] is not None
        inner = self._name_of(layer.inputs[0])
        x = self._params[inner]
        window = code_window(params, NO_CLAMP if clamp is None else clamp_of(clamp))
        step, bias = layer_numbers(layer, x, params)
        borders, shape = self._recipe.borders[name], (step.size, params.spec.levels - 1)
        if borders.shape != shape:
            raise SpecError(f"value {name!r} has borders {borders.shape}, not {shape}")
        table = thresholds(borders, step, bias, params, window)
        _, zero_point = self._sheet.parameters(inner, x)
        operands = (self._codes[inner], zero_point)
        return self._borders.write(name, layer, operands, table, int(params.code_lo))

    def _only_moved(self, name: str, producer: ir.Node | None) -> bool:
        """Whether the codes are copies of tied ones, which lie in the window already."""
        if producer is None or not self._layout.regions.holds(producer):
            return False
        op = record(producer)
        if op is None or (not op.rule.tied and producer.op_type != "Concat"):
            return False
        sources = [self._names.get(id(value)) for value in activation_inputs(producer)]
        root = self._recipe.tensors[name].tied_to or name
        return all(
            source is not None and (self._recipe.tensors[source].tied_to or source) == root
            for source in sources
        )

    def _window(self, name: str, codes: ir.Value, params: QParams, limits: Clamp) -> ir.Value:
        """Codes inside of the bit window and of a Relu or Clip; a Clip if Q lets more through."""
        lo, hi = code_window(params, limits)
        spec = params.spec
        if lo <= spec.container_min and hi >= spec.container_max:
            return codes
        inputs: list[ir.Value | None] = [codes, None, None]
        # An end that the container holds anyway is left empty: one comparison less.
        if lo > spec.container_min:
            inputs[1] = self._sheet.add(f"{name}_code_lo", np.uint8(lo))
        if hi < spec.container_max:
            inputs[2] = self._sheet.add(f"{name}_code_hi", np.uint8(hi))
        if inputs[2] is None:
            inputs.pop()
        clipped = codes_like(f"{name}_Clip_Output", codes)
        node = ir.node("Clip", inputs, outputs=[clipped], name=f"{name}_Clip")
        self._sheet.insert_after(codes, node)
        return clipped

    def _on_codes(self, name: str, node: ir.Node, params: QParams) -> ir.Value:
        """Let Pad, Relu, Clip or HardSigmoid work on the codes of its input."""
        source = node.inputs[0]
        assert source is not None
        inner = self._name_of(source)
        codes = self._codes[inner]
        if node.op_type == "Pad":
            return self._pad(name, node, codes, params)
        if node.op_type == GATE:
            key, text = GATE_KEY, json.dumps([node.name, *slope_of(node)])
            lo, hi = int(params.code_lo), gate_codes(node, self._params[inner]).code_hi
        else:
            key, text = CLAMP_KEY, _clamp_text(node)
            lo, hi = code_window(params, clamp_of(node))
        ends = (
            self._sheet.add(f"{name}_code_lo", np.uint8(lo)),
            self._sheet.add(f"{name}_code_hi", np.uint8(hi)),
        )
        output = codes_like(f"{name}_Clip_Output", codes)
        clip = ir.node("Clip", [codes, *ends], outputs=[output], name=node.name)
        clip.metadata_props[key] = text
        self._sheet.graph.insert_before(node, clip)
        return output

    def _pad(self, name: str, node: ir.Node, codes: ir.Value, params: QParams) -> ir.Value:
        given = node.inputs[2] if len(node.inputs) > 2 else None
        number = 0.0 if given is None else scalar(given)
        assert number is not None
        fill = self._sheet.add(f"{name}_pad_code", np.uint8(code_of(number, params)))
        output = codes_like(f"{name}_Pad_Output", node.outputs[0])
        inputs: list[ir.Value | None] = [codes, node.inputs[1], fill, *node.inputs[3:]]
        padded = ir.node("Pad", inputs, dict(node.attributes), outputs=[output], name=node.name)
        padded.metadata_props.update(node.metadata_props)
        if given is not None:
            padded.metadata_props[PAD_KEY] = json.dumps([given.name, number])
        self._sheet.graph.insert_before(node, padded)
        return output

    def _dequantize(self, name: str, value: ir.Value) -> ir.Value:
        inputs = (self._codes[name], *self._sheet.parameters(name, self._params[name]))
        real = real_like(f"{name}_DequantizeLinear_Output", value)
        node = self._sheet.dequantize(name, inputs, real)
        if not is_derived(value, self._layout.regions):
            node.metadata_props[TENSOR_KEY] = provenance(self._recipe.tensors[name])
        self._names[id(real)] = name
        return real

    def _reroute(
        self,
        value: ir.Value,
        real: ir.Value,
        readers: Sequence[tuple[ir.Node, int]],
        replaced: ir.Node | None,
    ) -> None:
        """Let the readers of a value read what is left of it after storing it as codes.

        Where a float node makes the value, float readers keep the exact one.
        """
        from_codes = replaced is not None or self._layout.regions.holds(value.producer())
        for node, position in readers:
            if from_codes or self._layout.regions.holds(node):
                node.replace_input_with(position, real)
        if from_codes and value.is_graph_output():
            outputs = self._sheet.graph.outputs
            outputs[[id(output) for output in outputs].index(id(value))] = real
            name, value.name = value.name, f"{value.name}_QuantizeLinear_Input"
            real.name = name


def _clamp_text(node: ir.Node) -> str:
    """What `strip` needs to put a Relu or Clip back."""
    limits = clamp_of(node)
    bounds = [value.name if value is not None else None for value in node.inputs[1:3]]
    entry = {
        "op": node.op_type,
        "node": node.name,
        "lo": limits.lo,
        "hi": limits.hi,
        "bounds": bounds + [None] * (2 - len(bounds)),
    }
    return json.dumps(entry)

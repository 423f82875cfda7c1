"""Weights and biases of a layer, as codes behind DequantizeLinear."""

import numpy as np
import onnx_ir as ir

from onnxptq.ops.nodes import constant
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe, provenance
from onnxptq.rewrite.regions import activation_inputs, bias_of, record, weight_of
from onnxptq.rewrite.sheet import TENSOR_KEY, Sheet, real_like
from onnxptq.rewrite.storage import Storage, WeightWriter
from onnxptq.rewrite.weights import bias_codes, weight_codes


class LayerWriter:
    """Writes the constants of Conv, Gemm and MatMul; a weight that layers share is written once."""

    def __init__(self, sheet: Sheet, recipe: Recipe, storage: Storage) -> None:
        self._sheet = sheet
        self._recipe = recipe
        self._weights = WeightWriter(sheet.graph, storage)
        self._written: dict[str, ir.Value] = {}

    def write(self, layer: ir.Node) -> None:
        """Let the layer read dequantized codes instead of its float weight and bias.

        Must come before its input is rerouted: the bias scale is the product of two recipe entries.

        Raises:
            ProgramError: The bias does not fit into int32.
        """
        weight, bias, op = weight_of(layer), bias_of(layer), record(layer)
        assert weight is not None
        assert op is not None
        assert op.rule.weight is not None
        params = self._recipe.tensors[str(weight.name)].params
        if bias is not None:
            source = next(iter(activation_inputs(layer)))
            x_params = self._recipe.tensors[str(source.name)].params
            layer.replace_input_with(2, self._bias(layer, bias, x_params, params))
        if str(weight.name) not in self._written:
            self._written[str(weight.name)] = self._weight(weight, params)
        layer.replace_input_with(op.rule.weight, self._written[str(weight.name)])

    def _weight(self, weight: ir.Value, params: QParams) -> ir.Value:
        name, array = str(weight.name), constant(weight)
        assert array is not None
        codes = weight_codes(array, params, self._recipe.codes.get(name))
        stored, nodes = self._weights.write(f"{name}_quantized", codes, params)
        self._sheet.insert_first(nodes)
        inputs = (stored, *self._sheet.parameters(name, params))
        real = real_like(f"{name}_DequantizeLinear_Output", weight)
        node = self._sheet.dequantize(name, inputs, real, params.spec.axis)
        node.metadata_props[TENSOR_KEY] = provenance(self._recipe.tensors[name])
        return real

    def _bias(
        self, layer: ir.Node, bias: ir.Value, x_params: QParams, w_params: QParams
    ) -> ir.Value:
        name = str(bias.name)
        if len(bias.uses()) > 1:
            # A bias that two layers share gets a scale, hence codes, from each of them.
            name = f"{name}_{layer.name}"
        array = self._recipe.biases.get(str(bias.name), constant(bias))
        assert array is not None
        stored = bias_codes(array, x_params, w_params, layer)
        codes = np.asarray(self._recipe.codes.get(name, stored.codes), np.int32)
        value = self._sheet.add(f"{name}_quantized", codes)
        scale = self._sheet.add(f"{name}_quantized_scale", stored.scale)
        if stored.axis is None:
            zero_point = self._sheet.add(f"{name}_quantized_zero_point", np.int32(0))
        else:
            zero_point = self._sheet.zeros(stored.scale.size, np.int32)
        inputs = (value, scale, zero_point)
        real = ir.val(f"{name}_DequantizeLinear_Output", dtype=ir.DataType.FLOAT)
        self._sheet.dequantize(name, inputs, real, stored.axis)
        return real

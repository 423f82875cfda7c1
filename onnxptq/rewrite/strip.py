"""QDQ model -> (float model, recipe): the way back, for files that `insert_qdq` wrote.

The float weights are those that the codes stand for, so writing the recipe into them again gives
the same file.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import ort
from onnxptq.errors import ModelError
from onnxptq.graph import shapes
from onnxptq.graph.io import digest
from onnxptq.graph.text import where
from onnxptq.ops.nodes import constant
from onnxptq.quant import F32
from onnxptq.recipe import Recipe, Role, Step, TensorQuant, from_description, read_provenance
from onnxptq.rewrite.sheet import (
    CLAMP_KEY,
    FLOAT_NODES_KEY,
    GATE_KEY,
    GUARD_KEY,
    PAD_KEY,
    STEPS_KEY,
    TENSOR_KEY,
)


def strip(model: ir.Model) -> tuple[ir.Model, Recipe]:
    """Take the Q/DQ pairs out of a model that `insert_qdq` wrote.

    Args:
        model: The quantized model; it is not changed.

    Returns:
        The float model whose weights and biases are what the codes stand for, and the recipe that
        was written: `insert_qdq` of both gives the quantized model again, byte for byte.

    Raises:
        ModelError: The model was not written by `insert_qdq`, or was changed since.
    """
    if model.functions:
        raise ModelError(
            "the file has tables of borders, and no float layers any more to compare its layers "
            "with; the page of such a file is written by onnxptq quantize --report"
        )
    codes = _constant_codes(model)
    model = model.clone()
    stripper = _Stripper(model, codes)
    stripper.run()
    shapes.infer(model)
    props = model.metadata_props
    floats = json.loads(props.pop(FLOAT_NODES_KEY, "{}"))
    steps = tuple(Step(text) for text in _method_texts(props.pop(STEPS_KEY, "")))
    recipe = Recipe(
        digest(model),
        stripper.tensors,
        floats,
        stripper.bias_codes,
        rounding_scales=stripper.rounding_scales,
        steps=steps,
    )
    return model, recipe


def _method_texts(text: str) -> list[str]:
    """Split at the commas that are not inside of braces."""
    texts, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            texts.append("")
        else:
            texts[-1] += letter
    return [part for part in texts if part]


def _constant_codes(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """What onnxruntime folds the stored weights to: DequantizeLinear node name to its codes."""
    found: dict[str, npt.NDArray[Any]] = {}
    packed: dict[str, str] = {}
    for node in _dequantizers(model):
        codes = node.inputs[0]
        assert codes is not None
        array = constant(codes)
        if array is not None:
            found[str(node.name)] = array
        elif TENSOR_KEY in node.metadata_props and not _is_activation(node):
            packed[str(node.name)] = str(codes.name)
    if packed:
        arrays = ort.constants(model, packed.values())
        found.update({name: arrays[value] for name, value in packed.items()})
    return found


def _dequantizers(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in list(model.graph) if node.op_type == "DequantizeLinear")


def _is_activation(node: ir.Node) -> bool:
    entry = read_provenance(node.metadata_props.get(TENSOR_KEY, "{}"), "")
    return entry["role"] not in (Role.WEIGHT, Role.CONSTANT)


class _Stripper:
    """One run of `strip` over its own copy of the model."""

    def __init__(self, model: ir.Model, codes: dict[str, npt.NDArray[Any]]) -> None:
        self._model = model
        self._graph = model.graph
        self._codes = codes
        self._real: dict[int, ir.Value] = {}
        self.tensors: dict[str, TensorQuant] = {}
        self.bias_codes: dict[str, npt.NDArray[np.integer]] = {}
        self.rounding_scales: dict[str, F32] = {}

    def run(self) -> None:
        for node in list(self._graph):
            if node.op_type == "DequantizeLinear":
                self._drop_pair(node)
            elif GUARD_KEY in node.metadata_props:
                self._bypass(node, node.inputs[0])
        self._drop_unused()

    def _drop_pair(self, dequantize: ir.Node) -> None:
        constant_codes = self._codes.get(str(dequantize.name))
        text = dequantize.metadata_props.get(TENSOR_KEY)
        if constant_codes is not None:
            self._restore_constant(dequantize, constant_codes, text)
            return
        gate = self._gate(dequantize)
        if gate is not None:
            self._bypass(dequantize, gate)
            return
        if text is None:
            raise ModelError(
                f"{where(dequantize)}: it has no {TENSOR_KEY!r} entry, so the file was not written "
                f"by onnxptq; only its own files can be taken apart"
            )
        tensor = self._remember(dequantize, text)
        codes = dequantize.inputs[0]
        assert codes is not None
        self._bypass(dequantize, self._float_of(codes, tensor.value))

    def _remember(self, dequantize: ir.Node, text: str) -> TensorQuant:
        scale, zero_point = (constant(value) for value in dequantize.inputs[1:3])
        assert scale is not None
        assert zero_point is not None
        name = str(dequantize.name).removesuffix("_DequantizeLinear")
        entry = read_provenance(text, name)
        tensor = from_description(entry, scale, zero_point.astype(np.int32))
        self.tensors[tensor.value] = tensor
        return tensor

    def _restore_constant(
        self, dequantize: ir.Node, codes: npt.NDArray[Any], text: str | None
    ) -> None:
        scale = constant(dequantize.inputs[1])
        assert scale is not None
        real = dequantize.outputs[0]
        name = str(real.name).removesuffix("_DequantizeLinear_Output")
        if text is not None:
            array = self._remember(dequantize, text).params.dequantize(codes)
        else:
            # A bias: its codes may be wider than float32, so they are kept beside it.
            array = (codes.astype(np.float64) * scale).astype(np.float32)
            if (np.rint(array.astype(np.float64) / scale) != codes).any():
                self.bias_codes[name] = codes
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        self._bypass(dequantize, value)

    def _float_of(self, codes: ir.Value, name: str) -> ir.Value:
        """The float value that codes were made from, with Relu, Clip and Pad put back."""
        node = codes.producer()
        if node is None:
            raise ModelError(f"value {codes.name!r}: expected a QuantizeLinear before it")
        if node.op_type == "Clip" and CLAMP_KEY not in node.metadata_props:
            inner = node.inputs[0]
            assert inner is not None
            return self._float_of(inner, name)
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "QuantizeLinear":
            self._remember_rounding(node, name)
            clamp = node.metadata_props.get(CLAMP_KEY)
            return source if clamp is None else self._clamp(json.loads(clamp), source, node, name)
        inner = self._real.get(id(source))
        if inner is None:
            raise ModelError(f"{where(node)}: its codes come from nowhere")
        if node.op_type == "Clip":
            return self._clamp(json.loads(node.metadata_props[CLAMP_KEY]), inner, node, name)
        return self._pad(node, inner, name)

    def _remember_rounding(self, quantize: ir.Node, name: str) -> None:
        scale = constant(quantize.inputs[1])
        if scale is not None and scale != self.tensors[name].params.scale:
            self.rounding_scales[name] = np.asarray(scale, np.float32)

    def _gate(self, dequantize: ir.Node) -> ir.Value | None:
        """A HardSigmoid put back, where its codes are what is dequantized."""
        codes = dequantize.inputs[0]
        clip = None if codes is None else codes.producer()
        if clip is None or GATE_KEY not in clip.metadata_props or clip.inputs[0] is None:
            return None
        name, alpha, beta = json.loads(clip.metadata_props[GATE_KEY])
        real = dequantize.outputs[0]
        output = ir.val(
            str(real.name).removesuffix("_DequantizeLinear_Output"),
            dtype=ir.DataType.FLOAT,
            shape=real.shape,
        )
        source = self._real[id(clip.inputs[0])]
        slope = {"alpha": alpha, "beta": beta}
        node = ir.node("HardSigmoid", [source], slope, outputs=[output], name=name)
        self._graph.insert_before(clip, node)
        return output

    def _clamp(
        self, entry: dict[str, Any], source: ir.Value, before: ir.Node, name: str
    ) -> ir.Value:
        inputs: list[ir.Value | None] = [source]
        if entry["op"] == "Clip":
            inputs += [self._bound(entry["bounds"][0], entry["lo"])]
            inputs += [self._bound(entry["bounds"][1], entry["hi"])]
            while inputs[-1] is None:
                inputs.pop()
        output = ir.val(name, dtype=ir.DataType.FLOAT, shape=before.outputs[0].shape)
        node = ir.node(entry["op"], inputs, outputs=[output], name=entry["node"])
        self._graph.insert_before(before, node)
        return output

    def _bound(self, name: str | None, number: float) -> ir.Value | None:
        if name is None or math.isinf(number):
            return None
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        value = ir.val(name, const_value=ir.tensor(np.float32(number), name=name))
        self._graph.register_initializer(value)
        return value

    def _pad(self, node: ir.Node, source: ir.Value, name: str) -> ir.Value:
        inputs: list[ir.Value | None] = [source, node.inputs[1]]
        if PAD_KEY in node.metadata_props:
            fill, number = json.loads(node.metadata_props[PAD_KEY])
            inputs.append(self._bound(fill, number))
        elif len(node.inputs) > 3:
            inputs.append(None)
        inputs += node.inputs[3:]
        output = ir.val(name, dtype=ir.DataType.FLOAT, shape=node.outputs[0].shape)
        padded = ir.node("Pad", inputs, dict(node.attributes), outputs=[output], name=node.name)
        self._graph.insert_before(node, padded)
        return output

    def _bypass(self, node: ir.Node, source: ir.Value | None) -> None:
        """Let the readers of a node's output read `source`; a graph output keeps its name."""
        assert source is not None
        output = node.outputs[0]
        codes = node.inputs[0]
        if codes is not None and node.op_type == "DequantizeLinear":
            self._real[id(codes)] = source
        name, is_output = output.name, output.is_graph_output()
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        if is_output:
            output.name = f"{name}_stripped"
            source.name = name

    def _drop_unused(self) -> None:
        for node in reversed(list(self._graph)):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self._graph.remove(node, safe=True)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]

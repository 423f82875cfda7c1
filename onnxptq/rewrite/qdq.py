"""Float model and recipe -> the same model with QuantizeLinear and DequantizeLinear (design D2)."""

import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.graph.io import digest
from onnxptq.ops.nodes import constant, is_constant, scalar
from onnxptq.ops.op import Fusion
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe, describe
from onnxptq.rewrite.clamps import Clamp, clamp_of
from onnxptq.ops.hard_sigmoid import slope_of
from onnxptq.rewrite.gates import GATE, gate_codes
from onnxptq.rewrite.place import Layout, is_derived, lay_out, regions_of
from onnxptq.rewrite.regions import activation_inputs, bias_of, record, weight_of
from onnxptq.rewrite.storage import Storage, WeightWriter
from onnxptq.rewrite.weights import bias_codes, weight_codes

FLOAT_NODES_KEY = "onnxptq.float_nodes"
DIGEST_KEY = "onnxptq.model_digest"
STEPS_KEY = "onnxptq.methods"
TENSOR_KEY = "onnxptq.tensor"
CLAMP_KEY = "onnxptq.clamp"
GATE_KEY = "onnxptq.gate"
PAD_KEY = "onnxptq.pad_value"
INT2_OPSET, INT2_IR_VERSION = 25, 13  # onnx PR 7446
GUARD_KEY = "onnxptq.guard"


def insert_qdq(model: ir.Model, recipe: Recipe, storage: Storage) -> ir.Model:
    """Write the recipe's decisions into a copy of the model.

    Args:
        model: The prepared float model that the recipe was made for.
        recipe: Decisions; every range must have been chosen.
        storage: Layout of the weight codes.

    Returns:
        A model that stock onnxruntime runs in its integer kernels wherever the recipe says so.

    Raises:
        SpecError: The recipe is for another model, or a range is still missing.
        ProgramError: A bias cannot be stored (see `bias_codes`).
    """
    found = digest(model)
    if recipe.model_digest != found:
        raise SpecError(
            f"the recipe was made for another model (digest {recipe.model_digest[:12]}, this one's "
            f"is {found[:12]}); make a new one with onnxptq quantize --save-recipe"
        )
    undecided = recipe.undecided()
    if undecided:
        raise SpecError(f"the recipe has no range for {', '.join(undecided[:3])}; add a method")
    return _Writer(model.clone(), recipe, storage).write()


class _Writer:
    """One run of `insert_qdq` over its own copy of the model."""

    def __init__(self, model: ir.Model, recipe: Recipe, storage: Storage) -> None:
        self._model = model
        self._graph = model.graph
        self._recipe = recipe
        self._weights = WeightWriter(model.graph, storage)
        self._layout: Layout = lay_out(model, regions_of(model, recipe))
        self._codes: dict[str, ir.Value] = {}
        self._real: dict[str, ir.Value] = {}
        self._names: dict[int, str] = {}
        self._params: dict[str, QParams] = {}
        self._written: dict[str, ir.Value] = {}

    def write(self) -> ir.Model:
        layers = [n for n in self._graph if self._layout.regions.holds(n) and weight_of(n)]
        floats = [n for n in self._graph if not self._layout.regions.holds(n)]
        for layer in layers:
            self._write_weight(layer)
        for name, value in self._layout.values.items():
            self._write_activation(name, value)
        for node in floats:
            self._guard(node)
        self._drop_unused_initializers()
        self._sign()
        return self._model

    # Activations

    def _write_activation(self, name: str, value: ir.Value) -> None:
        params = self._params_of(name, value)
        if is_constant(value):
            self._write_constant(name, value, params)
            return
        self._params[name] = params
        readers = list(value.uses())
        producer = value.producer()
        replaced = self._layout.folded.get(name)
        if replaced is None and producer is not None and self._is_on_codes(producer):
            replaced = producer
            self._write_on_codes(name, producer, params)
        else:
            self._write_q(name, value, params, replaced)
        self._write_dq(name, value)
        self._reroute(name, value, [(use.node, use.idx) for use in readers], replaced)
        if replaced is not None:
            self._graph.remove(replaced, safe=True)

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

    def _write_constant(self, name: str, value: ir.Value, params: QParams) -> None:
        self._params[name] = params
        array = constant(value)
        assert array is not None
        codes = self._add(f"{name}_quantized", params.quantize(array))
        self._codes[name] = codes
        self._write_dq(name, None)
        for node, position in list(value.uses()):
            if self._layout.regions.holds(node):
                node.replace_input_with(position, self._real[name])

    def _write_q(self, name: str, value: ir.Value, params: QParams, clamp: ir.Node | None) -> None:
        source = value if clamp is None else clamp.inputs[0]
        assert source is not None
        scale, zero_point = self._parameters(name, params)
        codes = _output(f"{name}_QuantizeLinear_Output", value)
        q = ir.node(
            "QuantizeLinear",
            [source, scale, zero_point],
            outputs=[codes],
            name=f"{name}_QuantizeLinear",
        )
        limits = Clamp(-math.inf, math.inf) if clamp is None else clamp_of(clamp)
        if clamp is not None:
            q.metadata_props[CLAMP_KEY] = _clamp_text(clamp, limits)
        self._insert_after(source, q)
        inherited = clamp is None and self._only_moved(name, value.producer())
        self._codes[name] = codes if inherited else self._window(name, codes, params, limits)

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
        lo, hi = _code_window(params, limits)
        spec = params.spec
        if lo <= spec.container_min and hi >= spec.container_max:
            return codes
        clipped = _output(f"{name}_Clip_Output", codes)
        bounds: list[ir.Value | None] = [codes, None, None]
        # An end that the container holds anyway is left empty: one comparison less.
        if lo > spec.container_min:
            bounds[1] = self._add(f"{name}_code_lo", np.uint8(lo))
        if hi < spec.container_max:
            bounds[2] = self._add(f"{name}_code_hi", np.uint8(hi))
        if bounds[2] is None:
            bounds.pop()
        node = ir.node("Clip", bounds, outputs=[clipped], name=f"{name}_Clip")
        self._insert_after(codes, node)
        return clipped

    def _write_on_codes(self, name: str, node: ir.Node, params: QParams) -> None:
        """Let Pad, Relu or Clip work on the codes of its input, whose parameters it shares."""
        source = node.inputs[0]
        assert source is not None
        inner = self._name_of(source)
        codes = self._codes[inner]
        if node.op_type == "Pad":
            self._pad_codes(name, node, codes, params)
            return
        if node.op_type == GATE:
            text = json.dumps([node.name, *slope_of(node)])
            lo, hi = int(params.code_lo), gate_codes(node, self._params[inner]).code_hi
            key = GATE_KEY
        else:
            text, key = _clamp_text(node, clamp_of(node)), CLAMP_KEY
            lo, hi = _code_window(params, clamp_of(node))
        ends = [
            self._add(f"{name}_code_lo", np.uint8(lo)),
            self._add(f"{name}_code_hi", np.uint8(hi)),
        ]
        output = _output(f"{name}_Clip_Output", codes)
        clip = ir.node("Clip", [codes, *ends], outputs=[output], name=node.name)
        clip.metadata_props[key] = text
        self._graph.insert_before(node, clip)
        self._codes[name] = output

    def _pad_codes(self, name: str, node: ir.Node, codes: ir.Value, params: QParams) -> None:
        value = scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
        assert value is not None
        code = np.uint8(_code_of(value, params))
        fill = self._add(f"{name}_pad_code", code)
        output = _output(f"{name}_Pad_Output", node.outputs[0])
        inputs: list[ir.Value | None] = [codes, node.inputs[1], fill, *node.inputs[3:]]
        padded = ir.node("Pad", inputs, dict(node.attributes), outputs=[output], name=node.name)
        padded.metadata_props.update(node.metadata_props)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            padded.metadata_props[PAD_KEY] = json.dumps([node.inputs[2].name, value])
        self._graph.insert_before(node, padded)
        self._codes[name] = output

    def _write_dq(self, name: str, value: ir.Value | None) -> None:
        codes = self._codes[name]
        scale, zero_point = self._parameters(name, self._params[name])
        real = _output(f"{name}_DequantizeLinear_Output", value, ir.DataType.FLOAT)
        node = ir.node(
            "DequantizeLinear",
            [codes, scale, zero_point],
            outputs=[real],
            name=f"{name}_DequantizeLinear",
        )
        derived = value is not None and is_derived(value, self._layout.regions)
        if not derived:
            node.metadata_props[TENSOR_KEY] = json.dumps(describe(self._recipe.tensors[name]))
        self._insert_after(codes, node)
        self._real[name] = real
        self._names[id(real)] = name

    def _reroute(
        self,
        name: str,
        value: ir.Value,
        readers: Sequence[tuple[ir.Node, int]],
        replaced: ir.Node | None,
    ) -> None:
        """Let the readers of a value read what is left of it after storing it as codes.

        Where a float node makes the value, float readers keep the exact one.
        """
        real = self._real[name]
        from_codes = replaced is not None or self._layout.regions.holds(value.producer())
        for node, position in readers:
            if from_codes or self._layout.regions.holds(node):
                node.replace_input_with(position, real)
        if from_codes and value.is_graph_output():
            outputs = self._graph.outputs
            outputs[[id(output) for output in outputs].index(id(value))] = real
            value.name = f"{name}_QuantizeLinear_Input"
            real.name = name

    # Weights

    def _write_weight(self, layer: ir.Node) -> None:
        weight, bias = weight_of(layer), bias_of(layer)
        assert weight is not None
        entry = self._recipe.tensors[str(weight.name)]
        x = next(iter(activation_inputs(layer)))
        if bias is not None:
            x_params = self._recipe.tensors[str(x.name)].params
            real = self._write_bias(layer, bias, x_params, entry.params)
            layer.replace_input_with(2, real)
        if str(weight.name) not in self._written:
            array = constant(weight)
            assert array is not None
            codes = weight_codes(array, entry.params, self._recipe.codes.get(str(weight.name)))
            stored, nodes = self._weights.write(f"{weight.name}_quantized", codes, entry.params)
            self._insert_first(nodes)
            inputs = (stored, *self._parameters(str(weight.name), entry.params))
            real = self._dequantized(str(weight.name), inputs, entry.params.spec.axis)
            dequantize = real.producer()
            assert dequantize is not None
            dequantize.metadata_props[TENSOR_KEY] = json.dumps(describe(entry))
            self._written[str(weight.name)] = real
        op = record(layer)
        assert op is not None
        assert op.rule.weight is not None
        layer.replace_input_with(op.rule.weight, self._written[str(weight.name)])

    def _write_bias(
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
        value = self._add(f"{name}_quantized", codes)
        scale = self._add(f"{name}_quantized_scale", stored.scale)
        zero_point = self._add(
            f"{name}_quantized_zero_point", np.zeros_like(stored.scale, np.int32)
        )
        return self._dequantized(name, (value, scale, zero_point), stored.axis)

    def _dequantized(
        self, name: str, inputs: tuple[ir.Value, ir.Value, ir.Value], axis: int | None
    ) -> ir.Value:
        """Put a DequantizeLinear behind stored codes of a weight or bias."""
        real = ir.val(f"{name}_DequantizeLinear_Output", dtype=ir.DataType.FLOAT)
        node = ir.node(
            "DequantizeLinear",
            list(inputs),
            {} if axis is None else {"axis": axis},
            outputs=[real],
            name=f"{name}_DequantizeLinear",
        )
        self._insert_after(inputs[0], node)
        return real

    # Float nodes

    def _guard(self, node: ir.Node) -> None:
        """Keep onnxruntime from fusing a float node that stands between codes.

        It quantizes a float weight between DQ and Q by itself, per tensor and without a word
        (ort_semantics_and_kernels.md B.2). A Max of one input changes nothing and stops it.
        """
        op = record(node)
        if op is None or op.fusion not in (Fusion.QLINEAR, Fusion.CODES):
            return
        computed = [value for value in node.inputs if value is not None and not is_constant(value)]
        if not computed or not all(id(value) in self._names for value in computed):
            return
        for output in node.outputs:
            readers = list(output.uses())
            if any(use.node.op_type == "QuantizeLinear" for use in readers):
                kept = _output(f"{output.name}_kept_float", output, ir.DataType.FLOAT)
                guard = ir.node("Max", [output], outputs=[kept], name=f"{output.name}_Max")
                guard.metadata_props[GUARD_KEY] = "keeps the node before it in float"
                for use in readers:
                    use.node.replace_input_with(use.idx, kept)
                self._insert_after(output, guard)

    # Graph

    def _parameters(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a value, written out; tied values have their own."""
        known = self._graph.initializers.get(f"{name}_scale")
        if known is not None:
            return known, self._graph.initializers[f"{name}_zero_point"]
        return (
            self._add(f"{name}_scale", params.scale),
            self._add(f"{name}_zero_point", params.zero_point.astype(params.spec.container)),
        )

    def _add(self, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(np.asarray(array), name=name))
        self._graph.register_initializer(value)
        return value

    def _insert_after(self, value: ir.Value, node: ir.Node) -> None:
        producer = value.producer()
        if producer is None:
            self._insert_first([node])
        else:
            self._graph.insert_after(producer, node)

    def _insert_first(self, nodes: Sequence[ir.Node]) -> None:
        first = next(iter(self._graph), None)
        if first is None:
            self._graph.extend(nodes)
        else:
            self._graph.insert_before(first, nodes)

    def _drop_unused_initializers(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]

    def _sign(self) -> None:
        """Leave the provenance in the file: of which model, by which methods, what is in float."""
        props = self._model.metadata_props
        # A model that `strip` made keeps the digest of the float model it stands for.
        props.setdefault(DIGEST_KEY, self._recipe.model_digest)
        props[STEPS_KEY] = ",".join(step.method for step in self._recipe.steps)
        reasons = dict(sorted(self._recipe.float_nodes.items()))
        props[FLOAT_NODES_KEY] = json.dumps(reasons)
        if any(v.dtype == ir.DataType.INT2 for v in self._graph.initializers.values()):
            self._graph.opset_imports[""] = max(INT2_OPSET, self._graph.opset_imports[""])
            self._model.ir_version = max(INT2_IR_VERSION, self._model.ir_version)


def _output(name: str, like: ir.Value | None, dtype: ir.DataType = ir.DataType.UINT8) -> ir.Value:
    """A new value with the shape of another."""
    shape = None if like is None else like.shape
    return ir.val(name, dtype=dtype, shape=shape)


def _code_window(params: QParams, limits: Clamp) -> tuple[int, int]:
    """First and last code that lie in the bit window and between the codes of two real limits."""
    lo, hi = int(params.code_lo), int(params.code_hi)
    return (
        min(max(lo, _code_of(limits.lo, params)), hi),
        max(min(hi, _code_of(limits.hi, params)), lo),
    )


def _code_of(real: float, params: QParams) -> int:
    """The code that QuantizeLinear gives a number; the ends of the container for infinities."""
    spec = params.spec
    if math.isinf(real):
        return spec.container_min if real < 0 else spec.container_max
    steps = np.rint(np.float32(real) / params.scale)
    return int(np.clip(steps + params.zero_point, spec.container_min, spec.container_max))


def _clamp_text(node: ir.Node, limits: Clamp) -> str:
    """What `strip` needs to put a Relu or Clip back."""
    bounds = [value.name if value is not None else None for value in node.inputs[1:3]]
    entry = {
        "op": node.op_type,
        "node": node.name,
        "lo": limits.lo,
        "hi": limits.hi,
        "bounds": bounds + [None] * (2 - len(bounds)),
    }
    return json.dumps(entry)

"""Which nodes say that a model is quantized already."""

import onnx_ir as ir

_TYPES = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}
_CONTRIB_TYPES = {
    "DequantizeBFP",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulInteger16",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QMoE",
    "QOrderedMatMul",
    "QuantizeBFP",
}


def find_quantized(model: ir.Model) -> tuple[str, ...]:
    """Name the nodes that quantize, dequantize or compute with integers; empty for a float model.

    Functions of the model are searched too: packed weights may be unpacked in one.
    """
    bodies = [model.graph, *model.functions.values()]
    nodes = [node for body in bodies for node in body.all_nodes()]
    return tuple(node.name or node.op_type for node in nodes if _is_quantized(node))


def _is_quantized(node: ir.Node) -> bool:
    if node.domain == "":
        return node.op_type in _TYPES
    # onnxruntime's own integer kernels: QLinearAdd, QLinearConcat, QLinearSigmoid, ...
    contrib = node.op_type.startswith("QLinear") or node.op_type in _TYPES | _CONTRIB_TYPES
    return node.domain in ("com.microsoft", "com.microsoft.nchwc") and contrib

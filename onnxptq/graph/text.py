"""ONNX text syntax in and out, and `where`, which every error message uses."""

import onnx
import onnx_ir as ir

from onnxptq.errors import ModelError
from onnxptq.graph import io


def where(node: ir.Node) -> str:
    """How messages name a node: "node 'backbone/act3' (Mish, opset 21)"."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    graph = node.graph
    version = node.version
    if version is None and graph is not None:
        version = graph.opset_imports.get(node.domain)
    suffix = f", opset {version}" if version is not None and not node.domain else ""
    return f"node {node.name or '<unnamed>'!r} ({kind}{suffix})"


def to_text(model: ir.Model) -> str:
    """The model in ONNX text syntax; tensors are printed whole, so it is for small models."""
    return onnx.printer.to_text(ir.serde.serialize_model(model))


def from_text(text: str) -> ir.Model:
    """Read a model in ONNX text syntax.

    Raises:
        ModelError: The text is not well formed.
    """
    try:
        proto = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise ModelError(f"not ONNX text: {error}") from error
    return io.from_proto(proto, "ONNX text")

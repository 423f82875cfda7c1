"""Cleans what torch's exporter wrote: constants folded, aliases resolved, names from modules."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

Array = npt.NDArray[Any]

FOLD_LIMIT = 4096  # elements; arithmetic on shapes and paddings is far below, weights are above


def canonicalize(model: ir.Model, layers: frozenset[str], tied: Mapping[str, str]) -> ir.Model:
    """Changes `model` into the form that the rest of onnxptq, and people, like to read.

    Constants become initializers, arithmetic on constants is done, every parameter is an
    initializer under its own name, and nodes and values are named after the modules they come from:
    the Conv of module `layer1.0.conv1` is `layer1.0.conv1`, an Add in the forward of `layer1.0` is
    `layer1.0.Add`.

    Args:
        model: As torch's TorchScript exporter writes it.
        layers: Paths of the modules that have no children or parameters of their own.
        tied: Name of each parameter and buffer -> the first name that shares its storage.
    """
    _split_aliases(model.graph, tied)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _fold_constants(model)
    while _fold_sizes(model):  # a padding once known makes the next layer's size known
        _fold_constants(model)
        common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    _rename(model.graph, layers)
    _rename_constants(model.graph, tied.keys())
    return model


def _split_aliases(graph: ir.Graph, tied: Mapping[str, str]) -> None:
    """Gives parameters that merely happen to be equal their own initializers again.

    torch stores equal tensors once and writes `bn2.bias = Identity(bn1.bias)`: in a fresh network
    every BatchNorm is. Parameters that share their storage stay one.
    """
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None or source.const_value is None or not source.is_initializer():
            continue
        target = node.outputs[0]
        name = target.name
        if name is None or target.is_graph_output():
            continue
        replacement = source
        if tied.get(name, name) != tied.get(source.name or "", source.name):
            replacement = ir.Value(
                name=name, type=source.type, shape=source.shape, const_value=source.const_value
            )
            target.name = None
            graph.initializers.add(replacement)
        ir.convenience.replace_all_uses_with(target, replacement)
        graph.remove(node, safe=True)


def _fold_constants(model: ir.Model) -> None:
    """Computes nodes whose inputs are all small initializers (paddings and slice ends, mostly)."""
    for node in list(model.graph):
        values = [value.const_value for value in node.inputs if value is not None]
        small = all(value is not None and value.size <= FOLD_LIMIT for value in values)
        if not values or not small or node.domain or _holds_graph(node):
            continue
        for output, array in zip(node.outputs, _evaluate(node, model.opset_imports), strict=True):
            if array.size <= FOLD_LIMIT:
                _replace(model.graph, output, array)


def _fold_sizes(model: ir.Model) -> bool:
    """Reads sizes that are known (all but the batch, as a rule) where forward asks for them.

    Returns:
        Whether any was read.
    """
    asking = [
        node for node in model.graph if node.op_type == "Gather" and _is_shape(node.inputs[0])
    ]
    if not asking:
        return False
    common.ShapeInferencePass()(model)
    found = False
    for node in asking:
        size = _known_size(node)
        if size is not None and node.outputs[0].uses():
            _replace(model.graph, node.outputs[0], size)
            found = True
    return found


def _is_shape(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Shape" and not producer.attributes


def _known_size(gather: ir.Node) -> Array | None:
    shape_of, index = gather.inputs[0], gather.inputs[1]
    producer = shape_of.producer() if shape_of is not None else None
    source = producer.inputs[0] if producer is not None else None
    if source is None or source.shape is None or index is None or index.const_value is None:
        return None
    where = index.const_value.numpy()
    dims = [source.shape[int(i)] for i in where.ravel()]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    return np.asarray(dims, np.int64).reshape(where.shape)


def _replace(graph: ir.Graph, output: ir.Value, array: Array) -> None:
    if output.is_graph_output() or not output.uses():
        return  # unused: folded before
    tensor = ir.tensor(array)
    constant = ir.Value(
        name=f"{output.name}_folded",
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
        const_value=tensor,
    )
    graph.initializers.add(constant)
    ir.convenience.replace_all_uses_with(output, constant)


def _holds_graph(node: ir.Node) -> bool:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attributes.values())


def _evaluate(node: ir.Node, opsets: Mapping[str, int]) -> list[Array]:
    feeds = {v.name or "": v.const_value.numpy() for v in node.inputs if v and v.const_value}
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "constants",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(value.name or "") for value in node.outputs],
    )
    opset = onnx.helper.make_opsetid("", opsets[""])
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset]))
    return [np.asarray(array) for array in evaluator.run(None, feeds)]


def _rename(graph: ir.Graph, layers: frozenset[str]) -> None:
    scopes = {node: _module_path(node.name or "") for node in graph}
    crowd = Counter(path for path, _ in scopes.values())
    taken = {value.name or "" for value in [*graph.inputs, *graph.outputs]} | set(
        graph.initializers
    )
    names: set[str] = set()
    for node, (path, kind) in scopes.items():
        alone = crowd[path] == 1 and re.sub(r"_\d+$", "", path) in layers
        name = path if alone else ".".join(filter(None, [path, kind]))
        node.name = _fresh(name, names)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                suffix = f"_{index}" if len(node.outputs) > 1 else ""
                value.name = _fresh(f"{node.name}_output{suffix}", taken)


def _rename_constants(graph: ir.Graph, parameters: Collection[str]) -> None:
    taken = set(graph.initializers) | {v.name or "" for node in graph for v in node.outputs}
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.name not in parameters:
                value.name = _fresh(f"{node.name}_input_{index}", taken)


def _module_path(name: str) -> tuple[str, str]:
    """Module path and kind of a node: "/layer1/layer1.0/conv1/Conv": "layer1.0.conv1", "Conv".

    A child of a Sequential repeats the name of its parent in its own.
    """
    *scopes, kind = name.strip("/").split("/")
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(path[-1] + "."):
            path.pop()
        path.append(scope)
    return ".".join(path), re.sub(r"_\d+$", "", kind)  # counted anew where it is used


def _fresh(name: str, taken: set[str]) -> str:
    candidates: Iterable[str] = (f"{name}_{count}" for count in range(1, len(taken) + 2))
    fresh = name if name not in taken else next(c for c in candidates if c not in taken)
    taken.add(fresh)
    return fresh

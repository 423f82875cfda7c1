"""How far the network's outputs move when some weights change: divergence of scores, or noise.

The float network is cut in front of the layer that changes: what comes before it is run once for
all widths. Everything a task needs is bytes and arrays, so joblib may run it anywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from joblib import Parallel, delayed
from onnx import helper, numpy_helper

from onnxptq import ort
from onnxptq.calibrate.scores import class_scores, kl_divergence
from onnxptq.graph import io

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
Feeds = Mapping[str, Array]
Patch = Mapping[str, Array]
Sums = npt.NDArray[np.float64]
"""Divergence, samples, noise, signal."""

LEAST = 1e-300


def joined(sums: Iterable[Sums]) -> float:
    """The distance that sums of batches stand for: mean divergence, else noise to signal."""
    divergence, samples, noise, signal = np.sum(list(sums), axis=0)
    return float(divergence / samples) if samples else float(noise / max(signal, LEAST))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One layer at several widths, the rest of the network in float.

    Attributes:
        before: What computes the inputs of `after`; empty where the network's own inputs do.
        after: The layer and what depends on it; what changes are inputs.
        feeds: Inputs of the network, batch by batch.
        reference: Outputs of the float network for each.
        patches: Values of what changes, one a width.
    """

    before: bytes
    after: bytes
    feeds: Sequence[Feeds]
    reference: Sequence[Feeds]
    patches: Sequence[Patch]


def distances(task: Task) -> F64:
    """The distance of the outputs at each width."""
    before = ort.session(task.before, threads=1) if task.before else None
    after = ort.session(task.after, threads=1)
    found: list[list[Sums]] = []
    for feeds, expected in zip(task.feeds, task.reference, strict=True):
        values = {**feeds, **(_run(before, feeds) if before else {})}
        outputs = (_run(after, {**values, **patch}) for patch in task.patches)
        # What does not depend on the layer is what it was.
        found.append([_compare(expected, {**expected, **given}) for given in outputs])
    return np.array([joined(sums) for sums in zip(*found, strict=True)])


def changed(model: bytes, patch: Patch, feeds: Sequence[Feeds], reference: Sequence[Feeds]) -> F64:
    """Sums of each batch for the whole network with other constants, [batches, 4]."""
    proto = onnx.ModelProto.FromString(model)
    for tensor in proto.graph.initializer:
        if tensor.name in patch:
            tensor.CopyFrom(numpy_helper.from_array(patch[tensor.name], tensor.name))
    session = ort.session(proto.SerializeToString(), threads=1)
    pairs = zip(feeds, reference, strict=True)
    return np.array([_compare(expected, _run(session, given)) for given, expected in pairs])


class Network:
    """The float network with the samples that it is judged on."""

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds], jobs: int) -> None:
        self._bytes = io.to_bytes(model)
        self._jobs = jobs
        self._feeds = list(feeds)
        self._values = {
            str(value.name): value
            for node in model.graph
            for value in (*node.inputs, *node.outputs)
            if value is not None
        }
        session = ort.session(self._bytes, threads=1)
        self._reference = [_run(session, given) for given in self._feeds]

    def distance(self, patch: Patch) -> float:
        """How far the outputs are from the float ones when these constants are changed."""
        parts = _parts(len(self._feeds), self._jobs)
        found: Any = Parallel(n_jobs=self._jobs, prefer="threads")(
            delayed(changed)(self._bytes, patch, self._feeds[part], self._reference[part])
            for part in parts
        )
        return joined(sums for batches in found for sums in batches)

    def task(self, nodes: Sequence[ir.Node], patches: Sequence[Patch]) -> Task:
        """The work of judging changes of constants that only these nodes read."""
        proto = onnx.ModelProto.FromString(self._bytes)
        names = {str(node.name) for node in nodes}
        behind = list(proto.graph.node) if _has_bodies(proto) else _behind(proto, names)
        replaced = sorted(set().union(*patches))
        after = self._part(proto, behind, [str(v.name) for v in _outputs(proto, behind)], replaced)
        fed = [port.name for port in after.graph.input if port.name not in replaced]
        ahead = [name for name in fed if name not in {p.name for p in proto.graph.input}]
        before = b""
        if ahead:
            ids = {id(node) for node in behind}
            front = [node for node in proto.graph.node if id(node) not in ids]
            needed = _ahead(front, set(ahead))
            before = self._part(proto, needed, ahead, []).SerializeToString()
        kept = {"before": before, "after": after.SerializeToString()}
        return Task(**kept, feeds=self._feeds, reference=self._reference, patches=patches)

    def _part(
        self,
        proto: onnx.ModelProto,
        nodes: Sequence[onnx.NodeProto],
        outputs: Sequence[str],
        replaced: Sequence[str],
    ) -> onnx.ModelProto:
        """Some nodes as a model; what they read and do not make becomes an input."""
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        stored = {t.name: t for t in proto.graph.initializer if t.name not in replaced}
        bodies = _has_bodies(proto)
        whole = {port.name for port in proto.graph.input} if bodies else set[str]()
        inputs = [name for name in {**read, **dict.fromkeys(whole)} if name not in made]
        part = onnx.ModelProto()
        part.CopyFrom(proto)
        del part.graph.node[:], part.graph.input[:], part.graph.output[:]
        del part.graph.initializer[:], part.graph.value_info[:]
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(t for name, t in stored.items() if bodies or name in read)
        part.graph.input.extend(self._port(name) for name in inputs if name not in stored)
        part.graph.output.extend(self._port(name) for name in outputs)
        return part

    def _port(self, name: str) -> onnx.ValueInfoProto:
        value = self._values[name]
        kind = value.dtype or ir.DataType.FLOAT
        if value.shape is None:
            return helper.make_tensor_value_info(name, int(kind), None)
        sides = [side if isinstance(side, int) else None for side in value.shape]
        return helper.make_tensor_value_info(name, int(kind), sides)


def _run(session: ort.Session, feeds: Feeds) -> dict[str, Array]:
    return session.run({port.name: feeds[port.name] for port in session.inputs})


def _compare(expected: Feeds, found: Feeds) -> Sums:
    scores, measured = class_scores(expected), class_scores(found)
    noise = signal = 0.0
    for name, value in expected.items():
        if np.issubdtype(value.dtype, np.floating):
            real = value.astype(np.float64)
            signal += float(np.square(real).sum())
            noise += float(np.square(real - found[name]).sum())
    if scores is None or measured is None:
        return np.array([0.0, 0.0, noise, signal])
    return np.array([kl_divergence(scores, measured), len(scores), noise, signal])


def _parts(count: int, jobs: int) -> list[slice]:
    """Runs of batches, one a job; sums are kept batch by batch, so it does not matter how many."""
    jobs = max(1, min(jobs, count))
    ends = [count * job // jobs for job in range(jobs + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


def _has_bodies(proto: onnx.ModelProto) -> bool:
    """Whether a node may read values that are not among its inputs."""
    return any(a.HasField("g") or a.graphs for node in proto.graph.node for a in node.attribute)


def _behind(proto: onnx.ModelProto, names: set[str]) -> list[onnx.NodeProto]:
    """The nodes so named and all that depend on them."""
    reached: set[str] = set()
    found: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.name in names or reached.intersection(node.input):
            reached.update(name for name in node.output if name)
            found.append(node)
    return found


def _ahead(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that these values depend on."""
    found: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted = wanted | set(node.input)
            found.append(node)
    return found[::-1]


def _outputs(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> list[onnx.ValueInfoProto]:
    made = {name for node in nodes for name in node.output}
    return [port for port in proto.graph.output if port.name in made]

"""The only door to onnxruntime: sessions, taps, and the graph that it really runs."""

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxptq.errors import ModelError
from onnxptq.graph import io, skeleton
from onnxptq.graph.skeleton import size_bytes

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_NUMPY_TYPES = {
    "float": np.float32,
    "float16": np.float16,
    "double": np.float64,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint64": np.uint64,
    "bool": np.bool_,
}
_KINDS = {np.dtype(kind) for kind in _NUMPY_TYPES.values()}
_SHARED_ABOVE_BYTES = 1024  # small tensors stay in the message
_LONGEST_MESSAGE = 400  # characters
_PRECISION = "session.x64quantprecision"
_WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a session: name, numpy type, shape with names for symbolic dimensions.

    `dtype` is None for types numpy does not hold (strings, sequences, maps). Where not even the
    rank is known, a session gives an empty `shape` and `inputs` gives None.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


class Session:
    """A loaded model, safe to call from several threads at once."""

    def __init__(self, session: onnxruntime.InferenceSession, weights: Sequence[Any] = ()) -> None:
        self._session = session
        self._weights = weights  # what onnxruntime reads in place, and does not keep alive itself
        self.inputs: tuple[Port, ...] = tuple(map(_port, session.get_inputs()))
        self.outputs: tuple[Port, ...] = tuple(map(_port, session.get_outputs()))

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name; all of them, or those in `names`.

        Raises:
            ModelError: onnxruntime refuses the feeds or fails in a node; its message is passed on.
        """
        wanted = [port.name for port in self.outputs] if names is None else list(names)
        if not wanted:
            return {}  # onnxruntime takes an empty list for "all"
        try:
            results = self._session.run(wanted, dict(feeds))
        except Exception as error:
            raise ModelError(f"onnxruntime could not run the model: {_one_line(error)}") from error
        # Sequences and maps, which no array holds, pass through as they are.
        outputs: dict[str, Any] = dict(zip(wanted, results, strict=True))
        return outputs


def version() -> str:
    """Version of the installed onnxruntime, for example "1.31.1"."""
    return str(onnxruntime.__version__)


def session(
    model: bytes | Path | ir.Model,
    *,
    threads: int = 0,
    optimize: bool = True,
    write_optimized: Path | None = None,
    saturate: bool = True,
) -> Session:
    """Load a model on the CPU provider at onnxruntime's default options.

    Args:
        model: Serialised model, path, or model in memory.
        threads: Threads inside an operator; 0 for as many as there are cores.
        optimize: False switches all graph optimisations off: the unfused float QDQ graph.
        write_optimized: Where onnxruntime saves the graph it will run, its large weights beside it.
        saturate: False for sums of products that are exact on every CPU, as they are with VNNI.

    Raises:
        ModelError: onnxruntime refuses the model; its message is passed on.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and need not be printed too
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if not saturate:
        options.add_session_config_entry(_PRECISION, "1")
    if write_optimized is not None:
        options.optimized_model_filepath = str(write_optimized)
        weights = f"{write_optimized.name}.data"  # beside it: one message holds no 2 GiB
        options.add_session_config_entry(_WEIGHTS_FILE, weights)
    if isinstance(model, ir.Model):
        return _session_in_memory(model, options)
    source = str(model) if isinstance(model, Path) else model
    return _load(source, options)


def exact_session(model: bytes | Path | ir.Model) -> Session:
    """A session whose sums of products are exact on every CPU, as they are with VNNI.

    Where onnxruntime cannot do that (on a CPU without VNNI it refuses models in which two layers
    share a weight) they saturate.

    Raises:
        ModelError: onnxruntime refuses the model; its message is passed on.
    """
    try:
        return session(model, saturate=False)
    except ModelError:
        return session(model)


def _session_in_memory(model: ir.Model, options: Any) -> Session:
    if size_bytes(model) <= io.INLINE_LIMIT_BYTES:
        return _load(io.to_bytes(model), options)
    proto, stubs = skeleton.take_out(model, _SHARED_ABOVE_BYTES)
    names = {
        entry.value: tensor.name
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    # Weights of bodies, and types that numpy lacks, can only be read from a file.
    if names.keys() == stubs.keys() and all(t.dtype.numpy() in _KINDS for t in stubs.values()):
        arrays = [np.ascontiguousarray(stubs[place].numpy()) for place in names]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        options.add_external_initializers(list(names.values()), values)
        return _load(proto.SerializeToString(), options, [*arrays, *values])
    with tempfile.TemporaryDirectory(prefix="onnxptq-") as folder:
        path = Path(folder) / "model.onnx"
        io.save(model, path)
        return _load(str(path), options)


def _load(source: str | bytes, options: Any, weights: Sequence[Any] = ()) -> Session:
    try:
        loaded = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"onnxruntime {version()} does not load the model: {_first_line(error)}"
        ) from error
    return Session(loaded, weights)


def inputs(model: ir.Model) -> tuple[Port, ...]:
    """What a model is fed with, as it says itself: it is not loaded."""
    constants = model.graph.initializers
    return tuple(_declared(value) for value in model.graph.inputs if value.name not in constants)


def _declared(value: ir.Value) -> Port:
    dtype = np.dtype(value.dtype.numpy()) if value.dtype is not None else None
    known = dtype in _KINDS and isinstance(value.type, ir.TensorType)
    sides = value.shape
    shape = None if sides is None else tuple(map(free_or_fixed, sides))
    return Port(str(value.name), dtype if known else None, shape)


def free_or_fixed(side: int | ir.SymbolicDim) -> int | str | None:
    """A fixed size, or the name of a free one; some exporters write free ones as -1."""
    if isinstance(side, int):
        return side if side >= 0 else None
    return side.value


def optimized(model: bytes | Path | ir.Model) -> onnx.ModelProto:
    """The graph that onnxruntime runs on this machine after all of its optimisations."""
    with tempfile.TemporaryDirectory(prefix="onnxptq-") as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, threads=1, write_optimized=path)
        return onnx.load(str(path), load_external_data=False)


def running_graph(model: bytes | Path | ir.Model) -> ir.Model:
    """The graph that onnxruntime runs on this machine, with its weights.

    Float convolutions may be in a layout of this CPU's vector width (`BLOCKED_DOMAIN`).
    """
    with tempfile.TemporaryDirectory(prefix="onnxptq-") as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, threads=1, write_optimized=path)
        return io.load(path)  # its weights stay mapped when the folder is gone


BLOCKED_DOMAIN = "com.microsoft.nchwc"
_ADDED = re.compile(r"(_token_\d+|_nhwc|_nchwc)+$")


def plain_name(name: str) -> str:
    """A node's name without what onnxruntime's fusions added to it."""
    return _ADDED.sub("", name)


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of `model` whose graph also outputs these values (weights are shared, not copied)."""
    tapped = model.clone()
    present = {value.name for value in tapped.graph.outputs}
    wanted = [name for name in names if name not in present]
    values = {value.name: value for node in tapped.graph for value in node.outputs}
    for name in wanted:
        tapped.graph.outputs.append(values[name])
    return tapped


def constants(model: ir.Model, names: Iterable[str]) -> dict[str, Array]:
    """Values that depend on initializers only, computed by onnxruntime."""
    wanted = list(names)
    computed = model.clone()
    graph = computed.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in wanted)
    RemoveUnusedNodesPass()(computed)
    graph.inputs.clear()
    return session(computed, threads=1).run({}, wanted)


def _port(argument: Any) -> Port:
    kind = str(argument.type).removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype(_NUMPY_TYPES[kind]) if kind in _NUMPY_TYPES else None
    return Port(str(argument.name), dtype, tuple(argument.shape))


def _one_line(error: Exception) -> str:
    """The whole message: which dimension does not fit stands in its second line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

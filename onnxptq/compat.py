"""`quantize_static` with onnxruntime's signature, for code that calls onnxruntime's.

onnxruntime's enumerations and their names as text are both accepted: `QuantType.QUInt8`, "QUInt8".
What onnxptq would do otherwise than asked for is refused with the reason, never ignored.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx

from onnxptq import passes, pipeline, spec
from onnxptq.errors import CalibrationError, SpecError
from onnxptq.graph import io


class Named(Protocol):
    """A member of one of onnxruntime's enumerations, known by its name."""

    @property
    def name(self) -> str:
        """For example "QUInt8"."""
        ...


class Reader(Protocol):
    """onnxruntime's CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Any] | None:
        """The next feed; None after the last."""
        ...


_WEIGHT_BITS = {"QInt8": 8, "QInt4": 4}
_ACTIVATION_BITS = {"QUInt8": 8, "QUInt4": 4}
_METHODS = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
_WEIGHTS_SIGNED = "weights are int8 with zero point 0, which runs 1.6 times faster; use QInt8"
_ACTIVATIONS_UNSIGNED = (
    "activations are uint8, the type that onnxruntime fuses with Relu; the range is as fine as that"
    " of QInt8: use QUInt8"
)
_SIXTEEN_BITS = "onnxruntime has no 16-bit integer kernels on the CPU; use 8 bits"


@dataclass(frozen=True, slots=True)
class _Neutral:
    """An extra option of onnxruntime that is accepted only where it changes nothing.

    Attributes:
        values: What may be asked for.
        why: The reason why nothing else may.
    """

    values: tuple[Any, ...]
    why: str


_NEUTRAL = {
    "ActivationSymmetric": _Neutral((False,), "activations have zero points: the finer grid"),
    "ActivationRestrictedAsymmetric": _Neutral((False,), "zero points are not restricted"),
    "WeightSymmetric": _Neutral((True,), _WEIGHTS_SIGNED),
    "QuantizeBias": _Neutral((True,), "integer kernels need integer biases"),
    "AddQDQPairToWeight": _Neutral((False,), "weights are stored as codes"),
    "DedicatedQDQPair": _Neutral((False,), "one pair a tensor; copies of it do not fuse better"),
    "EnableSubgraph": _Neutral((False,), "bodies of If, Loop and Scan stay in float"),
    "ForceQuantizeNoInputCheck": _Neutral((False,), "Q/DQ are placed where they fuse"),
    "MatMulConstBOnly": _Neutral((False,), "exclude such nodes with nodes_to_exclude"),
    "OpTypesToExcludeOutputQuantization": _Neutral(([], None), "it would break the fusion"),
    "QDQOpTypePerChannelSupportToAxis": _Neutral(({}, None), "the axis follows from the operator"),
    "QDQKeepRemovableActivations": _Neutral((False,), "the file is for onnxruntime's CPU provider"),
    "QDQDisableWeightAdjustForInt32Bias": _Neutral((False,), "the bias would overflow"),
    "CalibTensorRangeSymmetric": _Neutral((False,), "activations have zero points"),
    "CalibMovingAverage": _Neutral((False,), "use calibrate_method Percentile against outliers"),
    "CalibMovingAverageConstant": _Neutral((0.01,), "there is no moving average"),
    "CalibStridedMinMax": _Neutral((None,), "calibration takes constant memory without it"),
    "SmoothQuant": _Neutral((False,), "it is not built in"),
    "UseQDQContribOps": _Neutral((False,), "standard operators are written"),
    "MinimumRealRange": _Neutral((None,), "it is for other execution providers"),
    "TensorQuantOverrides": _Neutral(({}, None), "edit a recipe instead (onnxptq.quantize)"),
    "extra.Sigmoid.nnapi": _Neutral((False,), "the file is for onnxruntime's CPU provider"),
}


def quantize_static(
    model_input: str | Path | onnx.ModelProto,
    model_output: str | Path,
    calibration_data_reader: Reader | None = None,
    quant_format: Named | str = "QDQ",
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool = True,
    reduce_range: bool = False,
    activation_type: Named | str = "QUInt8",
    weight_type: Named | str = "QInt8",
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibrate_method: Named | str = "MinMax",
    calibration_providers: Sequence[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
    calibration_cache_path: str | Path | None = None,
) -> None:
    """Quantize a model and write it, called as onnxruntime's function of this name.

    Three defaults are those that onnxruntime's manual advises for x86, not those of its code:
    activation_type is QUInt8, per_channel is True, and quant_format is QDQ.

    Args:
        model_input: The float model.
        model_output: The file to write.
        calibration_data_reader: Feeds, one `get_next` each.
        quant_format: QDQ; QOperator is refused.
        op_types_to_quantize: Only these operators; None or empty for all that can be.
        per_channel: One weight scale per output channel.
        reduce_range: 7-bit weights, for CPUs without VNNI.
        activation_type: QUInt8 or QUInt4.
        weight_type: QInt8 or QInt4.
        nodes_to_quantize: Only these nodes; None or empty for all.
        nodes_to_exclude: Nodes that stay in float.
        use_external_data_format: Accepted; external data are written above 1.9 GiB in any case.
        calibrate_method: MinMax, Entropy or Percentile.
        calibration_providers: None or ["CPUExecutionProvider"].
        extra_options: onnxruntime's; those that would change the file in a way that is not built in
            are refused by name.
        calibration_cache_path: Refused; `onnxptq.quantize(stats=...)` keeps calibration.

    Raises:
        SpecError: A value or an extra option is unknown or not supported.
        CalibrationError: No reader, or its feeds do not fit the model.
        ModelError: The model cannot be read or the output not written.
    """
    del use_external_data_format
    io.writable(Path(model_output))
    _refuse_others("quant_format", quant_format, {"QDQ": "", "QOperator": ""}, "QDQ")
    _check_runtime(calibration_data_reader, calibration_providers, calibration_cache_path)
    bits = _bits(weight_type, activation_type, reduce_range)
    method = _method(calibrate_method, extra_options or {})
    keep_float = _excluded(model_input, op_types_to_quantize, nodes_to_quantize, nodes_to_exclude)
    quantized = pipeline.quantize(
        model_input,
        calibration_data_reader,
        bits=bits,
        method=method,
        per_channel=per_channel,
        float_patterns=keep_float,
        report_samples=0,  # a reader is read once, and nothing of the report is returned
    )
    quantized.save(Path(model_output))


def _name(value: Named | str) -> str:
    return value if isinstance(value, str) else value.name


def _refuse_others(what: str, value: Named | str, known: Mapping[str, str], *supported: str) -> str:
    """The name of `value` if it is supported.

    Raises:
        SpecError: It is unknown, or `known` gives the reason why it is refused.
    """
    name = _name(value)
    if name not in known:
        raise spec.unknown(what, name, known)
    if name not in supported:
        reason = f" ({known[name]})" if known[name] else ""
        raise SpecError(f"{what} {name} is not supported{reason}; use {' or '.join(supported)}")
    return name


def _check_runtime(reader: object, providers: Sequence[str] | None, cache: object) -> None:
    if reader is None:
        raise CalibrationError("calibration_data_reader is None: no data to calibrate on")
    if providers and list(providers) != ["CPUExecutionProvider"]:
        raise SpecError(
            f"calibration_providers {list(providers)}: calibration runs on CPUExecutionProvider"
        )
    if cache is not None:
        raise SpecError(
            "calibration_cache_path is not supported: onnxruntime's cache holds ranges, not"
            " histograms; onnxptq.quantize(..., stats=FILE) keeps calibration between runs"
        )


def _bits(weight: Named | str, activation: Named | str, reduce_range: bool) -> str:
    """The `bits` text of the two types."""
    other = {"QInt16": _SIXTEEN_BITS, "QUInt16": _SIXTEEN_BITS, "QFLOAT8E4M3FN": "not an integer"}
    weights = other | {"QUInt8": _WEIGHTS_SIGNED, "QUInt4": _WEIGHTS_SIGNED}
    activations = other | {"QInt8": _ACTIVATIONS_UNSIGNED, "QInt4": _ACTIVATIONS_UNSIGNED}
    weights |= dict.fromkeys(_WEIGHT_BITS, "")
    activations |= dict.fromkeys(_ACTIVATION_BITS, "")
    w = _WEIGHT_BITS[_refuse_others("weight_type", weight, weights, *_WEIGHT_BITS)]
    a = _ACTIVATION_BITS[
        _refuse_others("activation_type", activation, activations, *_ACTIVATION_BITS)
    ]
    if reduce_range and w == 8:
        w = 7  # onnxruntime's own meaning of reduce_range
    return f"w{w}a{a}"


def _method(calibrate_method: Named | str, extra_options: Mapping[str, Any]) -> str:
    """Text of the calibration method; checks all extra options."""
    known = dict.fromkeys(_METHODS, "") | {"Distribution": "it is for 8-bit floats"}
    name = _refuse_others("calibrate_method", calibrate_method, known, *_METHODS)
    options = dict(extra_options)
    options.pop("CalibMaxIntermediateOutputs", None)  # bounds memory, which is constant here
    percentile = options.pop("CalibPercentile", None)
    for option, value in options.items():
        if option not in _NEUTRAL:
            raise spec.unknown("extra option", option, [*_NEUTRAL, *_USED_OPTIONS])
        if value not in _NEUTRAL[option].values:
            raise SpecError(
                f"extra option {option}={value!r} is not supported: {_NEUTRAL[option].why}"
            )
    if name == "Percentile" and percentile is not None:
        return f"percentile{{percent={_number('CalibPercentile', percentile)}}}"
    return _METHODS[name]


def _number(option: str, value: object) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise SpecError(f"extra option {option}={value!r} is not a number")


_USED_OPTIONS = ("CalibMaxIntermediateOutputs", "CalibPercentile")


def _excluded(
    model: str | Path | onnx.ModelProto,
    types: Sequence[str] | None,
    nodes: Sequence[str] | None,
    excluded: Sequence[str] | None,
) -> tuple[str, ...]:
    """Patterns of all that stays in float: operator types, and escaped node names.

    Raises:
        SpecError: A node to quantize does not exist.
    """
    if not (types or nodes or excluded):
        return ()
    in_memory = isinstance(model, onnx.ModelProto)
    loaded = io.from_proto(model, "model_input") if in_memory else io.load(Path(model))
    before = {str(node.name) for node in loaded.graph}
    after = {str(node.name): node.op_type for node in passes.prepare(loaded).model.graph}
    patterns: list[str] = []
    if types:
        patterns += sorted(set(after.values()) - set(types))
    if nodes:
        for name in sorted(set(nodes) - before - set(after)):
            raise spec.unknown("node in nodes_to_quantize", name, after)
        patterns += (_escape(name) for name in sorted(set(after) - set(nodes)))
    # A node that was folded into another, as BatchNorm is, needs no exclusion any more.
    patterns += (_escape(name) for name in excluded or () if name in after or name not in before)
    return tuple(patterns)


def _escape(name: str) -> str:
    """`name` as a pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", name)

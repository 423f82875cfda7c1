"""Recipe: what each tensor gets and who decided it. Frozen, diffable, saved as one readable file.

A method is a function from recipe to recipe; the graph carries no decisions.
"""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.errors import SpecError
from onnxptq.quant import F32, I32, QParams, QuantSpec

IntArray = npt.NDArray[np.integer]
FORMAT = "onnxptq.recipe/1"
OPTIONAL = ("channel_scales", "channel_shifts", "borders", "rounding_scales", "widths")
"""Entries that most recipes do not have."""


class Role(enum.StrEnum):
    """What a tensor is to the network."""

    INPUT = "input"
    ACTIVATION = "activation"
    CONSTANT = "constant"
    WEIGHT = "weight"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class TensorQuant:
    """One decision: this ONNX value is stored with these parameters.

    Attributes:
        value: The ONNX value name.
        role: What it is to the network. Biases have no entry: their scale is the product of two
            others.
        params: Format, scale and zero point.
        tied_to: The value whose parameters this one shares (concat, pooling, reshape); None if it
            is free.
        set_by: Text of the method that chose the range; empty while none has.
    """

    value: str
    role: Role
    params: QParams
    tied_to: str | None = None
    set_by: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One method that was applied: its text, seed, time, and the numbers it reported."""

    method: str
    seed: int = 0
    seconds: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Recipe:
    """All decisions for one model; an entry that is absent was not decided, so it stays in float.

    Attributes:
        model_digest: Digest of the prepared float model that the names belong to.
        tensors: Value name to decision.
        float_nodes: Node name to the reason why it stays in float.
        codes: Weight name to integer codes, where the rounding is not to nearest.
        biases: Bias name to corrected real values.
        channel_scales: Value name to one factor a channel (axis 1), above 0: what is stored is
            value / scale + shift. The layer that makes the value sees to it, and the layers that
            read it undo it (`rewrite.channels`).
        channel_shifts: Value name to one number a channel, added behind the scale; see there.
            Weights, codes, biases and ranges are those of the model that all this was applied to.
        borders: Activation name to the borders of each channel, in steps, [C, levels]: level k + 1
            begins k + border steps above the lowest code. Absent where it is one half everywhere.
        rounding_scales: Activation name to the scale that QuantizeLinear divides it by, [], where
            that is not the one that its codes stand for.
        widths: Weight name to the bits of each channel, [C], where they differ: a channel's codes
            are the first 2^width of its window, of one code at width 0.
        steps: The methods applied so far, in order.
    """

    model_digest: str
    tensors: Mapping[str, TensorQuant] = field(default_factory=dict[str, TensorQuant])
    float_nodes: Mapping[str, str] = field(default_factory=dict[str, str])
    codes: Mapping[str, IntArray] = field(default_factory=dict[str, IntArray])
    biases: Mapping[str, F32] = field(default_factory=dict[str, F32])
    channel_scales: Mapping[str, F32] = field(default_factory=dict[str, F32])
    channel_shifts: Mapping[str, F32] = field(default_factory=dict[str, F32])
    borders: Mapping[str, F32] = field(default_factory=dict[str, F32])
    rounding_scales: Mapping[str, F32] = field(default_factory=dict[str, F32])
    widths: Mapping[str, I32] = field(default_factory=dict[str, I32])
    steps: tuple[Step, ...] = ()

    def activations(self) -> tuple[TensorQuant, ...]:
        """The free activations, input and output too: those whose range a method chooses."""
        fixed = (Role.WEIGHT, Role.CONSTANT)
        return tuple(
            tensor
            for tensor in self.tensors.values()
            if tensor.role not in fixed and tensor.tied_to is None
        )

    def weights(self) -> tuple[TensorQuant, ...]:
        """The quantized weights."""
        return tuple(t for t in self.tensors.values() if t.role is Role.WEIGHT)

    def code_ends(self, weight: str) -> tuple[I32, I32]:
        """First and last code of each channel of a weight, of the shape of its scale."""
        params = self.tensors[weight].params
        widths = self.widths.get(weight)
        if widths is None:
            return params.code_lo, params.code_hi
        top = params.code_lo + (1 << widths.reshape(params.code_lo.shape)) - 1
        return params.code_lo, np.minimum(top, params.code_hi).astype(np.int32)

    def with_params(self, params: Mapping[str, QParams], set_by: str) -> "Recipe":
        """A recipe with new parameters for these values and for all that are tied to them.

        Codes and widths that were chosen for the old parameters are dropped; the scale that an
        activation is rounded by keeps its ratio to the new one.

        Raises:
            SpecError: A value is not in the recipe.
        """
        for value in params:
            if value not in self.tensors:
                raise SpecError(f"value {value!r} is not quantized in this recipe")
        tensors = dict(self.tensors)
        for name, tensor in tensors.items():
            root = tensor.tied_to or name
            if root in params:
                tensors[name] = replace(tensor, params=params[root], set_by=set_by)
        codes = {name: codes for name, codes in self.codes.items() if name not in params}
        widths = {name: bits for name, bits in self.widths.items() if name not in params}
        roundings = dict(self.rounding_scales)
        for name in roundings.keys() & params.keys():
            ratio = params[name].scale / self.tensors[name].params.scale
            roundings[name] = np.asarray(roundings[name] * ratio, np.float32)
        return replace(self, tensors=tensors, codes=codes, widths=widths, rounding_scales=roundings)

    def with_range(self, value: str, lo: float, hi: float, set_by: str) -> "Recipe":
        """A recipe in which `value` (and what is tied to it) covers the real range [lo, hi]."""
        spec = self.tensors[value].params.spec
        return self.with_params({value: QParams.from_range(lo, hi, spec)}, set_by)

    def with_step(self, step: Step) -> "Recipe":
        """A recipe that remembers one more applied method."""
        return replace(self, steps=(*self.steps, step))

    def undecided(self) -> tuple[str, ...]:
        """Values whose range no method has chosen yet."""
        return tuple(sorted(name for name, tensor in self.tensors.items() if not tensor.set_by))

    def to_json(self) -> str:
        """The recipe as text; equal recipes give equal text, and float32 values are exact."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "model_digest": self.model_digest,
            "steps": [_step_to_dict(step) for step in self.steps],
            "float_nodes": dict(sorted(self.float_nodes.items())),
            "tensors": {name: _tensor_to_dict(self.tensors[name]) for name in sorted(self.tensors)},
            "codes": {name: _array_to_dict(self.codes[name]) for name in sorted(self.codes)},
            "biases": _vectors_to_dict(self.biases),
            "channel_scales": _vectors_to_dict(self.channel_scales),
            "channel_shifts": _vectors_to_dict(self.channel_shifts),
            "borders": _vectors_to_dict(self.borders),
            "rounding_scales": _vectors_to_dict(self.rounding_scales),
            "widths": {name: self.widths[name].tolist() for name in sorted(self.widths)},
        }
        # Most recipes have none of these, and then say nothing of them, as before there were any.
        for name in OPTIONAL:
            if not data[name]:
                del data[name]
        return _dump(data)

    @classmethod
    def from_json(cls, text: str, source: str = "recipe") -> "Recipe":
        """Read what `to_json` wrote.

        Raises:
            SpecError: Not a recipe, or an entry is missing or malformed.
        """
        try:
            data = json.loads(text)
            if data.get("format") != FORMAT:
                raise SpecError(
                    f"{source}: not a recipe (format is {data.get('format')!r}, not {FORMAT!r}); "
                    "give a file that --save-recipe wrote"
                )
            return cls(
                model_digest=data["model_digest"],
                tensors={
                    name: _tensor_from_dict(name, entry) for name, entry in data["tensors"].items()
                },
                float_nodes=data["float_nodes"],
                codes={name: _array_from_dict(entry) for name, entry in data["codes"].items()},
                biases=_vectors_from_dict(data["biases"]),
                channel_scales=_vectors_from_dict(data.get("channel_scales", {})),
                channel_shifts=_vectors_from_dict(data.get("channel_shifts", {})),
                borders=_vectors_from_dict(data.get("borders", {})),
                rounding_scales=_vectors_from_dict(data.get("rounding_scales", {})),
                widths={
                    name: np.asarray(entry, np.int32)
                    for name, entry in data.get("widths", {}).items()
                },
                steps=tuple(Step(**entry) for entry in data["steps"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(
                f"{source}: not a recipe ({type(error).__name__}: {error}); "
                "give a file that --save-recipe wrote"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a recipe file.

        Raises:
            SpecError: The file cannot be read or is no recipe.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: cannot read the recipe ({error})") from error
        return cls.from_json(text, str(path))


def _step_to_dict(step: Step) -> dict[str, Any]:
    # Seconds differ from run to run; leaving them out keeps equal decisions equal files.
    return {"method": step.method, "seed": step.seed, "numbers": dict(sorted(step.numbers.items()))}


def alike(first: TensorQuant, second: TensorQuant) -> bool:
    """Whether two decisions are the same, number by number."""
    return first is second or _tensor_to_dict(first) == _tensor_to_dict(second)


def describe(tensor: TensorQuant) -> dict[str, Any]:
    """A decision but for its scale and zero point, which a QDQ file holds as tensors."""
    spec = tensor.params.spec
    return {
        "value": tensor.value,
        "role": str(tensor.role),
        "bits": spec.bits,
        "signed": spec.signed,
        "axis": spec.axis,
        "code_lo": _window_starts(tensor.params.code_lo),
        "tied_to": tensor.tied_to,
        "set_by": tensor.set_by,
    }


def from_description(entry: Mapping[str, Any], scale: F32, zero_point: I32) -> TensorQuant:
    """The decision that `describe` described, with the two tensors it left out."""
    spec = QuantSpec(bits=entry["bits"], signed=entry["signed"], axis=entry["axis"])
    code_lo = _read_window_starts(entry["code_lo"], scale.size)
    params = QParams(spec, scale, _like(zero_point, scale), _like(code_lo, scale))
    return TensorQuant(
        entry["value"], Role(entry["role"]), params, entry["tied_to"], entry["set_by"]
    )


PROVENANCE_DEFAULTS: Mapping[str, Any] = {
    "role": "activation",
    "bits": 8,
    "signed": False,
    "axis": None,
    "code_lo": 0,
    "tied_to": None,
    "set_by": "",
}


def provenance(tensor: TensorQuant) -> str:
    """`describe` as text for a node's metadata; what is usual is left out, for small files."""
    entry = describe(tensor)
    kept = {key: entry[key] for key, usual in PROVENANCE_DEFAULTS.items() if entry[key] != usual}
    return json.dumps(kept, separators=(",", ":"))


def read_provenance(text: str, value: str) -> dict[str, Any]:
    """The entry behind a `provenance` text of the value so named.

    Raises:
        ValueError: Not such a text.
    """
    entry = json.loads(text)
    if not isinstance(entry, dict):
        raise ValueError(f"{text!r} is no JSON object")  # noqa: TRY004 - as json's own errors
    return {**PROVENANCE_DEFAULTS, **entry, "value": value}


def _window_starts(code_lo: I32) -> Any:
    """One number, or "-2:9c0f": the lowest one, and as bits which channels begin one above it.

    A list of numbers would take more room in a file than 1-bit weights.
    """
    first = int(code_lo.min()) if code_lo.size else 0
    shifted = code_lo - first
    if not shifted.any() or int(shifted.max()) > 1:
        return _ints(code_lo)
    return f"{first}:{np.packbits(shifted.astype(np.uint8).reshape(-1)).tobytes().hex()}"


def _read_window_starts(entry: Any, channels: int) -> Any:
    if not isinstance(entry, str):
        return entry
    first, _, shifted = entry.partition(":")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(shifted), np.uint8), count=channels)
    return int(first) + bits.astype(np.int32)


def _like(values: npt.ArrayLike, scale: F32) -> I32:
    return np.broadcast_to(np.asarray(values, np.int32), scale.shape).copy()


def _tensor_to_dict(tensor: TensorQuant) -> dict[str, Any]:
    numbers = {
        "scale": _floats(tensor.params.scale),
        "zero_point": _ints(tensor.params.zero_point),
    }
    return {**numbers, **describe(tensor)}


def _tensor_from_dict(name: str, entry: Mapping[str, Any]) -> TensorQuant:
    scale = np.asarray(entry["scale"], np.float32)
    try:
        return from_description({**entry, "value": name}, scale, _like(entry["zero_point"], scale))
    except SpecError as error:
        raise ValueError(f"tensor {name!r}: {error}") from error


def _floats(values: F32) -> Any:
    """Shortest decimals that give back the same float32."""
    if values.ndim == 0:
        return float(str(np.float32(values)))
    return [_floats(row) for row in values]


def _vectors_to_dict(vectors: Mapping[str, F32]) -> dict[str, Any]:
    return {name: _floats(vectors[name]) for name in sorted(vectors)}


def _vectors_from_dict(entries: Mapping[str, Any]) -> dict[str, F32]:
    return {name: np.asarray(entry, np.float32) for name, entry in entries.items()}


def _ints(values: npt.NDArray[np.int32]) -> Any:
    """One number if all are equal, else the list."""
    return (
        int(values.flat[0]) if values.size and (values == values.flat[0]).all() else values.tolist()
    )


def _array_to_dict(codes: IntArray) -> dict[str, Any]:
    return {"dtype": str(codes.dtype), "shape": list(codes.shape), "codes": codes.ravel().tolist()}


def _array_from_dict(entry: Mapping[str, Any]) -> IntArray:
    return np.asarray(entry["codes"], np.dtype(entry["dtype"])).reshape(entry["shape"])


def _dump(data: Mapping[str, Any]) -> str:
    """One line an entry, so that a diff names the tensor."""
    lines = ["{"]
    for position, (key, value) in enumerate(data.items()):
        comma = "," if position + 1 < len(data) else ""
        if isinstance(value, dict) and value:
            items: list[tuple[str, Any]] = list(value.items())
            body = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in items]
            lines += [f"  {json.dumps(key)}: {{", ",\n".join(body), "  }" + comma]
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}{comma}")
    return "\n".join([*lines, "}"]) + "\n"

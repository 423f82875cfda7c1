"""allocate-bits: a weight's bits spread over its output channels, more where they save more."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from onnxptq.errors import SpecError
from onnxptq.kernels import numeric
from onnxptq.methods import clip_constants
from onnxptq.methods.allocation import by_bins, by_bits
from onnxptq.methods.clip_constants import Prior
from onnxptq.methods.method import Context
from onnxptq.methods.weights import SHRINKS, WeightsMse, channel_rows, weight_array
from onnxptq.quant import F32, SMALLEST_SCALE, QParams, QuantSpec
from onnxptq.recipe import Recipe, Step
from onnxptq.rewrite.storage import packed_bytes
from onnxptq.rewrite.weights import weight_codes
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

ONE_BIT_GRIDS = np.array([[0, 1], [-1, 0]], np.int32)
"""A window of two codes holds 0 and one other."""


@dataclass(frozen=True)
class AllocateBits:
    """Give channels of a weight different widths at the same number of bits, and scales to fit.

    A channel of fewer bits uses fewer of the codes; in a file each code still takes the bits of
    its weight's widest channel, so this buys accuracy at equal information, not a smaller file. The
    numbers of the step in the recipe say what it came to: `mean_bits` nominal bits, `packed_bytes`
    as the file stores the codes, `entropy_bytes` as an ideal entropy coder would.

    It takes the place of `weights-mse`, and belongs behind all that chooses other scales.

    Attributes:
        budget: "bits": the mean width is kept exactly, with the least squared error; "bins": the
            paper's budget of 2^bits values, its mean width near the nominal one.
        prior: What tells a channel's range: "std", as the paper has it for weights, or "laplace",
            the mean absolute deviation.
        scales: "mse": the least |error|^2.4 at each channel's own width; "aciq": the best clip of
            a Gauss (with prior=laplace, Laplace) law of that width.
        lowest: Fewest bits of a channel; 1 leaves 0 and one other value, 0 nothing but 0.
        highest: Most bits of a channel.
        up_to: Weights of more nominal bits are left as they are.

    Source:
        Banner et al. 2018 (arXiv:1810.05723), section 4; methods.md 3.
    """

    name: ClassVar[str] = "allocate-bits"

    budget: Literal["bits", "bins"] = "bits"
    prior: Literal["std", "laplace"] = "std"
    scales: Literal["mse", "aciq"] = "mse"
    lowest: int = 2
    highest: int = 8
    up_to: int = 4  # as the authors' code

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= 2:
            raise SpecError(f"{self.name}: lowest is {self.lowest}, it must be 0, 1 or 2")
        for option in ("highest", "up_to"):
            if not 2 <= getattr(self, option) <= 8:
                raise SpecError(f"{self.name}: {option.replace('_', '-')} must be 2 to 8")

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with widths, scales and codes of the weights that have a channel axis."""
        params: dict[str, QParams] = {}
        widths: dict[str, I32] = {}
        for tensor in recipe.weights():
            spec = tensor.params.spec
            if spec.axis is None or not spec.bits <= min(self.up_to, self.highest):
                continue
            rows = channel_rows(weight_array(ctx.model, tensor.value), spec.axis)
            widths[tensor.value] = self.widths(rows, spec.bits)
            params[tensor.value] = self._params(rows, spec, widths[tensor.value])
        decided = recipe.with_params(params, to_text(self))
        decided = replace(decided, widths={**decided.widths, **widths})
        codes = {name: _codes(decided, name, ctx) for name in widths}
        decided = replace(decided, codes={**decided.codes, **codes})
        return decided.with_step(Step(self.name, numbers=self._numbers(decided, ctx)))

    def _numbers(self, recipe: Recipe, ctx: Context) -> dict[str, float]:
        """Mean width, and bytes of all weights' codes as stored and as an entropy coder's."""
        bits = elements = stored = entropy = 0.0
        for tensor in recipe.weights():
            spec, name = tensor.params.spec, tensor.value
            array = weight_array(ctx.model, name)
            codes = weight_codes(array, tensor.params, recipe.codes.get(name))
            mean = float(recipe.widths[name].mean()) if name in recipe.widths else spec.bits
            bits += mean * codes.size
            elements += codes.size
            stored += packed_bytes(codes.size, spec.bits)
            entropy += code_entropy(codes) * codes.size / 8
        mean_bits = bits / elements if elements else 0.0
        return {"mean_bits": mean_bits, "packed_bytes": stored, "entropy_bytes": entropy}

    def widths(self, rows: F32, bits: int) -> I32:
        """Bits of each channel of weights [C, K], [C]."""
        spread = by_bits if self.budget == "bits" else by_bins
        return spread(self._ranges(rows), bits, (self.lowest, self.highest))

    def _ranges(self, rows: F32) -> F64:
        real = rows.astype(np.float64)
        if self.prior == "std":
            return np.asarray(real.std(axis=1), np.float64)
        return np.asarray(np.abs(real - real.mean(axis=1, keepdims=True)).mean(axis=1), np.float64)

    def _params(self, rows: F32, spec: QuantSpec, widths: I32) -> QParams:
        """Scale and window of each channel at its own width."""
        scale = np.ones(rows.shape[0], np.float32)
        code_lo = np.zeros(rows.shape[0], np.int32)
        for width in np.unique(widths).tolist():
            chosen = widths == width
            scale[chosen], code_lo[chosen] = self._fit(rows[chosen], spec, int(width))
        scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), np.float32(1))
        widest = replace(spec, bits=max(2, int(widths.max(initial=2))))
        return QParams(widest, scale.astype(np.float32), np.zeros_like(code_lo), code_lo)

    def _fit(self, rows: F32, spec: QuantSpec, width: int) -> tuple[F32, I32]:
        """Scale and lowest code of channels of one width."""
        if width == 0:
            # Nothing but 0, at a scale that still resolves the bias.
            largest = np.abs(rows).max(axis=1, initial=0.0)
            return (largest / 127).astype(np.float32), np.zeros(rows.shape[0], np.int32)
        if width == 1:
            return _one_bit(rows)
        if self.scales == "mse" or width == 8:
            return WeightsMse().fit(rows, replace(spec, bits=width))
        prior: Prior = "gauss" if self.prior == "std" else "laplace"
        scale = self._ranges(rows) * clip_constants.full(prior, width)
        lowest = replace(spec, bits=width).default_code_lo
        return scale.astype(np.float32), np.full(rows.shape[0], lowest, np.int32)


def _one_bit(rows: F32) -> tuple[F32, I32]:
    """The value beside 0 that suits each channel best, and on which side it lies."""
    scales, chosen = np.empty(rows.shape[0], np.float32), np.empty(rows.shape[0], np.int32)
    numeric.search_weights(rows, SHRINKS, ONE_BIT_GRIDS, WeightsMse().p, scales, chosen)
    return scales, ONE_BIT_GRIDS[chosen, 0]


def _codes(recipe: Recipe, name: str, ctx: Context) -> npt.NDArray[np.int8]:
    """A weight rounded to nearest inside of its channels' windows."""
    array, params = weight_array(ctx.model, name), recipe.tensors[name].params
    low, high = (params.along(end, array.ndim) for end in recipe.code_ends(name))
    steps = np.rint(array / params.along(params.scale, array.ndim))
    return np.clip(steps, low, high).astype(np.int8)


def code_entropy(codes: npt.NDArray[np.int8]) -> float:
    """Shannon entropy of the codes of a weight, in bits a code."""
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / max(codes.size, 1)
    return float(-(shares * np.log2(shares)).sum())

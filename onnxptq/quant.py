"""Integer formats and the affine map: real = scale * (code - zero_point)."""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onnxptq.errors import CalibrationError, SpecError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Number = TypeVar("Number", np.int32, np.float32)

SMALLEST_SCALE = np.float32(2.0**-100)
"""Below this, products of two scales leave float32's normal range and lose digits."""


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one tensor may be stored: `bits` wide codes inside an 8-bit container.

    Attributes:
        bits: Width of a code, 2 to 8.
        signed: int8 container (weights) or uint8 (activations).
        axis: Channel axis of per-channel parameters; None for one scale in all.
    """

    bits: int
    signed: bool
    axis: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SpecError(f"bits is {self.bits}; a tensor takes 2 to 8 bits")

    @property
    def container(self) -> np.dtype[np.int8] | np.dtype[np.uint8]:
        """The 8-bit numpy type that holds the codes."""
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)

    @property
    def levels(self) -> int:
        """How many codes there are, 2^bits."""
        return 1 << self.bits

    @property
    def container_min(self) -> int:
        """The lowest code the container holds."""
        return -128 if self.signed else 0

    @property
    def container_max(self) -> int:
        """The highest code the container holds."""
        return 127 if self.signed else 255

    @property
    def default_code_lo(self) -> int:
        """Lowest code of the untuned window: 0, or -2^(bits-1), but -127 at 8 bits."""
        if not self.signed:
            return 0
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """The affine map of one tensor and the window its codes lie in.

    Codes lie in [code_lo, code_hi]; `zero_point` may lie outside of that window, anywhere in the
    container.

    Attributes:
        spec: The format.
        scale: Step between codes in real units, > 0, shape [] or [C].
        zero_point: Code of real 0, shape of `scale`.
        code_lo: Lowest code used, shape of `scale`.
    """

    spec: QuantSpec
    scale: F32
    zero_point: I32
    code_lo: I32

    @property
    def code_hi(self) -> I32:
        """Highest code used: 2^bits - 1 above `code_lo`, but never outside of the container."""
        top = self.code_lo + np.int32(self.spec.levels - 1)
        return np.minimum(top, np.int32(self.spec.container_max)).astype(np.int32)

    @property
    def lo(self) -> F32:
        """Real value of the lowest code, shape of `scale`."""
        return (self.scale * (self.code_lo - self.zero_point)).astype(np.float32)

    @property
    def hi(self) -> F32:
        """Real value of the highest code, shape of `scale`."""
        return (self.scale * (self.code_hi - self.zero_point)).astype(np.float32)

    @classmethod
    def unit(cls, spec: QuantSpec, channels: int | None = None) -> "QParams":
        """Placeholder with scale 1, for a decision whose range no method has chosen yet."""
        shape = () if channels is None else (channels,)
        code_lo = np.full(shape, spec.default_code_lo, np.int32)
        zero = np.zeros(shape, np.int32)
        return cls(spec, np.ones(shape, np.float32), zero, code_lo)

    @classmethod
    def from_range(cls, lo: npt.ArrayLike, hi: npt.ArrayLike, spec: QuantSpec) -> "QParams":
        """Choose scale and zero point so that [lo, hi] just fits.

        The range is first widened to contain 0, because padding stores real 0 exactly. Signed
        formats keep zero point 0, so their grid is symmetric up to the one extra negative code
        below 8 bits.

        Args:
            lo: Lower end in real units, shape [] or [C].
            hi: Upper end in real units, shape of `lo`.
            spec: The format to fit into.

        Returns:
            Parameters whose rounding error is at most scale / 2 inside [lo, hi], but for the shift
            of up to half a step by which the zero point of an unsigned format is rounded.

        Raises:
            CalibrationError: lo > hi, or a bound is not finite.

        Source:
            Jacob et al. 2018 (arXiv:1712.05877), sections 2.1 and 3.1.
        """
        low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError(
                f"range [{lo}, {hi}] is not finite; check the data for NaN and inf"
            )
        if (low > high).any():
            raise CalibrationError(f"range [{lo}, {hi}] has its ends the wrong way round")
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        code_lo = spec.default_code_lo
        code_hi = min(code_lo + spec.levels - 1, spec.container_max)
        if spec.signed:
            scale = _positive(np.maximum(low / code_lo, high / code_hi))
            zero_point = np.zeros(scale.shape, np.int32)
        else:
            scale = _positive((high - low) / (code_hi - code_lo))
            steps = np.rint(code_lo - low / scale)
            # numpy makes a number of an array without dimensions; asarray keeps the array.
            zero_point = np.asarray(np.clip(steps, code_lo, code_hi), np.int32)
        return cls(spec, scale, zero_point, np.full(scale.shape, code_lo, np.int32))

    def along(self, values: npt.NDArray[Number], ndim: int) -> npt.NDArray[Number]:
        """Reshape a [C] parameter to broadcast along the channel axis of an `ndim`-D tensor."""
        if self.spec.axis is None or values.ndim == 0:
            return values
        shape = [1] * ndim
        shape[self.spec.axis] = -1
        return values.reshape(shape)

    def quantize(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.int8 | np.uint8]:
        """Codes of `x`: onnxruntime's QuantizeLinear (float32 division, half to even), windowed."""
        n = x.ndim
        steps = np.rint(x.astype(np.float32) / self.along(self.scale, n))
        low = self.along(self.code_lo - self.zero_point, n)
        high = self.along(self.code_hi - self.zero_point, n)
        codes = np.clip(steps, low, high).astype(np.int32) + self.along(self.zero_point, n)
        return codes.astype(self.spec.container)

    def dequantize(self, codes: npt.NDArray[np.integer]) -> F32:
        """Real values of `codes`, in float32 as onnxruntime's DequantizeLinear computes them."""
        n = codes.ndim
        steps = (codes.astype(np.int32) - self.along(self.zero_point, n)).astype(np.float32)
        return steps * self.along(self.scale, n)

    def round_trip(self, x: npt.NDArray[np.floating]) -> F32:
        """`dequantize(quantize(x))`: what is left of `x` after storing it."""
        return self.dequantize(self.quantize(x))

    def with_scale(self, scale: npt.ArrayLike) -> "QParams":
        """The same window and zero point with other steps."""
        return replace(self, scale=np.asarray(scale, np.float32))


def _positive(scale: npt.NDArray[np.float64]) -> F32:
    """Scales as float32; an empty range gets 1, a tiny one the smallest that is safe."""
    nonzero = np.where(scale > 0, np.maximum(scale, float(SMALLEST_SCALE)), 1.0)
    return np.asarray(nonzero, np.float32)

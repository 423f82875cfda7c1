"""The float32 arithmetic of onnxruntime on codes: what the integer forms are proved against.

Each function is the arithmetic of one operator of onnxruntime's CPU provider on x86-64 with FMA, in
numpy, rounding where onnxruntime rounds. `f(...)` in the docstrings rounds to float32.
`tests/test_formulas.py` compares each with the installed onnxruntime.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.quant import F32, I32

IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]
Container = np.dtype[np.int8] | np.dtype[np.uint8]

INT32_LIMIT = np.float32(2.0**31)
FLOAT_MAX = float(np.finfo(np.float32).max)

# Numerator and denominator of the rational sigmoid, highest power first.
# Source: onnxruntime/core/mlas/lib/logistic.cpp, MlasLogisticConstants.
_SIGMOID_P = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05)
_SIGMOID_P_LOW = (8.51377133304701e-03, 2.48287947061529e-01)
_SIGMOID_Q = (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06)
_SIGMOID_Q_LOW = (1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01)
_SIGMOID_REACH = np.float32(18)


@dataclass(frozen=True, slots=True)
class Affine:
    """Scale and zero point of one tensor: real = scale * (code - zero_point)."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True, slots=True)
class PairFormula:
    """What QLinearAdd or QLinearMul is given.

    Attributes:
        a: First operand.
        b: Second operand.
        y: Result.
        dtype: int8 or uint8, the container of all three.
        swapped: QLinearAdd where `a` is one element against many of `b`: onnxruntime then exchanges
            the operands, which exchanges their roundings. See `swaps`.
    """

    a: Affine
    b: Affine
    y: Affine
    dtype: Container
    swapped: bool = False


def fma32(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """Fused multiply-add of float32 numbers: a * b + c with one rounding.

    The product is exact in float64; the sum is rounded to odd there, so that rounding it again to
    float32 gives what a single rounding would (Boldo and Melquiond 2008, theorem 2).
    """
    product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = np.asarray(product + addend)
    # Knuth's two-sum: what the addition lost.
    recovered = total - product
    lost = (product - (total - recovered)) + (addend - recovered)
    bits = total.view(np.int64)
    inexact = (lost != 0) & ((bits & 1) == 0)
    away = np.where(total > 0, lost > 0, lost < 0)
    odd = np.where(inexact, np.where(away, bits + 1, bits - 1), bits)
    return odd.view(np.float64).astype(np.float32)


def requant_scale(x: npt.ArrayLike, weight: npt.ArrayLike, y: npt.ArrayLike) -> F32:
    """The scale of `requantized` behind a Conv, Gemm or MatMul: f(f(x * weight) / y).

    Source:
        onnxruntime/core/providers/cpu/quantization/qlinearconv.cc, ComputeOutputScale.
    """
    product = np.asarray(x, np.float32) * np.asarray(weight, np.float32)
    return np.asarray(product / np.asarray(y, np.float32), np.float32)


def requantized(
    acc: IntArray, scale: npt.ArrayLike, zero_point: int, lo: int, hi: int
) -> npt.NDArray[np.int32]:
    """Codes of int32 accumulators: rne(clamp(f(f(acc) * scale))) + zero_point.

    The clamp comes before rounding, and the zero point after, as an integer: ties are broken on
    the value without it.

    Args:
        acc: Accumulators, bias included, [..., C].
        scale: From `requant_scale` or `global_average_scale`, [] or [C].
        zero_point: Of the output.
        lo: Lowest code: of the container, or of a Clip that follows.
        hi: Highest code.

    Source:
        onnxruntime/core/mlas/lib/quantize.cpp, MlasRequantizeOutput.
    """
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, then clamped
        real = np.asarray(acc, np.int32).astype(np.float32) * np.asarray(scale, np.float32)
    clamped = np.minimum(np.maximum(real, np.float32(lo - zero_point)), np.float32(hi - zero_point))
    return np.rint(clamped).astype(np.int32) + np.int32(zero_point)


def quantized(x: F32, affine: Affine, dtype: Container) -> I32:
    """QuantizeLinear: rne(clamp(f(x / scale))) + zero_point.

    Source:
        onnxruntime/core/mlas/lib/quantize.cpp, MlasQuantizeLinear.
    """
    lo, hi = _ends(dtype)
    with np.errstate(over="ignore"):
        steps = np.asarray(x, np.float32) / affine.scale
    low, high = np.float32(lo - affine.zero_point), np.float32(hi - affine.zero_point)
    clamped = np.minimum(np.maximum(steps, low), high)
    return np.rint(clamped).astype(np.int32) + np.int32(affine.zero_point)


def dequantized(codes: IntArray, affine: Affine) -> F32:
    """DequantizeLinear: f(f(code - zero_point) * scale).

    Source:
        onnxruntime/core/mlas/lib/dequantize.cpp, MlasDequantizeLinear.
    """
    steps = np.asarray(codes, np.int32) - np.int32(affine.zero_point)
    return steps.astype(np.float32) * affine.scale


def swaps(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> bool:
    """Whether QLinearAdd exchanges its operands: its innermost span has one element of `a`.

    onnxruntime joins neighbouring dimensions that broadcast alike into one span (dimensions of 1
    join either), and calls its kernel for the last one; one element against one counts as well.

    Source:
        onnxruntime/core/providers/cpu/math/element_wise_ops.h, BroadcastIterator.
    """
    rank = max(len(a_shape), len(b_shape))
    a = (1,) * (rank - len(a_shape)) + a_shape
    b = (1,) * (rank - len(b_shape)) + b_shape
    for a_side, b_side in zip(reversed(a), reversed(b), strict=True):
        if a_side != 1 or b_side != 1:
            return a_side == 1
    return True


def added(a: IntArray, b: IntArray, formula: PairFormula) -> I32:
    """QLinearAdd: rne(fma(a, ra, fma(b, rb, k))), saturated.

    ra = f(a.scale / y.scale), rb alike, and k = f(y.zero - fma(ra, a.zero, f(rb * b.zero))): zero
    points are inside of the float constant, so int8 tensors are not the same as uint8 ones shifted
    by 128.

    Source:
        onnxruntime/core/mlas/lib/qladd.cpp, MlasQLinearAddKernel with AVX2; that the compiler
        contracts the constant was measured (ort_semantics_and_kernels.md A.3).
    """
    if formula.swapped:
        a, b = b, a
    first, second = (formula.b, formula.a) if formula.swapped else (formula.a, formula.b)
    ratio_a, ratio_b = first.scale / formula.y.scale, second.scale / formula.y.scale
    inner = fma32(ratio_a, first.zero_point, ratio_b * np.float32(second.zero_point))
    constant = np.float32(formula.y.zero_point) - inner
    real = fma32(a, ratio_a, fma32(b, ratio_b, constant))
    return _saturated(real, formula.dtype)


def multiplied(a: IntArray, b: IntArray, formula: PairFormula) -> I32:
    """QLinearMul: rne(f(f(f((a - a.zero) * (b - b.zero)) * r) + y.zero)), saturated; no FMA.

    r = f(f(a.scale * b.scale) / y.scale).

    Source:
        onnxruntime/core/mlas/lib/qlmul.cpp, MlasQLinearMulKernel.
    """
    a_steps = np.asarray(a, np.int32) - np.int32(formula.a.zero_point)
    b_steps = np.asarray(b, np.int32) - np.int32(formula.b.zero_point)
    ratio = formula.a.scale * formula.b.scale / formula.y.scale
    scaled = (a_steps * b_steps).astype(np.float32) * ratio
    return _saturated(scaled + np.float32(formula.y.zero_point), formula.dtype)


def average_pooled(
    windows: IntArray, inside: BoolArray, divisor: npt.ArrayLike, x: Affine, y: Affine
) -> npt.NDArray[np.float32]:
    """QLinearAveragePool before saturation: f(f(f(sum / divisor) / y.scale) + y.zero).

    The sum runs over dequantized float32 values one by one, in row order, and is rounded after
    each. A window that is the whole image, without pads, is a global average pool instead.

    Args:
        windows: Codes of each window in row order, [..., K].
        inside: False where a window reaches over the edge, [..., K] or [K].
        divisor: Pixels of the window; with count_include_pad = 0 only those inside, [...].
        x: Of the input.
        y: Of the output.

    Returns:
        Codes as real numbers, [...]; `rounded` makes codes of them.

    Source:
        onnxruntime/contrib_ops/cpu/quantization/qlinear_pool.cc, QLinearPool2DTask.
    """
    values = np.where(inside, dequantized(windows, x), np.float32(0))
    total = np.zeros(values.shape[:-1], np.float32)
    for pixel in range(values.shape[-1]):
        total = total + values[..., pixel]
    mean = total / np.asarray(divisor, np.float32)
    return mean / y.scale + np.float32(y.zero_point)


def rounded(real: F32, dtype: Container) -> I32:
    """Codes of real numbers that contain the zero point: rounded half to even, then clipped."""
    lo, hi = _ends(dtype)
    return np.clip(np.rint(real), lo, hi).astype(np.int32)


def global_average_scale(x: npt.ArrayLike, y: npt.ArrayLike, pixels: int) -> F32:
    """The scale of `requantized` behind a global average: f(x / f(y * f(pixels))).

    The accumulator is sum(codes) - pixels * zero_point.

    Source:
        onnxruntime/core/mlas/lib/qlgavgpool.cpp, MlasQLinearGlobalAveragePoolNchw.
    """
    denominator = np.asarray(y, np.float32) * np.float32(pixels)
    return np.asarray(np.asarray(x, np.float32) / denominator, np.float32)


def softmax_table(x_scale: np.float32, length: int) -> F32:
    """Exponentials of all distances to a row's largest code, scaled so that their sum fits, [256].

    Entry 255 belongs to the largest code, entry 255 - d to one that is d codes below. The
    exponential is of float64 and then rounded.

    Args:
        x_scale: Of the input.
        length: Of the axis that is summed over.

    Source:
        onnxruntime/contrib_ops/cpu/quantization/qlinear_softmax.cc, BuildLookupTableIfFixed.
    """
    largest = np.float32(FLOAT_MAX) / np.float32(length)
    room = float(np.float32(math.log(float(largest))))  # C++ takes a float32's logarithm in float32
    shift = max(0.0, room - 5) / float(x_scale)
    powers = [math.exp((code - 255 + shift) * float(x_scale)) for code in range(256)]
    return np.asarray(powers, np.float64).astype(np.float32)


def softmax_multiplier(y_scale: np.float32) -> np.float32:
    """floor(f(1 / y.scale)): how many codes make the number 1 in `softmaxed`."""
    return np.float32(np.floor(np.float32(1) / np.float32(y_scale)))


def softmaxed(codes: IntArray, x_scale: np.float32, y: Affine, dtype: Container) -> I32:
    """QLinearSoftmax along the last axis: min(rne(t * c / sum) + y.zero, highest code).

    t comes from `softmax_table` and c from `softmax_multiplier`; the sum is rounded to float32
    after each addition, in order. The quotient is rounded once, to a code: float64 keeps it apart
    from half a code, since t * c and that times the sum differ by 2^-42 of themselves or not at
    all. So it is from onnxruntime 1.32 on.

    Source:
        onnxruntime/contrib_ops/cpu/quantization/qlinear_softmax.cc, QlinearSoftmaxCPU.
    """
    powers, total = _powers_and_sum(codes, x_scale)
    shares = powers.astype(np.float64) * softmax_multiplier(y.scale) / total
    return _share_codes(shares, y, dtype)


def softmaxed_in_float32(codes: IntArray, x_scale: np.float32, y: Affine, dtype: Container) -> I32:
    """QLinearSoftmax up to onnxruntime 1.31: t * c and the quotient are rounded to float32 too.

    Where t * c leaves float32, the quotient becomes the int32 -2^31, to which the zero point is
    added: uint8 keeps the last byte; int8 is clipped, and a negative zero point wraps around first.
    """
    powers, total = _powers_and_sum(codes, x_scale)
    with np.errstate(over="ignore"):
        shares = powers * softmax_multiplier(y.scale) / total
    lo, hi = _ends(dtype)
    lost = y.zero_point if lo == 0 else hi if y.zero_point < 0 else lo
    codes = _share_codes(np.where(np.isinf(shares), np.float32(0), shares), y, dtype)
    return np.where(np.isinf(shares), np.int32(lost), codes)


def _powers_and_sum(codes: IntArray, x_scale: np.float32) -> tuple[F32, F32]:
    table = softmax_table(x_scale, codes.shape[-1])
    wide = np.asarray(codes, np.int32)
    powers = table[255 - (wide.max(axis=-1, keepdims=True) - wide)]
    total = np.zeros(powers.shape[:-1], np.float32)
    for position in range(powers.shape[-1]):
        total = total + powers[..., position]
    return powers, total[..., None]


def _share_codes(shares: npt.NDArray[np.floating], y: Affine, dtype: Container) -> I32:
    _, hi = _ends(dtype)
    return np.minimum(np.rint(shares).astype(np.int32) + np.int32(y.zero_point), np.int32(hi))


def sigmoid(x: F32) -> F32:
    """The float32 Sigmoid of onnxruntime: an odd polynomial over an even one, plus a half.

    Source:
        onnxruntime/core/mlas/lib/logistic.cpp; the FMA3 kernel clamps the result only from below.
    """
    clamped = np.minimum(np.maximum(np.asarray(x, np.float32), -_SIGMOID_REACH), _SIGMOID_REACH)
    square = clamped * clamped
    odd = _polynomial(square, (*_SIGMOID_P, *_SIGMOID_P_LOW)) * clamped
    even = _polynomial(square, (*_SIGMOID_Q, *_SIGMOID_Q_LOW))
    return np.maximum(odd / even + np.float32(0.5), np.float32(0))


def leaky_relu(x: F32, alpha: float) -> F32:
    """The float32 LeakyRelu inside of QLinearLeakyRelu."""
    return np.where(x >= 0, x, np.float32(alpha) * x).astype(np.float32)


def _polynomial(x: F32, coefficients: tuple[float, ...]) -> F32:
    total = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        total = fma32(total, x, np.float32(coefficient))
    return total


def _saturated(real: F32, dtype: Container) -> I32:
    """cvtps2dq, then saturating packs: what int32 cannot hold becomes its lowest number."""
    lo, hi = _ends(dtype)
    fits = (real >= -INT32_LIMIT) & (real < INT32_LIMIT)
    whole = np.where(fits, np.rint(real), -INT32_LIMIT)
    return np.clip(whole, lo, hi).astype(np.int32)


def _ends(dtype: Container) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)

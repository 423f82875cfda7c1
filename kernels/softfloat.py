"""IEEE float32 arithmetic on bit patterns, with integer instructions only.

onnxruntime pools averages and takes softmax in float32. Where its sums are rounded at each step, no
exact integer sum stands for them; the steps themselves do. A float is the int64 that holds its 32
bits (0..2^32 - 1). All results are rounded half to even, subnormal numbers are kept, too large
results become inf; inf and NaN are no inputs.

Versions tried (a running sum over a table / products / quotients, ns each, one core of a Xeon with
AVX-512, 2026-11):
    top bit by halving the range, six steps              11.5 / 5.0 / 9.1
    top bit by shifting until nothing is left (lzcnt)     8.2 / 1.1 / 3.4
"""

import numpy as np

from onnxptq.kernels.jit import lean_jit

SIGN = 0x80000000
INFINITY = 0x7F800000
FRACTION = 0x7FFFFF
HIDDEN = 0x800000
GUARD = 32
"""Bits kept below the last place of the larger operand before rounding."""
BIAS = 150 + GUARD
"""A mantissa m with GUARD bits and the biased exponent e stand for m * 2^(e - BIAS)."""
FAR = 62
"""Shifts beyond this leave nothing of any mantissa here."""


def _float_naive(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def _bits_naive(value: np.float32) -> int:
    return int(np.float32(value).view(np.uint32))


def add_naive(a: int, b: int) -> int:
    """Specification of `add`: numpy's float32."""
    with np.errstate(over="ignore"):
        return _bits_naive(_float_naive(a) + _float_naive(b))


def mul_naive(a: int, b: int) -> int:
    """Specification of `mul`: numpy's float32."""
    with np.errstate(over="ignore", under="ignore"):
        return _bits_naive(_float_naive(a) * _float_naive(b))


def div_naive(a: int, b: int) -> int:
    """Specification of `div`: numpy's float32."""
    with np.errstate(over="ignore", under="ignore"):
        return _bits_naive(_float_naive(a) / _float_naive(b))


def from_int32_naive(value: int) -> int:
    """Specification of `from_int32`: numpy's conversion."""
    return _bits_naive(np.float32(np.int32(value)))


def round_to_int_naive(a: int) -> int:
    """Specification of `round_to_int`: numpy's rint, which halves to even."""
    return int(np.rint(np.float64(_float_naive(a))))


@lean_jit
def _bit_length(m: int) -> int:
    """Bits of m, which is in 0..2^62. LLVM makes one instruction (lzcnt) of the loop."""
    rest, n = np.uint64(m), 0
    while rest != np.uint64(0):
        rest >>= np.uint64(1)
        n += 1
    return n


@lean_jit
def mantissa(a: int) -> int:
    """The mantissa with its hidden bit, 0..2^24 - 1."""
    return (a & FRACTION) | (HIDDEN if a & INFINITY else 0)


@lean_jit
def exponent(a: int) -> int:
    """The biased exponent; that of subnormal numbers is 1, as it counts for their value."""
    return max((a >> 23) & 255, 1)


@lean_jit
def _packed(sign: int, e: int, m: int) -> int:
    """Float nearest to m * 2^(e - BIAS), m in 1..2^62; bit 0 of m stands for all that is below."""
    length = _bit_length(m)
    e += length - (24 + GUARD)
    drop = length - 24
    if e < 1:
        drop += 1 - e
        e = 1
    if drop > FAR:
        return sign
    q = m << -drop if drop <= 0 else _shifted(m, drop)
    # The hidden bit, and a carry out of the mantissa, count up the exponent.
    return sign | min(((e - 1) << 23) + q, INFINITY)


@lean_jit
def _shifted(m: int, drop: int) -> int:
    """The mantissa / 2^drop rounded half to even, drop in 1..62."""
    q = m >> drop
    # Half of the last place, less one where q is even: the tie goes up only where q is odd.
    return (m + (1 << (drop - 1)) - 1 + (q & 1)) >> drop


@lean_jit
def add(a: int, b: int) -> int:
    """The sum a + b."""
    if (a & ~SIGN) < (b & ~SIGN):
        a, b = b, a
    e = exponent(a)
    distance = e - exponent(b)
    m_a, m_b = mantissa(a) << GUARD, mantissa(b)
    # What is shifted out beyond the guard bits only says that something was there.
    m_b = (m_b << GUARD) >> distance if distance <= GUARD else int(m_b != 0)
    m = m_a + m_b if (a ^ b) & SIGN == 0 else m_a - m_b
    if m == 0:
        return a & b & SIGN
    return _packed(a & SIGN, e, m)


@lean_jit
def mul(a: int, b: int) -> int:
    """The product a * b."""
    sign = (a ^ b) & SIGN
    m = mantissa(a) * mantissa(b)
    if m == 0:
        return sign
    return _packed(sign, exponent(a) + exponent(b) + GUARD - 150, m)


@lean_jit
def div(a: int, b: int) -> int:
    """The quotient a / b; b is not 0."""
    sign = (a ^ b) & SIGN
    m_a, m_b = mantissa(a), mantissa(b)
    if m_a == 0:
        return sign
    # A subnormal dividend is moved up, so that the quotient has all its bits.
    up = 24 - _bit_length(m_a)
    dividend = np.uint64(m_a << (up + GUARD))
    divisor = np.uint64(m_b)
    quotient = int(dividend // divisor)
    rest = int(dividend) - quotient * m_b
    e = exponent(a) - up - exponent(b) + 150
    return _packed(sign, e - 1, (quotient << 1) | int(rest != 0))


@lean_jit
def from_int32(value: int) -> int:
    """Float nearest to an int32."""
    if value == 0:
        return 0
    return _packed(SIGN if value < 0 else 0, BIAS, abs(value))


@lean_jit
def round_to_int(a: int) -> int:
    """The nearest integer, halves to even; beyond 2^61 its size is 2^62."""
    e, m = exponent(a), mantissa(a)
    if e >= 150:
        q = m << (e - 150) if e < 150 + 38 else 1 << 62
    elif e < 150 - 25:
        q = 0
    else:
        q = _shifted(m, 150 - e)
    return -q if a & SIGN else q

"""The INT64 form against onnxruntime's float32 formula, on many random scales and accumulators."""

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq.kernels import requantize
from onnxptq.kernels.cases_requantize import Bytes, add_requant

COUNT = 300_000


def formula(
    acc: npt.NDArray[np.int32], scale: npt.NDArray[np.float32], limits: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """MlasRequantizeOutput in float32."""
    lo, hi, zero = limits
    with np.errstate(over="ignore"):
        real = acc.astype(np.float32) * scale
    real = np.clip(real, np.float32(lo - zero), np.float32(hi - zero))
    return (np.rint(real).astype(np.int64) + zero).astype(np.uint8)


def emulated(
    acc: npt.NDArray[np.int32], scale: npt.NDArray[np.float32], limits: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    row, consts = np.zeros(requantize.ROW, np.int64), Bytes()
    forms = np.full(-(-acc.size // requantize.GROUP), requantize.INT64, np.uint8)
    bits = scale.view(np.int32)
    fields = bits >> 23
    mantissa = (bits & 0x7FFFFF) | np.where(fields > 0, 0x800000, 0)
    exponent = np.maximum(fields, 1).astype(np.int64) - 150
    add_requant(row, consts, scale[:1], limits, forms)
    row[requantize.MANTISSA] = consts.add(mantissa.astype(np.int32))
    row[requantize.EXPONENT] = consts.add(exponent)
    codes = np.zeros(acc.size, np.uint8)
    requantize.requantize_row(acc, 0, acc.size, codes, 0, 1, row, consts.array())
    return codes


@pytest.mark.parametrize("limits", [(0, 255, 0), (0, 255, 255), (0, 255, 117), (9, 24, 13)])
@pytest.mark.parametrize("kind", ["reachable", "any", "ties", "any bits"])
def test_int64_form_equals_the_float_formula(kind: str, limits: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(limits[2])
    scale = np.exp(rng.uniform(np.log(1e-8), np.log(3.0), COUNT)).astype(np.float32)
    acc = rng.integers(-(2**31), 2**31, COUNT)
    if kind == "ties":  # decimal scales, and halves of codes
        scale = (rng.integers(1, 200, COUNT) / rng.choice((100, 1000, 1024, 4096), COUNT)).astype(
            np.float32
        )
    if kind in {"ties", "reachable"}:
        acc = np.rint((rng.integers(-600, 600, COUNT) / 2) / scale.astype(np.float64))
        acc = np.clip(acc + rng.integers(-1, 2, COUNT), -(2**31), 2**31 - 1)
    if kind == "any bits":
        scale = rng.integers(0, 0x7F800000, COUNT).astype(np.int32).view(np.float32)

    found = emulated(acc.astype(np.int32), scale, limits)

    np.testing.assert_array_equal(found, formula(acc.astype(np.int32), scale, limits))

"""Arguments that tests and benchmarks run the kernels of boundary.py on."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import boundary
from onnxptq.kernels.cases_rows import Arguments, Layout, named

F32 = npt.NDArray[np.float32]

WORK = 3 * 224 * 224
SHAPES = ((1, 1, 67), (2, 3, 19), (5, 7, 1), (1, 1, 1), (0, 3, 2), (2, 3, 0), (3, 40, 1))
EXTREMES = (np.nan, np.inf, -np.inf, 1e30, -1e30, 3.4e38, 1e-45, -0.0)


def quantize_call(
    x: F32, scale: F32, zero: npt.NDArray[np.int32], limits: tuple[int, int]
) -> Arguments:
    """Arguments for x [outer, channels, inner], scale and zero (stored) [channels]."""
    layout = Layout()
    columns = named(
        boundary.QUANTIZE_COLUMNS,
        x=layout.put(x),
        y=layout.room(x.size),
        **dict(zip(("outer", "channels", "inner"), x.shape, strict=True)),
        scale=layout.const(scale),
        zero=layout.const(zero),
        lo=limits[0],
        hi=limits[1],
    )
    return layout.arguments(columns)


def _parameters(rng: np.random.Generator, channels: int) -> tuple[F32, npt.NDArray[np.int32]]:
    scale = (rng.integers(1, 40, channels) * 0.01).astype(np.float32)
    return scale, rng.integers(0, 256, channels).astype(np.int32)


def _reals(rng: np.random.Generator, shape: tuple[int, int, int], scale: F32, halves: bool) -> F32:
    """Numbers in and out of range; exact halves of the scale if asked for."""
    steps = rng.standard_normal(shape) * 120
    if halves:
        steps = np.rint(steps) + 0.5
    x = (steps.astype(np.float32) * scale[None, :, None]).astype(np.float32)
    extremes = np.asarray(EXTREMES, np.float32)[: x.size // 4]
    x.reshape(-1)[: extremes.size] = extremes
    return x


def quantizes(rng: np.random.Generator) -> Iterator[Arguments]:
    """Per tensor and channel, halves, NaN, inf, huge numbers, few codes."""
    for shape in SHAPES:
        for halves in (False, True):
            for limits in ((0, 255), (0, 15)):
                scale, zero = _parameters(rng, shape[1])
                yield quantize_call(_reals(rng, shape, scale, halves), scale, zero, limits)
    for size in (64, 300):
        # Among many numbers some are next to a half, on either side.
        scale, zero = _parameters(rng, 2)
        x = _reals(rng, (1, 2, size), scale, True)
        x = np.nextafter(x, x + rng.choice((-1, 0, 1), x.shape).astype(np.float32))
        yield quantize_call(x, scale, zero, (0, 255))
    for scale in (1e-38, 1e-31, 1e31, 3e38):
        with np.errstate(over="ignore"):
            x = _reals(rng, (1, 1, 70), np.full(1, scale, np.float32), False)
        yield quantize_call(x, np.full(1, scale, np.float32), np.zeros(1, np.int32), (0, 255))


def quantize_work(rng: np.random.Generator) -> Arguments:
    """An image."""
    x = rng.standard_normal((1, 1, WORK)).astype(np.float32)
    return quantize_call(x, np.full(1, 0.02, np.float32), np.full(1, 114, np.int32), (0, 255))


def dequantize_call(x: npt.NDArray[np.uint8], scale: F32, zero: npt.NDArray[np.int32]) -> Arguments:
    """Arguments for stored codes x [outer, channels, inner], scale and zero [channels]."""
    layout = Layout()
    columns = named(
        boundary.DEQUANTIZE_COLUMNS,
        x=layout.put(x),
        y=layout.room(4 * x.size),
        **dict(zip(("outer", "channels", "inner"), x.shape, strict=True)),
        scale=layout.const(scale),
        zero=layout.const(zero),
    )
    return layout.arguments(columns)


def dequantizes(rng: np.random.Generator) -> Iterator[Arguments]:
    """Per tensor and channel."""
    for shape in SHAPES:
        scale, zero = _parameters(rng, shape[1])
        yield dequantize_call(rng.integers(0, 256, shape).astype(np.uint8), scale, zero)


def dequantize_work(rng: np.random.Generator) -> Arguments:
    """A map of the size of an image."""
    x = rng.integers(0, 256, (1, 1, WORK)).astype(np.uint8)
    return dequantize_call(x, np.full(1, 0.02, np.float32), np.full(1, 114, np.int32))


def _acc_to_real(rng: np.random.Generator, shape: tuple[int, int, int], bias: bool) -> Arguments:
    layout = Layout()
    size = rng.integers(0, 31, shape)
    acc = (rng.integers(-(1 << 31), 1 << 31, shape) >> size).astype(np.int32)
    scale = rng.uniform(1e-6, 1, shape[1]).astype(np.float32)
    columns = named(
        boundary.ACC_TO_REAL_COLUMNS,
        x=layout.put(acc),
        y=layout.room(4 * acc.size),
        **dict(zip(("outer", "channels", "inner"), shape, strict=True)),
        scale=layout.const(scale),
        bias=layout.const(rng.standard_normal(shape[1]).astype(np.float32)) if bias else -1,
    )
    return layout.arguments(columns)


def accs_to_real(rng: np.random.Generator) -> Iterator[Arguments]:
    """All sizes of accumulators, per tensor and channel, with and without bias."""
    for shape in SHAPES:
        yield _acc_to_real(rng, shape, False)
        yield _acc_to_real(rng, shape, True)


def acc_to_real_work(rng: np.random.Generator) -> Arguments:
    """Logits of a large batch."""
    return _acc_to_real(rng, (WORK // 1024, 1024, 1), True)

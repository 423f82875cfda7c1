"""Arguments that tests and benchmarks run the kernel of softmax.py on."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import softmax
from onnxptq.kernels.cases_rows import Arguments, Layout, named

U8 = npt.NDArray[np.uint8]

WORK = 20 * 1000


def exponentials(x_scale: float, length: int, x_is_signed: bool) -> npt.NDArray[np.float32]:
    """The table of onnxruntime (qlinear_softmax.cc): as large as sums of `length` allow, [256]."""
    scale = np.float32(x_scale)
    # A float32 logarithm, as C++ overloads it; in float64 the table's last places come out other.
    room = float(
        np.float32(math.log(float(np.float32(np.finfo(np.float32).max / np.float32(length)))))
    )
    shift = max(0.0, room - 5) / float(scale)
    values = np.asarray(
        [math.exp((i - 255 + shift) * float(scale)) for i in range(256)], np.float64
    ).astype(np.float32)
    return np.roll(values, -128) if x_is_signed else values


def call(
    x: U8,
    shape: tuple[int, int, int],
    scales: tuple[float, float],
    y_zero: int,
    signed: tuple[bool, bool],
    exact: bool = True,
) -> Arguments:
    """Arguments for stored codes x, the scales of x and y, and whether x and y have int8 codes.

    Quotients are exact, or rounded to float32.
    """
    layout = Layout()
    outer, length, inner = shape
    one_over = np.float32(math.floor(np.float32(1) / np.float32(scales[1])))
    columns = named(
        softmax.COLUMNS,
        x=layout.put(x),
        y=layout.room(outer * length * inner),
        outer=outer,
        length=length,
        inner=inner,
        table=layout.const(exponentials(scales[0], max(length, 1), signed[0])),
        one_over_bits=int(one_over.view(np.uint32)),
        y_zero=y_zero,
        hi=127 if signed[1] else 255,
        bias128=128 if signed[1] else 0,
        x_is_signed=int(signed[0]),
        exact=int(exact),
    )
    return layout.arguments(columns)


def softmaxes(rng: np.random.Generator) -> Iterator[Arguments]:
    """One and many elements, any axis, both signs; scales where all codes count or only one."""
    for shape in ((1, 1, 1), (3, 2, 1), (2, 37, 5), (1, 1000, 1), (0, 3, 1), (2, 0, 3)):
        for x_scale in (0.001, 0.05, math.log(2), 3.0):
            for y_scale in (1 / 256, 1 / 128, 0.0007, 2.0):
                x = rng.integers(0, 256, int(np.prod(shape))).astype(np.uint8)
                for exact in (True, False):
                    scales = x_scale, y_scale
                    yield call(x, shape, scales, 0, (False, False), exact)
                    yield call(x // 32, shape, scales, -128, (True, True), exact)


def softmax_work(rng: np.random.Generator) -> Arguments:
    """Rows of 1000."""
    x = rng.integers(0, 256, WORK).astype(np.uint8)
    return call(x, (20, 1000, 1), (0.02, 1 / 256), 0, (False, False))

"""Arguments that tests and benchmarks run the kernels of pool.py on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxptq.kernels import pool
from onnxptq.kernels.cases_rows import Arguments, Layout, named

Triple = tuple[int, int, int]

REDUCE_WORK = 56 * 56 * 64
MAX_WORK = 56 * 56 * 64
AVERAGE_WORK = 28 * 28 * 64


@dataclass(frozen=True)
class Window:
    """Sizes of one pooling, depth, height and width."""

    batch: int
    channels: int
    size: Triple
    kernel: Triple
    stride: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    pads: Triple = (0, 0, 0)
    pads_after: Triple = (0, 0, 0)

    @property
    def out(self) -> Triple:
        """Output sizes: as many windows as begin inside and end within the padding."""
        sizes = [
            (n + p + q - d * (k - 1) - 1) // s + 1
            for n, k, s, d, p, q in zip(
                self.size,
                self.kernel,
                self.stride,
                self.dilation,
                self.pads,
                self.pads_after,
                strict=True,
            )
        ]
        return sizes[0], sizes[1], sizes[2]


WINDOWS = (
    Window(1, 1, (1, 1, 1), (1, 1, 1)),
    Window(2, 5, (1, 1, 9), (1, 1, 3), (1, 1, 2), (1, 1, 1), (0, 0, 1), (0, 0, 1)),
    Window(2, 17, (1, 7, 6), (1, 3, 2), (1, 2, 2), (1, 1, 1), (0, 1, 0), (0, 1, 1)),
    Window(1, 3, (1, 9, 12), (1, 3, 3), (1, 1, 1), (1, 2, 3), (0, 2, 1), (0, 2, 3)),
    Window(1, 4, (4, 5, 6), (2, 3, 3), (2, 1, 3), (1, 1, 1), (1, 1, 2), (1, 2, 2)),
    Window(3, 2, (1, 5, 5), (1, 5, 5)),
    Window(0, 2, (1, 5, 5), (1, 2, 2)),
)

MANY_CHANNELS = (
    Window(1, 64, (1, 7, 20), (1, 3, 3), (1, 2, 2), pads=(0, 1, 1), pads_after=(0, 1, 1)),
    Window(2, 70, (1, 4, 9), (1, 2, 2), (1, 1, 1), (1, 1, 3), (0, 0, 1), (0, 0, 2)),
    Window(1, 40, (3, 5, 6), (2, 3, 3), (1, 1, 1), (1, 2, 1), (0, 2, 0), (1, 2, 0)),
    Window(1, 19, (1, 2, 3), (1, 1, 1), (1, 2, 3), pads=(0, 1, 2), pads_after=(0, 3, 5)),
)
"""Channels of a vector and more; in the last, windows without a pixel."""


def strides(window: Window, size: Triple, channels_last: bool) -> tuple[int, ...]:
    """Element strides n, c, d, h, w of a contiguous map."""
    c, (d, h, w) = window.channels, size
    if channels_last:
        return c * d * h * w, 1, h * w * c, w * c, c
    return c * d * h * w, d * h * w, h * w, w, 1


def window_columns(layout: Layout, window: Window, x: int, channels_last: bool) -> dict[str, int]:
    """The columns that all poolings share; room for y is made."""
    columns = {"x": x, "batch": window.batch, "channels": window.channels}
    columns["y"] = layout.room(window.batch * window.channels * int(np.prod(window.out)))
    for name, triple in (
        ("in", window.size),
        ("out", window.out),
        ("k", window.kernel),
        ("s", window.stride),
        ("d", window.dilation),
        ("p", window.pads),
    ):
        columns |= {f"{name}_{axis}": n for axis, n in zip("dhw", triple, strict=True)}
    for name, size in (("x", window.size), ("y", window.out)):
        steps = strides(window, size, channels_last)
        columns |= {f"{name}_{axis}": n for axis, n in zip("ncdhw", steps, strict=True)}
    return columns


def _codes(rng: np.random.Generator, window: Window) -> np.ndarray:
    count = window.batch * window.channels * int(np.prod(window.size))
    return rng.integers(0, 256, count).astype(np.uint8)


def _max(rng: np.random.Generator, window: Window, channels_last: bool, empty: int) -> Arguments:
    layout = Layout()
    columns = window_columns(layout, window, layout.put(_codes(rng, window)), channels_last)
    return layout.arguments(named(pool.MAX_POOL_COLUMNS, **columns, empty=empty))


def max_pools(rng: np.random.Generator) -> Iterator[Arguments]:
    """One to three axes, strides, dilations, uneven pads, windows without a pixel, both layouts."""
    beyond = Window(1, 3, (1, 2, 2), (1, 1, 1), (1, 2, 2), (1, 1, 1), (0, 1, 1), (0, 2, 2))
    for channels_last in (False, True):
        for window in (*WINDOWS, *MANY_CHANNELS, beyond):
            for empty in (0, 77):
                yield _max(rng, window, channels_last, empty)


def max_pool_work(rng: np.random.Generator) -> Arguments:
    """The max pooling of a ResNet; time is for an output element."""
    window = Window(1, 64, (1, 112, 112), (1, 3, 3), (1, 2, 2), (1, 1, 1), (0, 1, 1), (0, 1, 1))
    return _max(rng, window, True, 0)


def average_columns(
    layout: Layout, scales: tuple[float, float], zeros: tuple[int, int], signed: bool
) -> dict[str, int]:
    """The columns of `average_pool` beyond those of a window; scales and zero points of x and y."""
    bias = 128 if signed else 0
    codes = np.arange(256) - bias - zeros[0]
    values = np.float32(scales[0]) * codes.astype(np.float32)
    return {
        "values": layout.const(values),
        "y_scale_bits": int(np.float32(scales[1]).view(np.uint32)),
        "y_zero": zeros[1],
        "lo": -bias,
        "hi": 255 - bias,
        "bias128": bias,
    }


def _average(
    rng: np.random.Generator, window: Window, channels_last: bool, include_pad: bool, signed: bool
) -> Arguments:
    layout = Layout()
    columns = window_columns(layout, window, layout.put(_codes(rng, window)), channels_last)
    bias = 128 if signed else 0
    scales = (float(rng.integers(1, 40)) * 0.01, float(rng.integers(1, 40)) * 0.01)
    zeros = (int(rng.integers(0, 256)) - bias, int(rng.integers(0, 256)) - bias)
    columns |= average_columns(layout, scales, zeros, signed)
    return layout.arguments(
        named(pool.AVERAGE_POOL_COLUMNS, **columns, include_pad=int(include_pad))
    )


def average_pools(rng: np.random.Generator) -> Iterator[Arguments]:
    """One to three axes, strides, uneven pads, both layouts, divisors and signs."""
    for channels_last in (False, True):
        for include_pad in (False, True):
            for signed in (False, True):
                for window in (*WINDOWS, *MANY_CHANNELS[:3]):
                    yield _average(rng, window, channels_last, include_pad, signed)


def average_pool_work(rng: np.random.Generator) -> Arguments:
    """An Inception block's average; time is for an output element of nine taps."""
    window = Window(1, 64, (1, 28, 28), (1, 3, 3), pads=(0, 1, 1), pads_after=(0, 1, 1))
    return _average(rng, window, True, False, False)


def _reduce(rng: np.random.Generator, op: int, outer: int, count: int, inner: int) -> Arguments:
    layout = Layout()
    columns = named(
        pool.REDUCE_COLUMNS,
        x=layout.put(rng.integers(0, 256, outer * count * inner).astype(np.uint8)),
        y=layout.room(outer * inner),
        op=op,
        outer=outer,
        count=count,
        inner=inner,
    )
    return layout.arguments(columns)


def reduces(rng: np.random.Generator) -> Iterator[Arguments]:
    """Contiguous and strided runs, of one code, none at all."""
    for op in (pool.MIN, pool.MAX):
        for shape in (
            (1, 1, 1),
            (3, 70, 1),
            (1, 500, 1),
            (3, 5, 37),
            (2, 1, 4),
            (0, 3, 2),
            (2, 3, 0),
        ):
            yield _reduce(rng, op, *shape)


def reduce_work(rng: np.random.Generator) -> Arguments:
    """A whole map of 64 channels, channels last."""
    return _reduce(rng, pool.MAX, 1, 56 * 56, 64)

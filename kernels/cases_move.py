"""Arguments that tests and benchmarks run the kernels of move.py on."""

from collections.abc import Iterator

import numpy as np

from onnxptq.kernels import move
from onnxptq.kernels.cases_rows import Arguments, Layout, named, numbered

AXES = 6
CHANNELS, PIXELS = 64, 56 * 56
WORK = CHANNELS * PIXELS


def contiguous(shape: tuple[int, ...], width: int = 1) -> list[int]:
    """Byte strides of a contiguous array of elements of `width` bytes."""
    strides = [width] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def _copy(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    order: tuple[int, ...] = (),
    width: int = 1,
    flip: int = -1,
    table: bool = False,
) -> Arguments:
    """A copy in y's order; x has its axes in `order`, and `flip` runs backwards in x."""
    layout = Layout()
    full = (1,) * (AXES - len(shape)) + shape
    size = int(np.prod(full)) * width
    full_order = (*range(AXES - len(shape)), *(axis + AXES - len(shape) for axis in order))
    order = full_order if order else tuple(range(AXES))
    x_strides = [0] * AXES
    for axis, stride in zip(order, contiguous(tuple(full[a] for a in order), width), strict=True):
        x_strides[axis] = stride
    x = layout.put(rng.integers(0, 256, size).astype(np.uint8))
    if flip >= 0:
        axis = AXES - len(shape) + flip
        x += (full[axis] - 1) * x_strides[axis]
        x_strides[axis] = -x_strides[axis]
    columns = named(
        move.COPY_COLUMNS,
        x=x,
        y=layout.room(size),
        bytes=width,
        **numbered("n", full),
        **numbered("x", x_strides),
        **numbered("y", contiguous(full, width)),
        table=layout.const(rng.permutation(256).astype(np.uint8)) if table else -1,
    )
    return layout.arguments(columns)


def copies(rng: np.random.Generator) -> Iterator[Arguments]:
    """Contiguous, transposed, flipped, broadcast, scattered; each width; with and without table.

    Transpositions of bytes have sides of full and of broken blocks, and few lines that become one.
    """
    for width in (1, 4, 8):
        yield _copy(rng, (77,), width=width)
        yield _copy(rng, (0, 5), width=width)
        yield _copy(rng, (5, 0), width=width)
        yield _copy(rng, (2, 35, 67), (0, 2, 1), width)
        yield _copy(rng, (2, 3, 1, 2, 5, 3), (3, 0, 5, 1, 4, 2), width)
        yield _copy(rng, (3, 4, 19), width=width, flip=2)
        yield _copy(rng, (3, 4, 19), width=width, flip=1)
        yield _spread(_copy(rng, (3, 4, 19), width=width))
        yield _broadcast(_copy(rng, (3, 4, 19), width=width))
    for shape in ((2, 150, 3), (2, 133, 4), (64, 3), (63, 4), (2, 130, 19), (1, 70, 16), (70, 15)):
        order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        yield _copy(rng, shape, order)
        yield _copy(rng, (*shape[:-2], shape[-1], shape[-2]), order)
    yield _copy(rng, (2, 35, 67), (0, 2, 1), table=True)
    yield _copy(rng, (3, 4, 19), table=True)
    yield _copy(rng, (5, 150), table=True)
    yield _spread(_copy(rng, (5, 150), table=True))
    yield _columns(_copy(rng, (1, 40, 70)))


def _spread(arguments: Arguments) -> Arguments:
    """Every other element of the last axis of y, as for a depth-to-space."""
    row, arena, consts, *threads = arguments
    row[move.N5] //= 2
    row[move.Y5] *= 2
    return row, arena, consts, *threads


def _broadcast(arguments: Arguments) -> Arguments:
    """The same element of x along the last axis."""
    arguments[0][move.X5] = 0
    return arguments


def _columns(arguments: Arguments) -> Arguments:
    """The same copy with its last two axes exchanged: both sides are read column by column."""
    row = arguments[0]
    for first, second in ((move.N4, move.N5), (move.X4, move.X5), (move.Y4, move.Y5)):
        row[[first, second]] = row[[second, first]]
    return arguments


def copy_work(rng: np.random.Generator) -> Arguments:
    """NCHW to NHWC."""
    return _copy(rng, (PIXELS, CHANNELS), (1, 0))


def _fill(rng: np.random.Generator, shape: tuple[int, ...], strides: list[int]) -> Arguments:
    layout = Layout()
    full = (1,) * (AXES - len(shape)) + shape
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    columns = named(
        move.FILL_COLUMNS,
        y=layout.room(max(last + 1, 1)),
        value=int(rng.integers(0, 256)),
        **numbered("n", full),
        **numbered("y", [0] * (AXES - len(shape)) + strides),
    )
    return layout.arguments(columns)


def fills(rng: np.random.Generator) -> Iterator[Arguments]:
    """Contiguous, a frame's side, every other byte, nothing."""
    yield _fill(rng, (77,), [1])
    yield _fill(rng, (0,), [1])
    yield _fill(rng, (2, 3, 1, 2, 5, 3), [400, 130, 130, 60, 8, 2])
    yield _fill(rng, (9, 2), [13, 1])
    yield _fill(rng, (1, 40), [0, 3])


def fill_work(rng: np.random.Generator) -> Arguments:
    """The left border of a map, a pixel of 64 channels a row, many rows."""
    return _fill(rng, (PIXELS, CHANNELS), [2 * CHANNELS, 1])


def _take(rng: np.random.Generator, outer: int, length: int, count: int, inner: int) -> Arguments:
    layout = Layout()
    columns = named(
        move.TAKE_COLUMNS,
        x=layout.put(rng.integers(0, 256, outer * length * inner).astype(np.uint8)),
        y=layout.room(outer * count * inner),
        outer=outer,
        count=count,
        inner=inner,
        index=layout.const(rng.integers(0, max(length, 1), count)),
        length=length,
    )
    return layout.arguments(columns)


def takes(rng: np.random.Generator) -> Iterator[Arguments]:
    """Runs of one and more bytes, repeated and left out entries, nothing."""
    for outer, length, count, inner in (
        (1, 1, 1, 1),
        (3, 7, 11, 1),
        (3, 7, 5, 9),
        (1, 20, 3, 64),
        (0, 3, 2, 4),
        (2, 3, 0, 4),
        (2, 3, 2, 0),
    ):
        yield _take(rng, outer, length, count, inner)


def take_work(rng: np.random.Generator) -> Arguments:
    """Rows of a map of 64 channels."""
    return _take(rng, 1, PIXELS, PIXELS, CHANNELS)

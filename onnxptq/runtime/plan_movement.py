"""Rows of instructions that only move elements: views are made by numpy, one copy reads them.

A view of an array that is never touched has the offset and the strides that `copy` needs, so each
instruction is written as its one line of numpy. A view whose elements lie one after the other is
no copy at all, but another name for them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxptq.errors import ProgramError
from onnxptq.program import Instr
from onnxptq.runtime.draft import Array, Draft, Shape, View, numbered, stored

AXES = 6
"""How many axes the rows of copy, fill and pair have."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Elements to copy: a numpy view of a stand-in for the array in the arena."""

    source: View
    base: Array
    view: Array

    @classmethod
    def of(cls, source: View) -> "Picture":
        """All elements; the stand-in is memory that is never touched."""
        base = np.empty(source.shape, source.dtype)
        return cls(source, base, base)

    def seen(self, view: Array) -> "Picture":
        """The same source through another view of the stand-in."""
        return Picture(self.source, self.base, view)

    @property
    def offset(self) -> int:
        """Bytes from the first element of the source to the first of the view."""
        return address(self.view) - address(self.base)


def address(array: Array) -> int:
    """Where the first element of an array is."""
    return int(array.__array_interface__["data"][0])


@dataclass(frozen=True, slots=True)
class Nest:
    """Loops over at most six axes: sizes, and the strides and start offset of each operand."""

    sizes: Shape
    strides: tuple[Shape, ...]
    offsets: tuple[int, ...]


def nests(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> Iterator[Nest]:
    """Loops over any number of axes as loops over six.

    Axes that all operands walk through as one are joined; what is left above six axes is
    unrolled from the outside. Nothing is given where there is no element.

    Args:
        sizes: Of the axes.
        strides: Of each operand, in any unit.
    """
    if 0 in sizes:
        return
    axes = _joined(sizes, strides)
    inner = axes[max(0, len(axes) - AXES) :]
    outer = axes[: max(0, len(axes) - AXES)]
    missing = AXES - len(inner)
    inner_sizes = (1,) * missing + tuple(size for size, _ in inner)
    inner_strides = tuple(
        (0,) * missing + tuple(steps[i] for _, steps in inner) for i in range(len(strides))
    )
    for index in np.ndindex(*(size for size, _ in outer)):
        offsets = tuple(
            sum(n * steps[i] for n, (_, steps) in zip(index, outer, strict=True))
            for i in range(len(strides))
        )
        yield Nest(inner_sizes, inner_strides, offsets)


def _joined(
    sizes: Sequence[int], strides: Sequence[Sequence[int]]
) -> list[tuple[int, tuple[int, ...]]]:
    axes: list[tuple[int, tuple[int, ...]]] = []
    for axis, size in enumerate(sizes):
        steps = tuple(operand[axis] for operand in strides)
        if size == 1:
            continue
        if axes and axes[-1][1] == tuple(size * step for step in steps):
            axes[-1] = (axes[-1][0] * size, steps)
        else:
            axes.append((size, steps))
    return axes


def copy(draft: Draft, picture: Picture, target: Picture, table: int = -1) -> None:
    """Rows that copy the elements of one view to those of another of the same shape."""
    size = picture.view.itemsize
    views = (picture.view, target.view)
    sizes, strides = list(views[0].shape), [list(view.strides) for view in views]
    if size not in (1, 4, 8):  # of other types the bytes are copied
        sizes, size = [*sizes, size], 1
        strides = [[*steps, 1] for steps in strides]
    for nest in nests(sizes, strides):
        columns = {
            "x": picture.source.at(picture.offset + nest.offsets[0], ()),
            "y": target.source.at(target.offset + nest.offsets[1], ()),
            "bytes": size,
            **numbered("n", nest.sizes),
            **numbered("x", nest.strides[0]),
            **numbered("y", nest.strides[1]),
            "table": table,
        }
        draft.row("copy", columns, math.prod(nest.sizes) * size)


def give(draft: Draft, value: int, picture: Picture) -> None:
    """Make a value of the elements of a view; without a copy where they already lie in order."""
    if picture.view.flags.c_contiguous:
        draft.views[value] = picture.source.at(picture.offset, picture.view.shape)
    else:
        copy(draft, picture, Picture.of(draft.make(value, picture.view.shape)))


def _first(draft: Draft, instr: Instr) -> Picture:
    return Picture.of(draft.read(instr.inputs[0]))


def identity(draft: Draft, instr: Instr) -> None:
    """The same elements."""
    give(draft, instr.outputs[0], _first(draft, instr))


def transpose(draft: Draft, instr: Instr) -> None:
    """Another order of axes."""
    picture, perm = _first(draft, instr), instr.ints("perm")
    if len(perm) != picture.view.ndim:
        raise ProgramError(f"perm {perm} has not the rank of the input, {picture.view.ndim}")
    give(draft, instr.outputs[0], picture.seen(picture.view.transpose(perm)))


def flatten(draft: Draft, instr: Instr) -> None:
    """Two axes: those before `axis` and those from it on."""
    picture = _first(draft, instr)
    shape, axis = picture.view.shape, instr.int("axis")
    axis += picture.view.ndim if axis < 0 else 0
    sizes = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    give(draft, instr.outputs[0], picture.seen(picture.view.reshape(sizes)))


def reshape(draft: Draft, instr: Instr) -> None:
    """Other sizes; 0 copies the input's (unless allowzero), -1 is what is left."""
    picture = _first(draft, instr)
    shape = [int(n) for n in draft.numbers(instr, 1).reshape(-1)]
    if not instr.attrs.get("allowzero", 0):
        if any(n == 0 and i >= picture.view.ndim for i, n in enumerate(shape)):
            raise ProgramError(f"shape {shape} copies a size that {picture.view.shape} has not")
        shape = [picture.view.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    if -1 in shape and picture.view.size == 0:
        # numpy refuses 0 elements with -1; ONNX takes the quotient of the other sizes.
        others = math.prod(n for n in shape if n != -1)
        shape = [0 if n == -1 and others else n for n in shape]
    give(draft, instr.outputs[0], picture.seen(picture.view.reshape(shape)))


def squeeze(draft: Draft, instr: Instr) -> None:
    """Without axes of size 1: those named, else all."""
    picture, axes = _first(draft, instr), draft.optional_numbers(instr, 1)
    give(draft, instr.outputs[0], picture.seen(np.squeeze(picture.view, axes)))


def unsqueeze(draft: Draft, instr: Instr) -> None:
    """With new axes of size 1."""
    picture, axes = _first(draft, instr), draft.optional_numbers(instr, 1)
    give(draft, instr.outputs[0], picture.seen(np.expand_dims(picture.view, axes or ())))


def expand(draft: Draft, instr: Instr) -> None:
    """Broadcast to a shape, which may also be the smaller one."""
    picture = _first(draft, instr)
    shape = tuple(int(n) for n in draft.numbers(instr, 1).reshape(-1))
    sizes = np.broadcast_shapes(picture.view.shape, shape)
    give(draft, instr.outputs[0], picture.seen(np.broadcast_to(picture.view, sizes)))


def tile(draft: Draft, instr: Instr) -> None:
    """Repeated along each axis."""
    picture = _first(draft, instr)
    repeats = [int(n) for n in draft.numbers(instr, 1).reshape(-1)]
    shape = picture.view.shape
    if len(repeats) != len(shape):
        raise ProgramError(f"repeats {repeats} has not the rank of the input, {len(shape)}")
    pairs = list(zip(repeats, shape, strict=True))
    wide = picture.view.reshape([n for size in shape for n in (1, size)])
    seen = picture.seen(np.broadcast_to(wide, [n for pair in pairs for n in pair]))
    _give_as(draft, instr.outputs[0], seen, tuple(times * size for times, size in pairs))


def _give_as(draft: Draft, value: int, picture: Picture, shape: Shape) -> None:
    """Make a value of a view, and name its sizes otherwise."""
    give(draft, value, picture)
    draft.views[value] = draft.views[value].at(0, shape)


def slice_(draft: Draft, instr: Instr) -> None:
    """A part of each axis, with steps, forwards or backwards."""
    picture = _first(draft, instr)
    starts = draft.optional_numbers(instr, 1) or ()
    ends = draft.optional_numbers(instr, 2) or ()
    axes = draft.optional_numbers(instr, 3) or tuple(range(len(starts)))
    steps = draft.optional_numbers(instr, 4) or (1,) * len(starts)
    cuts = [slice(None)] * picture.view.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not -len(cuts) <= axis < len(cuts):
            raise ProgramError(f"axis {axis} of a value of rank {len(cuts)}")
        cuts[axis] = _cut(start, end, step, picture.view.shape[axis])
    give(draft, instr.outputs[0], picture.seen(picture.view[tuple(cuts)]))


def _cut(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's start, end and step as Python's: an end before the first element has no number there.

    Source:
        ONNX operator Slice: starts and ends are clamped to the axis after negative ones were
        counted from its end.
    """
    if step == 0:
        raise ProgramError("a step of 0")
    start += size if start < 0 else 0
    end += size if end < 0 else 0
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step) if size else slice(0, 0, step)


def split(draft: Draft, instr: Instr) -> None:
    """Parts along an axis: of the sizes given, else as equal as possible with the last smaller."""
    picture = _first(draft, instr)
    axis, count = instr.int("axis"), len(instr.outputs)
    size = picture.view.shape[axis]
    parts = draft.optional_numbers(instr, 1)
    if parts is None:
        each = -(-size // count)
        parts = tuple(max(0, min(each, size - i * each)) for i in range(count))
    if sum(parts) != size or len(parts) != count:
        raise ProgramError(f"parts {parts} do not make up the {size} elements of axis {axis}")
    ends = np.cumsum(parts)[:-1].tolist()
    for value, view in zip(instr.outputs, np.split(picture.view, ends, axis), strict=True):
        give(draft, value, picture.seen(view))


def depth_to_space(draft: Draft, instr: Instr) -> None:
    """Channels become pixels of blocks."""
    picture, block = _first(draft, instr), instr.int("blocksize")
    n, channels, height, width = picture.view.shape
    left = channels // (block * block)
    if instr.text("mode") == "CRD":
        view = picture.view.reshape(n, left, block, block, height, width)
        view = view.transpose(0, 1, 4, 2, 5, 3)
    else:
        view = picture.view.reshape(n, block, block, left, height, width)
        view = view.transpose(0, 3, 4, 1, 5, 2)
    shape = (n, left, height * block, width * block)
    _give_as(draft, instr.outputs[0], picture.seen(view), shape)


def concat(draft: Draft, instr: Instr) -> None:
    """One after the other along an axis; tables turn codes of one scale into those of another."""
    pictures = [Picture.of(draft.read(value)) for value in instr.inputs]
    axis, value = instr.int("axis"), instr.outputs[0]
    shape = list(pictures[0].view.shape)
    for picture in pictures:
        others = [n for i, n in enumerate(picture.view.shape) if i != axis % len(shape)]
        if others != [n for i, n in enumerate(shape) if i != axis % len(shape)]:
            found = " and ".join(str(picture.view.shape) for picture in pictures)
            raise ProgramError(f"inputs of shapes {found} do not fit along axis {axis}")
    shape[axis] = sum(picture.view.shape[axis] for picture in pictures)
    target = Picture.of(draft.make(value, shape))
    ends = np.cumsum([picture.view.shape[axis] for picture in pictures])[:-1].tolist()
    tables = instr.arrays.get("tables")
    parts = np.split(target.view, ends, axis)
    for number, (picture, part) in enumerate(zip(pictures, parts, strict=True)):
        table = -1 if tables is None else draft.constants.add(stored(tables[number]))
        copy(draft, picture, target.seen(part), table)


def pad(draft: Draft, instr: Instr) -> None:
    """More elements at both ends of axes, or fewer where a number is negative."""
    source = draft.read(instr.inputs[0])
    rank = len(source.shape)
    pads = draft.optional_numbers(instr, 1) or ()
    axes = draft.optional_numbers(instr, 3) or tuple(range(rank))
    if len(pads) != 2 * len(axes):
        raise ProgramError(f"pads {pads} are not two for each of the axes {axes}")
    ends = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        ends[axis] = (pads[i], pads[i + len(axes)])
    if instr.text("mode") == "constant":
        _pad_constant(draft, instr, ends)
    else:
        mode = instr.text("mode")
        indices = [_padded(size, *end, mode) for size, end in zip(source.shape, ends, strict=True)]
        take_all(draft, instr.outputs[0], source, indices)


def _padded(size: int, before: int, after: int, mode: str) -> Array:
    """Which element of an axis of `size` each element of the padded axis is."""
    if mode not in ("edge", "reflect", "wrap"):
        raise ProgramError(f"mode {mode!r}, expected constant, edge, reflect or wrap")
    kept = np.arange(max(0, -before), size - max(0, -after))
    ends = (max(0, before), max(0, after))
    return np.pad(kept, ends, mode)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _pad_constant(draft: Draft, instr: Instr, ends: Sequence[tuple[int, int]]) -> None:
    picture, value = _first(draft, instr), instr.outputs[0]
    sizes = [n + sum(end) for n, end in zip(picture.view.shape, ends, strict=True)]
    if min(sizes, default=0) < 0:
        raise ProgramError(f"pads {ends} take more than the shape {picture.view.shape} has")
    target = Picture.of(draft.make(value, sizes))
    if any(before > 0 or after > 0 for before, after in ends):
        _fill(draft, target, instr.int("value") + draft.sign(value))
    kept = tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in _zip(picture, ends))
    room = tuple(slice(max(0, a), n - max(0, b)) for n, (a, b) in _zip(target, ends))
    copy(draft, picture.seen(picture.view[kept]), target.seen(target.view[room]))


def _zip(
    picture: Picture, ends: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, tuple[int, int]]]:
    return zip(picture.view.shape, ends, strict=True)


def _fill(draft: Draft, target: Picture, number: int) -> None:
    """Rows that write one number to all elements."""
    if target.view.itemsize > 1 and number != 0:
        raise ProgramError(f"padding {target.view.dtype} with {number}, only 0 is possible")
    columns = {
        "y": target.source,
        "value": number,
        **numbered("n", (1,) * (AXES - 1) + (target.view.nbytes,)),
        **numbered("y", (0,) * (AXES - 1) + (1,)),
    }
    draft.row("fill", columns, target.view.nbytes)


def take_all(draft: Draft, value: int, source: View, indices: Sequence[Array]) -> None:
    """Make a value of chosen elements of each axis, one axis after the other.

    Axes that shrink go first, so that the others have less to move.
    """
    for axis in sorted(range(len(indices)), key=lambda i: len(indices[i]) - source.shape[i]):
        index, size = indices[axis], source.shape[axis]
        if not np.array_equal(index, np.arange(size)):
            shape = (*source.shape[:axis], len(index), *source.shape[axis + 1 :])
            target = draft.temporary(shape, source.dtype)
            take(draft, source, target, index, axis)
            source = target
    draft.views[value] = source


def take(draft: Draft, source: View, target: View, index: Array, axis: int) -> None:
    """A row that takes elements `index` of an axis."""
    size = source.shape[axis]
    if np.any((index < 0) | (index >= size)):
        raise ProgramError(f"an index is outside of axis {axis}, which has {size} elements")
    inner = math.prod(source.shape[axis + 1 :]) * source.dtype.itemsize
    outer = math.prod(source.shape[:axis])
    if outer * index.size * inner == 0:
        return
    columns = {
        "x": source,
        "y": target,
        "outer": outer,
        "count": index.size,
        "inner": inner,
        "index": draft.constants.add(index.reshape(-1).astype(np.int64)),
        "length": size,
    }
    draft.row("take", columns, outer * index.size * inner)


def gather(draft: Draft, instr: Instr) -> None:
    """Elements of one axis, by indices that are known before the program runs."""
    source, index = draft.read(instr.inputs[0]), draft.numbers(instr, 1)
    axis = instr.int("axis") % len(source.shape)
    index = np.where(index < 0, index + source.shape[axis], index)
    shape = (*source.shape[:axis], *index.shape, *source.shape[axis + 1 :])
    take(draft, source, draft.make(instr.outputs[0], shape), index, axis)

"""Windows of convolutions and pools: output sizes and padding, by onnxruntime's rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxptq.errors import ProgramError
from onnxptq.program import Instr
from onnxptq.runtime.draft import Cell, Draft, Shape, View

SPATIAL = ("d", "h", "w")


@dataclass(frozen=True, slots=True)
class Window:
    """How a window walks over an image; sizes of all spatial axes.

    Attributes:
        sizes: Of the input.
        kernel: Of the window.
        strides: From one window to the next.
        dilations: From one element of a window to the next.
        pads: What is added before each axis.
        out: Of the output.
        padded: Whether anything is added before or behind an axis.
    """

    sizes: Shape
    kernel: Shape
    strides: Shape
    dilations: Shape
    pads: Shape
    out: Shape
    padded: bool

    def columns(self) -> dict[str, Cell]:
        """Columns of a row; missing axes have size 1."""
        columns: dict[str, Cell] = {}
        for letter, numbers, fill in (
            ("in", self.sizes, 1),
            ("out", self.out, 1),
            ("k", self.kernel, 1),
            ("s", self.strides, 1),
            ("d", self.dilations, 1),
            ("p", self.pads, 0),
        ):
            columns |= spatial(letter, numbers, fill)
        return columns


def spatial(letter: str, numbers: Sequence[int], fill: int) -> dict[str, Cell]:
    """Columns of up to three axes; `fill` for those that are missing in front."""
    full = (fill,) * (len(SPATIAL) - len(numbers)) + tuple(numbers)
    return {f"{letter}_{axis}": n for axis, n in zip(SPATIAL, full, strict=True)}


@dataclass(frozen=True, slots=True)
class Image:
    """A batch of images in the arena: sizes, and the strides of its axes in elements."""

    batch: int
    channels: int
    sizes: Shape
    strides: tuple[int, int, Shape]

    @classmethod
    def of(cls, view: View, channels_last: bool) -> "Image":
        """Read an array's shape as batch, channels and spatial axes.

        Raises:
            ProgramError: It has less than one or more than three spatial axes.
        """
        return cls.of_shape(view.shape, channels_last)

    @classmethod
    def of_shape(cls, shape: Shape, channels_last: bool) -> "Image":
        """The same for elements that lie one after the other.

        Raises:
            ProgramError: As `of`.
        """
        if not 3 <= len(shape) <= 2 + len(SPATIAL):
            raise ProgramError(f"an input of rank {len(shape)}, expected 3 to 5")
        steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if channels_last:
            return cls(shape[0], shape[-1], shape[1:-1], (steps[0], 1, tuple(steps[1:-1])))
        return cls(shape[0], shape[1], shape[2:], (steps[0], steps[1], tuple(steps[2:])))

    def columns(self, letter: str) -> dict[str, Cell]:
        """Columns of the strides."""
        batch, channel, rest = self.strides
        return {f"{letter}_n": batch, f"{letter}_c": channel, **spatial(letter, rest, 0)}


def is_channels_last(instr: Instr) -> bool:
    """Whether the channels are the last axis."""
    return bool(instr.attrs.get("channels_last", 0))


def image_shape(instr: Instr, image: Image, sizes: Shape) -> Shape:
    """Shape of an output with the batch of `image` and other sizes, channels first."""
    if is_channels_last(instr):
        return (image.batch, *sizes[1:], sizes[0])
    return (image.batch, *sizes)


def make_image(draft: Draft, instr: Instr, image: Image, sizes: Shape) -> View:
    """Give the output of an instruction a place: the batch of `image`, other sizes."""
    return draft.make(instr.outputs[0], image_shape(instr, image, sizes))


def conv_window(instr: Instr, sizes: Shape, kernel: Shape) -> Window:
    """Windows of a convolution."""
    strides, dilations = _steps(instr, "strides", sizes), _steps(instr, "dilations", sizes)
    begin, end = _pads(instr, sizes, kernel, strides)
    out = tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, a, b, d, k, s in zip(sizes, begin, end, dilations, kernel, strides, strict=True)
    )
    _check(out, sizes, kernel)
    return Window(sizes, kernel, strides, dilations, begin, out, any(begin) or any(end))


def pool_window(instr: Instr, sizes: Shape) -> Window:
    """Windows of a pool, whose last one may hang over with ceil_mode."""
    kernel = instr.ints("kernel_shape")
    strides, dilations = _steps(instr, "strides", sizes), _steps(instr, "dilations", sizes)
    if len(kernel) != len(sizes):
        raise ProgramError(f"kernel_shape {kernel} for an image of {len(sizes)} axes")
    begin, end = _pads(instr, sizes, kernel, strides)
    ceil = bool(instr.attrs.get("ceil_mode", 0))
    out: list[int] = []
    for n, a, b, d, k, s in zip(sizes, begin, end, dilations, kernel, strides, strict=True):
        room = n + a + b - d * (k - 1) - 1
        count = (-(-room // s) if ceil else room // s) + 1
        # The last window begins inside of the image or of the padding before it.
        out.append(count - 1 if ceil and (count - 1) * s >= n + a else count)
    _check(tuple(out), sizes, kernel)
    return Window(sizes, kernel, strides, dilations, begin, tuple(out), any(begin) or any(end))


def _steps(instr: Instr, name: str, sizes: Shape) -> Shape:
    found = instr.attrs.get(name, ())
    assert isinstance(found, tuple)
    return found or (1,) * len(sizes)


def _pads(instr: Instr, sizes: Shape, kernel: Shape, strides: Shape) -> tuple[Shape, Shape]:
    """Padding before and behind each axis.

    Source:
        onnxruntime/core/providers/common.h ComputePad, nn/pool_attributes.h: with SAME, dilations
        do not count (a dilated window is refused by Conv).
    """
    rank, auto = len(sizes), instr.attrs.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return (0,) * rank, (0,) * rank
    if auto in ("", "NOTSET"):
        pads = instr.attrs.get("pads", ()) or (0,) * (2 * rank)
        assert isinstance(pads, tuple)
        return pads[:rank], pads[rank:]
    needed = [
        max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)
    ]
    less, more = tuple(n // 2 for n in needed), tuple(n - n // 2 for n in needed)
    return (more, less) if auto == "SAME_LOWER" else (less, more)


def _check(out: Shape, sizes: Shape, kernel: Shape) -> None:
    if min(out, default=1) < 1:
        raise ProgramError(f"a window of {kernel} does not fit into an image of {sizes}")

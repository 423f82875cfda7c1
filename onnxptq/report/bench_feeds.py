"""What `bench` feeds: the first samples of DATA, or random numbers of the right shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.calibrate.data import open_data
from onnxptq.errors import CalibrationError, ModelError, SpecError
from onnxptq.ort import Port
from onnxptq.report.inputs import info

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

SEED = 0
MOST_RANK = 8


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What to feed.

    Attributes:
        data: DATA; None for random numbers.
        preprocess: Text of the preprocessing of images.
        batch_size: Samples of a run, where the model leaves the choice.
        shapes: Of inputs with free sizes, by name.
    """

    data: str | None = None
    preprocess: str | None = None
    batch_size: int = 1
    shapes: Mapping[str, Shape] = field(default_factory=dict[str, Shape])


def parse_shapes(texts: Sequence[str]) -> dict[str, Shape]:
    """Shapes by input from texts such as "input=1x3x224x224".

    Raises:
        SpecError: A text has another form.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        sides = sizes.split("x")
        if not name or not all(s.isascii() and s.isdigit() and int(s) > 0 for s in sides):
            raise SpecError(f"--shape {text!r}: expected a text like input=1x3x224x224")
        shapes[name] = tuple(map(int, sides))
    return shapes


def feeds_for(ports: Sequence[Port], options: FeedOptions) -> dict[str, Array]:
    """One run's inputs.

    Raises:
        CalibrationError: The data cannot be read or do not fit.
        ModelError: An input holds no numbers.
        SpecError: A shape is missing or does not fit.
    """
    infos = [info(port) for port in ports]
    if options.data is None:
        rng = np.random.default_rng(SEED)
        return {port.name: _random(port, options, rng) for port in ports}
    data = open_data(options.data, infos, options.preprocess, options.batch_size)
    first = next(iter(data.batches(options.batch_size)), None)
    if first is None:
        raise CalibrationError(f"{options.data}: there is no sample to run")
    return dict(first)


def _random(port: Port, options: FeedOptions, rng: np.random.Generator) -> Array:
    shape, dtype = shape_for(port, options), port.dtype
    if dtype is None:
        raise ModelError(f"input {port.name!r} holds no numbers")
    if dtype.kind in "iub":
        # Wider integers are indices or lengths, of which only the smallest are sure to exist.
        end = 256 if dtype == np.uint8 else 2
        return rng.integers(0, end, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def shape_for(port: Port, options: FeedOptions) -> Shape:
    """The shape of an input: as the model says, as --shape says, and one sample a run.

    Raises:
        SpecError: A size is free that is not the first, or --shape does not fit.
    """
    known = [side if isinstance(side, int) and side > 0 else None for side in port.shape or ()]
    wanted = options.shapes.get(port.name)
    if wanted is not None:
        fits = len(wanted) == len(known) and all(
            side in (None, size) for side, size in zip(known, wanted, strict=True)
        )
        if port.shape and not fits:
            raise SpecError(
                f"--shape {port.name}={'x'.join(map(str, wanted))}: the model says {_text(port)}"
            )
        return wanted
    if port.shape is None or None in known[1:]:
        example = "x".join(str(side or 224) for side in (1, *known[1:])) if known else "1x3x224x224"
        raise SpecError(
            f"input {port.name!r} has the shape {_text(port)}, whose free sizes need a value; give "
            f"it with --shape {port.name}={example}, or feed --data"
        )
    return tuple(options.batch_size if side is None else side for side in known)


def _text(port: Port) -> str:
    return f"[{', '.join('?' if side is None else str(side) for side in port.shape or ('...',))}]"

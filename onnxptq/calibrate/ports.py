"""PortInfo: what one model input wants, and the check that data has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.errors import CalibrationError

Array = npt.NDArray[Any]
Batch = dict[str, Array]


@dataclass(frozen=True, slots=True)
class PortInfo:
    """Name, type and shape of a model input.

    Attributes:
        name: Name of the input.
        dtype: Its numpy type.
        shape: A number, a symbol, or None (both of which take anything) for each dimension; None if
            not even the rank is known.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...] | None

    @property
    def batch(self) -> int | None:
        """Fixed size of the first dimension; None if it is free."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be fed."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        pairs = zip(shape, self.shape, strict=True)
        return all(not isinstance(want, int) or have == want for have, want in pairs)

    def shape_text(self) -> str:
        """The shape as an error message says it: [N, 3, 32, 32]."""
        if self.shape is None:
            return "any shape"
        return "[" + ", ".join("?" if side is None else str(side) for side in self.shape) + "]"


def checked(batch: Batch, inputs: Sequence[PortInfo], where: str) -> Batch:
    """The arrays that the model takes, cast where that loses nothing that matters.

    Raises:
        CalibrationError: An input is missing, has the wrong shape or type, or holds NaN or inf.
    """
    return {port.name: _checked(batch, port, where) for port in inputs}


def _checked(batch: Batch, port: PortInfo, where: str) -> Array:
    if port.name not in batch:
        raise missing(port.name, batch, where)
    array = cast(np.asarray(batch[port.name]), port, where)
    if not port.fits(array.shape):
        raise CalibrationError(
            f"{where}: array {port.name!r} has shape {list(array.shape)}, "
            f"the model's input takes {port.shape_text()}"
        )
    require_finite(array, port.name, where)
    return array


def missing(name: str, found: Batch | Sequence[str], where: str) -> CalibrationError:
    """The error for a model input that the data does not have."""
    names = ", ".join(sorted(found)) or "nothing"
    return CalibrationError(
        f"{where}: no array {name!r}, which the model takes as input; found {names}. "
        f"Name the arrays as the model's inputs"
    )


def cast(array: Array, port: PortInfo, where: str) -> Array:
    """`array` in the type of the input: float widths and integer widths may change, kinds may not.

    Raises:
        CalibrationError: The kinds differ (pixels for a float input want --preprocess).
    """
    if array.dtype == port.dtype:
        return array
    have, want = array.dtype.kind, port.dtype.kind
    if have == want == "f":
        return array.astype(port.dtype)
    if have in "iu" and want in "iu":
        cast_array = array.astype(port.dtype)
        if (cast_array == array).all():
            return cast_array
    hint = (
        ". Pixels go in as uint8 array 'x' with --preprocess" if have == "u" and want == "f" else ""
    )
    raise CalibrationError(
        f"{where}: array {port.name!r} is {array.dtype}, the model's input takes {port.dtype}{hint}"
    )


def require_finite(array: Array, name: str, where: str) -> None:
    """Raise CalibrationError if a float array holds NaN or +inf.

    Minus infinity passes: attention masks are made of it. What reads it stays in float.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    nans, infs = int(np.isnan(array).sum()), int(np.isposinf(array).sum())
    if nans or infs:
        raise CalibrationError(
            f"{where}: array {name!r} holds {nans} NaN and {infs} inf in {array.size} numbers; "
            f"clean the data first"
        )

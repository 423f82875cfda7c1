"""Samples: what a block reads and should give, for every sample, held once and drawn from often."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from onnxptq.calibrate.source import Data
from onnxptq.kernels import fake_quantize
from onnxptq.methods.method import Context
from onnxptq.methods.reconstruction.blocks import Block
from onnxptq.recipe import Recipe

Tensor = torch.Tensor
Array = npt.NDArray[np.generic]

IN_MEMORY_BYTES = 1 << 30
"""More than this for one kind of value is kept in a file, of which the system holds what it can."""


class UnusableError(Exception):
    """A block whose values have no common axis of samples, with the reason."""


class Shelf:
    """Arrays of samples, in memory or, where they are large, in files of a folder of its own."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def gathered(self, batches: Iterator[Mapping[str, Array]], count: int) -> dict[str, Array]:
        """Values of all batches, each [count, ...].

        Raises:
            UnusableError: They are not one row a sample.
        """
        found: dict[str, Array] = {}
        at = dict[str, int]()
        for batch in batches:
            for name, array in batch.items():
                if name not in found:
                    found[name], at[name] = self._room(array, count), 0
                end = at[name] + len(array)
                if found[name].shape[1:] != array.shape[1:] or end > count:
                    raise UnusableError(f"value {name!r} is not one row a sample")
                found[name][at[name] : end] = array
                at[name] = end
        if any(rows != count for rows in at.values()):
            raise UnusableError("its values are not one row a sample")
        return found

    def _room(self, array: Array, count: int) -> Array:
        """An empty array [count, ...]; of images with channels side by side (`layout`)."""
        if array.ndim == 4:
            return self._in_order(array.transpose(CHANNELS_LAST), count).transpose(CHANNELS_FIRST)
        return self._in_order(array, count)

    def _in_order(self, array: Array, count: int) -> Array:
        shape = (count, *array.shape[1:])
        if count * array[:1].nbytes <= IN_MEMORY_BYTES:
            return np.empty(shape, array.dtype)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxptq-")
        self._files += 1
        return np.memmap(Path(self._folder.name) / f"{self._files}", array.dtype, "w+", shape=shape)

    def clear(self) -> None:
        """Give the files back."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What a block reads and should give.

    Attributes:
        coded: Its entry as the quantized blocks before it give it, [N, ...].
        real: Its entry in the float model.
        target: Its exit in the float model.
        weight: How much each number of the exit counts; None for all alike.
    """

    coded: Array
    real: Array
    target: Array
    weight: Array | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.target)

    @classmethod
    def of(cls, block: Block, recipe: Recipe, ctx: Context, data: Data, shelf: Shelf) -> "Samples":
        """Those of a block, by the kernels that will run.

        Raises:
            UnusableError: The values have no common axis of samples.
        """
        count = len(data)
        entry, leaving = str(block.entry.name), str(block.exit.name)
        real = shelf.gathered(ctx.float_taps([entry, leaving]).values(data), count)
        if entry in recipe.tensors:
            coded = shelf.gathered(ctx.coded_taps(recipe, [entry]).values(data), count)[entry]
        else:
            coded = real[entry]
        return cls(coded, real[entry], real[leaving])


def drawn(array: Array, rows: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Some rows as a tensor; on a CPU in the array's order in memory."""
    return _shaped(torch.from_numpy(_as_stored(array)[rows]).to(device), array)


def mixed(first: Array, second: Array, rows: npt.NDArray[np.int64], coins: Tensor) -> Tensor:
    """Some rows as a tensor, each element from the first array where its coin is 1.

    Args:
        first: Values, float32, [N, ...].
        second: Values, float32, [N, ...], in the same order in memory.
        rows: Numbers of the rows wanted, [B].
        coins: uint8, [B, ...], on the device that the result shall be on.
    """
    if coins.device.type != "cpu":
        one, other = (drawn(array, rows, coins.device) for array in (first, second))
        return torch.where(coins != 0, one, other)
    one, other = _as_stored(first), _as_stored(second)
    out = np.empty((len(rows), *one.shape[1:]), np.float32)
    tosses = coins.numpy().reshape(len(rows), -1)
    fake_quantize.mix_rows(_flat(one), _flat(other), rows, tosses, _flat(out))
    return _shaped(torch.from_numpy(out), first)


CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def _as_stored(array: Array) -> Array:
    """The array with its axes in the order in which they lie in memory."""
    if _has_channels_last(array):
        return array.transpose(CHANNELS_LAST)
    return np.ascontiguousarray(array)


def _has_channels_last(array: Array) -> bool:
    return array.ndim == 4 and array.transpose(CHANNELS_LAST).flags.c_contiguous


def _shaped(stored: Tensor, array: Array) -> Tensor:
    """Rows of `_as_stored` with the array's axes."""
    if not _has_channels_last(array):
        return stored
    tensor = stored.permute(CHANNELS_FIRST)
    return tensor if stored.device.type == "cpu" else tensor.contiguous()


def _flat(array: Array) -> npt.NDArray[np.float32]:
    """[N, ...] as [N, n]; not a copy, also of what is in a file."""
    return array.reshape(len(array), -1).view(np.float32)

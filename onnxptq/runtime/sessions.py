"""Sessions of onnxruntime for the islands of a program, made when first needed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.program import Island
from onnxptq.runtime.cpu import float_block

Array = npt.NDArray[Any]


class Sessions:
    """Runs islands. Every process has sessions of its own: theirs do not survive a fork."""

    def __init__(self, islands: Sequence[Island], threads: int = 1) -> None:
        self._islands = islands
        self._threads = threads
        self._loaded: dict[tuple[int, int], Any] = {}

    def run(self, number: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of an island by name.

        Raises:
            ModelError: onnxruntime does not load or run it.
            ProgramError: It was lowered on another class of CPU.
        """
        key = (os.getpid(), number)
        if key not in self._loaded:
            # A program without islands runs where onnxruntime is not installed.
            from onnxptq import ort  # noqa: PLC0415

            self._check(number)
            model = self._islands[number].model.tobytes()
            # Its nodes are those that onnxruntime runs in the whole model: they stay as they are.
            self._loaded[key] = ort.session(model, threads=self._threads, optimize=False)
        outputs: dict[str, Array] = self._loaded[key].run(feeds)
        return outputs

    def _check(self, number: int) -> None:
        island = self._islands[number]
        if island.block not in (0, float_block()):
            raise ProgramError(
                f"node {island.nodes[0]!r} and others run in float, in the layout of another CPU "
                f"(blocks of {island.block} channels, here {float_block()}); lower the quantized "
                "model again on this machine"
            )

"""LayerTimes: milliseconds of each node of a quantized model, for choices that must be quick."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxptq.kernels.peak import Peak, Read
from onnxptq.recipe import Recipe
from onnxptq.runtime.lower import lower
from onnxptq.runtime.profile import profile

Array = npt.NDArray[Any]
RUNS = 15
NO_PEAK = Peak("", 1.0, (Read("memory", 1.0, None, 0),))
"""What the machine could do at most is not asked here, and takes seconds to measure."""


class LayerTimes:
    """Measures the model that a recipe is written as, node by node, in the executor.

    The same kernel on the same shapes takes the same time, so recipes share the least that was
    measured for it: what differs between them is then what the kernels differ by, not noise.
    """

    def __init__(self, write: Callable[[Recipe], ir.Model], feeds: Mapping[str, Array]) -> None:
        self._write = write
        self._feeds = feeds
        self._kernels: dict[tuple[tuple[str, int], ...], dict[str, tuple[str, str, str]]] = {}
        self._least: dict[tuple[str, str, str], float] = {}

    def __call__(self, recipe: Recipe) -> dict[str, float]:
        """Milliseconds by node; a recipe is measured once for the widths it has.

        Raises:
            ProgramError: The executor cannot run the model.
        """
        widths = tuple((t.value, t.params.spec.bits) for t in recipe.tensors.values())
        if widths not in self._kernels:
            found = profile(lower(self._write(recipe)), self._feeds, RUNS, NO_PEAK)
            kernels: dict[str, tuple[str, str, str]] = {}
            for number, layer in enumerate(found.layers):
                name = layer.node if layer.node not in kernels else f"{layer.node} {number}"
                key = (name, layer.kernel, layer.shape)
                kernels[name] = key
                self._least[key] = min(layer.ms, self._least.get(key, layer.ms))
            self._kernels[widths] = kernels
        return {name: self._least[key] for name, key in self._kernels[widths].items()}

"""KERNELS: every kernel with its plain twin and the cases that tests and benchmarks run it on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxptq.kernels import cases, numeric


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel.

    Attributes:
        function: The compiled kernel.
        naive: The plain twin of the same signature: the specification, never optimised.
        cases: Argument tuples: odd, empty and 1-sized arrays, extreme values.
        work: Arguments of a typical size, for timing.
        elements: How many elements `work` has, which its time is divided by.
        rtol: How far float results may be from the twin's, and why is said in the kernel.
    """

    function: Callable[..., Any]
    naive: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterator[tuple[Any, ...]]]
    work: Callable[[np.random.Generator], tuple[Any, ...]]
    elements: int
    rtol: float


KERNELS: dict[str, Kernel] = {
    "update_histogram": Kernel(
        numeric.update_histogram,
        numeric.update_histogram_naive,
        cases.histograms,
        cases.histogram_work,
        cases.HISTOGRAM_WORK,
        1e-9,
    ),
    "update_channels": Kernel(
        numeric.update_channels,
        numeric.update_channels_naive,
        cases.channels,
        cases.channel_work,
        cases.CHANNEL_WORK,
        1e-9,
    ),
    "grow": Kernel(
        numeric.grow, numeric.grow_naive, cases.grown, cases.grow_work, cases.GROW_WORK, 0.0
    ),
    "search_grid": Kernel(
        numeric.search_grid,
        numeric.search_grid_naive,
        cases.grids,
        cases.grid_work,
        cases.GRID_WORK,
        2e-3,
    ),
    "divergence": Kernel(
        numeric.divergence,
        numeric.divergence_naive,
        cases.divergences,
        cases.divergence_work,
        cases.DIVERGENCE_WORK,
        1e-9,
    ),
    "weight_errors": Kernel(
        numeric.weight_errors,
        numeric.weight_errors_naive,
        cases.weights,
        cases.weight_work,
        cases.WEIGHT_WORK,
        3e-4,
    ),
}

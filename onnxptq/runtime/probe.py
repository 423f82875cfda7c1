"""A quick check that the installed onnxruntime computes by the formulas that we prove against.

The formulas are properties of a build and a CPU. Each is run on scales that are small multiples of
0.01, whose products lie on ties of rounding far more often than random ones: there a build with
other arithmetic shows itself. Only formulas that a program needs are checked.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ModelError
from onnxptq.program import Attribute
from onnxptq.runtime.probe_cases import FORMULAS, RANDOM

Array = npt.NDArray[Any]

ROUNDS = 20
SEED = 20_261_124
FORMULA_OF = {
    "conv": "convolution",
    "matmul": "matrix product",
    "matmul_computed": "matrix product",
    "acc_to_real": "matrix product",
    "add": "sum",
    "mul": "product",
    "concat": "concatenation",
    "global_average_pool": "global average",
    "average_pool": "average",
    "quantize": "quantization",
    "dequantize": "quantization",
}
"""What instructions compute by; those that only pick codes have no formula."""
DEPRECATED = "tf_half_pixel_for_nn"
"""onnxruntime writes a warning for each use; its rounding, which versions differ in, is common."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The outcome.

    Attributes:
        formulas: How many formulas were checked.
        elements: How many results were compared.
        wrong: Names of the formulas that do not hold, with how many results differ.
    """

    formulas: int
    elements: int
    wrong: Mapping[str, int]

    @property
    def holds(self) -> bool:
        """Whether all formulas hold."""
        return not self.wrong

    def summary(self) -> str:
        """One line for people and for the certificate."""
        if self.holds:
            return f"{self.formulas} formulas hold on {self.elements} tie-rich results"
        return "differs: " + ", ".join(f"{name} ({n})" for name, n in self.wrong.items())


def formula_of(op: str, attrs: Mapping[str, Attribute], dtype: str) -> str | None:
    """The name of the formula that an instruction computes by.

    Args:
        op: What it computes.
        attrs: Its attributes.
        dtype: Type of what it makes.
    """
    if op == "softmax":
        kind = "int8 softmax" if dtype == "int8" else "softmax"
        return kind if attrs["exact"] else f"{kind} in float32"
    if op == "resize":
        modes = attrs["coordinate_transformation_mode"], attrs["nearest_mode"]
        if modes[0] == DEPRECATED:
            modes = "asymmetric", modes[1]
        return f"nearest pixel ({', '.join(map(str, modes))})"
    return FORMULA_OF.get(op)


def probe(names: Iterable[str]) -> Probe:
    """Run these formulas in the installed onnxruntime; each takes a few hundredths of a second."""
    checked = {name: check(name) for name in sorted(set(names))}
    wrong = {name: bad for name, (_, bad) in checked.items() if bad}
    return Probe(len(checked), sum(size for size, _ in checked.values()), wrong)


@functools.cache
def check(name: str) -> tuple[int, int]:
    """Results that were compared for one formula, and how many differ; asked once a process."""
    rng, rounds = np.random.default_rng(SEED), ROUNDS if name in RANDOM else 1
    try:
        every = [case for _ in range(rounds) for case in FORMULAS[name](rng)]
    except ModelError:  # this version has no kernel for it
        return 1, 1
    return sum(expected.size for expected, _ in every), sum(_differing(*case) for case in every)


def _differing(expected: Array, found: Array) -> int:
    if expected.shape != found.shape:
        return expected.size
    return int((_bits(expected.astype(found.dtype)) != _bits(found)).sum())


def _bits(array: Array) -> Array:
    """Numbers as integers of the same bits, so that -0 is not 0 and NaN is itself."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")

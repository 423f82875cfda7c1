"""Norm: the statistics of a BatchNormalization that was folded away."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """What BatchNormalization knew of the values it normalized, all arrays [C].

    Its output has mean `beta` and standard deviation |gamma| in each channel, as far
    as the training data went: what data-free bias correction and range methods start from.
    """

    gamma: F32
    beta: F32
    mean: F32
    variance: F32
    epsilon: float

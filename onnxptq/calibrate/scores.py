"""Class scores among a model's outputs, and how far two rows of them are from each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

_PROBABILITY_TOLERANCE = (
    1e-3  # rows of a float32 softmax add up to 1 within 1e-6; float16 within 1e-3
)


def class_scores(outputs: Mapping[str, Array]) -> F64 | None:
    """The first output that is a row of class scores a sample, as [N, classes]; None without one.

    Trailing dimensions of size 1 are dropped, so that [N, C, 1, 1] counts.
    """
    for value in outputs.values():
        classes = value.shape[1] if value.ndim >= 2 else 0
        if classes >= 2 and value.size == len(value) * classes and value.dtype.kind == "f":
            return value.reshape(len(value), classes).astype(np.float64)
    return None


def kl_divergence(reference: F64, scores: F64) -> float:
    """Sum over rows of KL(reference || scores), in nats; scores become probabilities by softmax."""
    p, q = _log_probabilities(reference), _log_probabilities(scores)
    return float((np.exp(p) * (p - q)).sum())


def _log_probabilities(scores: F64) -> F64:
    """Log of softmax; rows that already are probabilities are taken as they are."""
    is_distribution = scores.min() >= 0.0 and np.allclose(
        scores.sum(1), 1.0, rtol=0.0, atol=_PROBABILITY_TOLERANCE
    )
    if is_distribution:
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

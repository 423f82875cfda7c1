"""What a quantized model lost, as sums over batches: SQNR, cosine, accuracy, divergence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.calibrate.scores import class_scores, kl_divergence
from onnxptq.report.rows import EQUAL_DB, Evaluation

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

BLOCK = 1 << 15


@dataclass(slots=True)
class Closeness:
    """Running sums from which SQNR and cosine follow; constant memory."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    dot: float = 0.0

    def update(self, reference: Array, measured: Array) -> None:
        """Add one batch; both arrays have the same shape, sums are in float64."""
        refs, outs = np.ravel(reference), np.ravel(measured)
        # In blocks that stay in the cache: whole arrays in float64 take three times as long.
        for start in range(0, refs.size, BLOCK):
            ref = refs[start : start + BLOCK].astype(np.float64)
            out = outs[start : start + BLOCK].astype(np.float64)
            self.signal += float(ref @ ref)
            self.other += float(out @ out)
            self.dot += float(ref @ out)
            ref -= out
            self.noise += float(ref @ ref)

    @property
    def sqnr_db(self) -> float | None:
        """10 log10(sum ref^2 / sum (ref - out)^2); `EQUAL_DB` if equal, None if not finite."""
        if not math.isfinite(self.signal + self.noise):
            return None
        if self.noise == 0.0:
            return EQUAL_DB
        if self.signal == 0.0:
            return -EQUAL_DB
        return min(10.0 * (math.log10(self.signal) - math.log10(self.noise)), EQUAL_DB)

    @property
    def cosine(self) -> float | None:
        """Cosine similarity, 1.0 for two zero tensors; None if not finite."""
        if not math.isfinite(self.signal + self.other):
            return None
        if self.signal == 0.0 or self.other == 0.0:
            return 1.0 if self.signal == self.other else 0.0
        return self.dot / math.sqrt(self.signal) / math.sqrt(self.other)


@dataclass(slots=True)
class Tally:
    """Running counts of `Evaluation`."""

    hits1: int = 0
    hits5: int = 0
    agreeing: int = 0
    divergence: float = 0.0
    closeness: Closeness = field(default_factory=Closeness)
    labelled: bool = False
    classified: bool = False
    compared: bool = False

    def update(
        self,
        outputs: Mapping[str, Array],
        reference: Mapping[str, Array] | None,
        labels: npt.NDArray[np.integer] | None,
    ) -> None:
        """Add one batch: outputs by name, those of the reference model, labels [N]."""
        scores = class_scores(outputs)
        if labels is not None and scores is not None:
            self.labelled = True
            self.hits1 += hits(scores, labels, 1)
            self.hits5 += hits(scores, labels, 5)
        if reference is not None:
            self._compare(outputs, reference, scores)

    def _compare(
        self, outputs: Mapping[str, Array], reference: Mapping[str, Array], scores: F64 | None
    ) -> None:
        self.compared = True
        for name, value in reference.items():
            if np.issubdtype(value.dtype, np.floating):
                self.closeness.update(value, outputs[name])
        expected = class_scores(reference)
        if scores is None or expected is None:
            return
        self.classified = True
        self.agreeing += int((scores.argmax(1) == expected.argmax(1)).sum())
        self.divergence += kl_divergence(expected, scores)

    def evaluation(self, n: int) -> Evaluation:
        """The shares of `n` samples; what could not be measured is None."""

        def share(count: float, known: bool) -> float | None:
            return count / n if known and n else None

        return Evaluation(
            n=n,
            top1=share(self.hits1, self.labelled),
            top5=share(self.hits5, self.labelled),
            agreement=share(self.agreeing, self.classified),
            sqnr_db=self.closeness.sqnr_db if self.compared else None,
            kl=share(self.divergence, self.classified),
        )


def hits(scores: F64, labels: npt.NDArray[np.integer], k: int) -> int:
    """How many labels are among the `k` highest scores of their row.

    Of equal scores the first counts as higher, as in argmax. Codes tie often, so another rule would
    shift a quantized model's accuracy.
    A label outside of the scores, or with a score of NaN, is a miss.
    """
    classes = scores.shape[1]
    inside = (labels >= 0) & (labels < classes)
    label = np.where(inside, labels, 0).astype(np.int64)[:, None]
    own = np.take_along_axis(scores, label, axis=1)
    before = np.arange(classes)[None, :] < label
    ahead = ((scores > own) | ((scores == own) & before)).sum(1)
    return int((inside & ~np.isnan(own[:, 0]) & (ahead < k)).sum())

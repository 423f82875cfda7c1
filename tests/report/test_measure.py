import math

import numpy as np
import pytest

from onnxptq.calibrate.scores import class_scores, kl_divergence
from onnxptq.report.measure import Closeness, Tally, hits
from onnxptq.report.rows import EQUAL_DB, QuantizeReport, decibels, percent, size_text

SUM_TOLERANCE = 1e-12  # float64 sums of a few thousand terms


def test_sqnr_is_the_ratio_of_energies_over_all_batches(rng: np.random.Generator) -> None:
    reference = rng.normal(size=(6, 50))
    measured = reference + 0.1 * rng.normal(size=(6, 50))
    closeness = Closeness()

    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        closeness.update(reference[rows], measured[rows])

    expected = 10 * math.log10((reference**2).sum() / ((reference - measured) ** 2).sum())
    assert closeness.sqnr_db == pytest.approx(expected, rel=SUM_TOLERANCE)


def test_cosine_is_that_of_the_whole_vectors(rng: np.random.Generator) -> None:
    reference, measured = rng.normal(size=300), rng.normal(size=300)
    closeness = Closeness()

    closeness.update(reference[:100], measured[:100])
    closeness.update(reference[100:], measured[100:])

    norms = np.linalg.norm(reference) * np.linalg.norm(measured)
    assert closeness.cosine == pytest.approx(reference @ measured / norms, rel=SUM_TOLERANCE)


def test_equal_tensors_have_the_ceiling_of_sqnr() -> None:
    closeness = Closeness()

    closeness.update(np.ones(4), np.ones(4))

    assert (closeness.sqnr_db, closeness.cosine) == (EQUAL_DB, 1.0)


def test_noise_without_any_signal_is_the_floor_of_sqnr() -> None:
    closeness = Closeness()

    closeness.update(np.zeros(4), np.ones(4))

    assert (closeness.sqnr_db, closeness.cosine) == (-EQUAL_DB, 0.0)


def test_nan_makes_both_figures_unknown() -> None:
    closeness = Closeness()

    closeness.update(np.ones(2), np.array([1.0, np.nan]))

    assert (closeness.sqnr_db, closeness.cosine) == (None, None)


def test_a_tie_goes_to_the_first_class_as_in_argmax() -> None:
    scores = np.array([[1.0, 3.0, 3.0, 0.0]])

    assert (hits(scores, np.array([1]), 1), hits(scores, np.array([2]), 1)) == (1, 0)


def test_hits_at_one_agree_with_argmax_on_tie_rich_scores(rng: np.random.Generator) -> None:
    scores = rng.integers(0, 4, (500, 10)).astype(np.float64)
    labels = rng.integers(0, 10, 500)

    assert hits(scores, labels, 1) == int((scores.argmax(1) == labels).sum())


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_without_a_score_is_a_miss(label: int) -> None:
    assert hits(np.zeros((1, 10)), np.array([label]), 5) == 0


def test_a_score_of_nan_is_a_miss() -> None:
    assert hits(np.full((1, 3), np.nan), np.array([0]), 1) == 0


def test_top_five_of_three_classes_is_always_a_hit() -> None:
    assert hits(np.eye(3), np.array([2, 0, 1]), 5) == 3


def test_class_scores_drops_trailing_ones() -> None:
    scores = class_scores({"y": np.zeros((2, 7, 1, 1), np.float32)})

    assert scores is not None
    assert scores.shape == (2, 7)


def test_an_image_has_no_class_scores() -> None:
    assert class_scores({"y": np.zeros((2, 3, 8, 8), np.float32)}) is None


def test_divergence_from_itself_is_zero(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(5, 10))

    assert kl_divergence(scores, scores) == 0.0


def test_divergence_of_logits_equals_that_of_their_probabilities(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 5, 10))
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    q = np.exp(b) / np.exp(b).sum(1, keepdims=True)

    assert kl_divergence(a, b) == pytest.approx(kl_divergence(p, q), rel=1e-9)
    assert kl_divergence(a, b) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)


def test_evaluation_without_labels_and_reference_knows_only_the_count() -> None:
    tally = Tally()

    tally.update({"y": np.eye(3, dtype=np.float32)}, None, None)
    result = tally.evaluation(3)

    assert (result.n, result.top1, result.top5, result.agreement) == (3, None, None, None)
    assert (result.sqnr_db, result.kl) == (None, None)


def test_evaluation_counts_shares_over_batches() -> None:
    tally = Tally()
    scores = np.eye(4, dtype=np.float32)

    tally.update({"y": scores[:2]}, {"y": scores[[0, 2]]}, np.array([0, 3]))
    tally.update({"y": scores[2:]}, {"y": scores[2:]}, np.array([2, 3]))
    result = tally.evaluation(4)

    assert (result.top1, result.top5, result.agreement) == (0.75, 1.0, 0.75)
    assert result.sqnr_db == pytest.approx(10 * math.log10(4 / 2), rel=SUM_TOLERANCE)


def test_sizes_are_in_decimal_units() -> None:
    assert [size_text(n) for n in (999, 1000, 4_920_000, 3_100_000_000)] == [
        "999 bytes",
        "1.00 kB",
        "4.92 MB",
        "3.10 GB",
    ]


def test_unknown_figures_are_shown_as_nothing() -> None:
    assert (percent(None), decibels(None), decibels(EQUAL_DB)) == ("", "", "equal")


def test_a_report_sums_itself_up() -> None:
    report = QuantizeReport(1.25, 512.4, 4_000_000, 1_000_000, 7.5, (), ())

    assert report.summary() == {
        "Quantized file": "1.00 MB",
        "Float file": "4.00 MB",
        "Ratio": "0.250",
        "Average weight bits": "7.50",
        "Quantized nodes": "0",
        "Nodes in float": "0",
        "Time": "1.2 s",
        "Peak memory": "512 MB",
    }

"""What the ladder of methods that learn concludes from its rows."""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import imagenet, lowbit
from benchmarks.common import MissingError, Row
from benchmarks.real_models import Network


def row(arm: str, seed: int, top1: float, **others: Any) -> dict[str, Any]:
    usual = {"kl": 0.5, "sqnr_db": 7.0, "seconds": 100.0, "cpu_s": 100.0, "peak_rss_mb": 900.0}
    return {"bits": "w2a2", "arm": arm, "seed": seed, "top1": top1, **usual, **others}


def test_an_interval_is_welchs() -> None:
    found = lowbit.difference([76.0, 77.0, 78.0], [75.0, 75.5, 76.0])

    # By hand: 1.5 +- t(0.975, 2.94 degrees of freedom) * sqrt(1/3 + 0.25/3).
    assert found["to qdrop"] == pytest.approx(1.5)
    assert found["interval"] == pytest.approx([1.5 - 2.078, 1.5 + 2.078], abs=2e-3)


def test_one_seed_has_no_interval() -> None:
    assert lowbit.difference([76.0], [75.0, 76.0]) == {"to qdrop": 0.5}


def test_a_line_is_the_mean_of_its_seeds() -> None:
    rows = [row("qdrop", 0, 0.75), row("qdrop", 1, 0.77), row("aquant", 0, 0.80, peak_rss_mb=950.0)]

    qdrop, aquant = lowbit.summary(rows, {"top1": 0.88})

    assert (qdrop["seeds"], qdrop["top-1 %"], qdrop["lost"]) == (
        2,
        pytest.approx(76.0),
        pytest.approx(12.0),
    )
    assert aquant["to qdrop"] == pytest.approx(4.0)
    assert aquant["MB of memory"] == 950.0


def test_targets_are_judged() -> None:
    rows = [row("qdrop", 0, 0.75), row("aquant", 0, 0.76), row("best", 0, 0.77, seconds=3000.0)]

    found = lowbit.verdicts(lowbit.summary(rows, {"top1": 0.88}))

    assert [verdict["met"] for verdict in found] == [False, True, False]


def test_other_widths_have_no_target() -> None:
    rows = [row("best", 0, 0.77) | {"bits": "w4a8"}]

    assert lowbit.verdicts(lowbit.summary(rows, {"top1": 0.88})) == []


def test_best_is_what_quality_best_is() -> None:
    assert lowbit.text_of("best", "w2a4", 500).endswith(
        "aquant{iterations=500},finetune{iterations=250}"
    )
    assert lowbit.text_of("fast", "w2a4", 500) == lowbit.ARMS["fast"]


def test_seeds_are_for_the_fewest_bits_and_for_arms_that_draw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[str, str, int]] = []

    def noted(_: Network, arm: str, bits: str, seed: int, __: argparse.Namespace) -> Row:
        made.append((bits, arm, seed))
        return {}

    monkeypatch.setattr(lowbit, "made", noted)
    options = lowbit.parser_of(None, "lowbit").parse_args(
        ["--bits", "w2a2", "w3a3", "--arms", "fast", "qdrop", "--seeds", "0", "1"]
    )

    lowbit.rows_of(Network("n", tmp_path, tmp_path, tmp_path, ""), options)

    first = [(bits, arm, 0) for bits in ("w2a2", "w3a3") for arm in ("fast", "qdrop")]
    assert made == [*first, ("w2a2", "qdrop", 1)]


def test_images_of_every_fourth_class_are_for_calibration(tmp_path: Path) -> None:
    data = tmp_path / "images"
    data.mkdir()
    with (data / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label"))
        for label in range(8):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(data / f"{label}.png")
            writer.writerow((f"{label}.png", label))

    folders = imagenet.halves(data, tmp_path / "work")

    listed = [(folder / "labels.csv").read_text().splitlines()[1:] for folder in folders]
    assert [line.rsplit(",")[-1] for line in listed[0]] == ["0", "4"]
    assert [line.rsplit(",")[-1] for line in listed[1]] == ["1", "2", "3", "5", "6", "7"]


def test_images_without_classes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")

    with pytest.raises(MissingError, match="images without labels"):
        imagenet.halves(tmp_path, tmp_path / "work")

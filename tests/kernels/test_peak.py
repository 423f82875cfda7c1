"""The peak is that of an instruction that this CPU has, and no other is ever run."""

from pathlib import Path

import numpy as np
import pytest

from onnxptq.kernels import peak

HOST = peak.usable_features()
MEASURED = {one.name: one for one in peak.INSTRUCTIONS}


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ("avx2 avx512f avx512vnni amx-tile amx-int8", "tdpbusd"),
        ("avx2 avx512f avx512bw avx512vnni", "vpdpbusd zmm"),
        ("avx2 avxvnni", "vpdpbusd ymm"),
        ("avx2 avx512f avx512bw", "vpmaddubsw zmm"),
        ("avx2 fma", "vpmaddubsw ymm"),
        ("sse2", "int16 dot product"),
        ("", "int16 dot product"),
    ],
)
def test_the_best_instruction_is_one_that_the_cpu_has(features: str, name: str) -> None:
    assert peak.best_instruction(frozenset(features.split())).name == name


@pytest.mark.parametrize("name", [one.name for one in peak.INSTRUCTIONS if one.needs <= HOST])
def test_every_instruction_of_this_cpu_runs(name: str) -> None:
    run = MEASURED[name].run

    assert run(3) != run(4)


@pytest.mark.parametrize("name", ["vpdpbusd zmm", "vpdpbusd ymm"])
def test_a_sum_holds_all_products_that_are_counted(name: str) -> None:
    instruction = MEASURED[name]
    if not instruction.needs <= HOST:
        pytest.skip(f"this CPU has no {name}")
    start, steps, lanes = sum(range(peak.CHAINS)), 7, 16 if name.endswith("zmm") else 8

    products = instruction.macs // lanes * steps

    assert instruction.run(steps) == start + 3 * 5 * products


def test_bytes_come_from_the_nearest_place_that_holds_them() -> None:
    reads = tuple(
        peak.Read(place, 1.0, holds, 1) for place, holds in (("a", 10), ("b", 100), ("c", None))
    )
    found = peak.Peak("x", 1.0, reads)

    assert [found.read(size).place for size in (0, 10, 11, 100, 101)] == list("aabbc")


def test_sizes_of_caches_are_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("2", "Instruction", "9K"), ("2", "Unified", "2M"), ("4", "", "7")]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(peak, "CACHES", tmp_path)

    assert [peak.cache_bytes(level) for level in (2, 3, 4)] == [2 << 20, 32 << 20, 7]


def test_the_machine_has_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SECONDS", 0.01)
    monkeypatch.setattr(peak, "MOST_BYTES", 16 << 20)

    found = peak.measure()

    assert found.macs_per_s > 1e8
    assert [read.place for read in found.reads] == ["second cache", "third cache", "memory"]
    assert all(read.bytes_per_s > 1e7 for read in found.reads)


def test_a_read_touches_every_element() -> None:
    array = np.zeros(1000, np.int64)
    array[[0, 500, 999]] = 1, 2, 4

    assert peak.read(array) == 7

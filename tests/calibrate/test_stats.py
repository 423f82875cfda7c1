"""Streaming statistics: right, independent of the batching, saved and loaded."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxptq.calibrate.stats import Stats, TensorStats
from onnxptq.calibrate.stats_file import load_stats, save_stats
from onnxptq.errors import CalibrationError, ModelError

F32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def compiled_kernels() -> None:
    """Compiling takes seconds once a machine; that must not count as the time of an example."""
    TensorStats.of(np.ones((1, 2), np.float32), channels=True)


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=floats)
friendly = hnp.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-(2.0**10), 2.0**10, width=32)
)


def in_parts(x: F32, cuts: list[int]) -> TensorStats:
    stats = Stats()
    for part in np.split(x, sorted(cut % (x.size + 1) for cut in cuts)):
        stats.update("x", part)
    return stats["x"]


@given(arrays, st.lists(st.integers(0, 300), max_size=5), st.randoms())
def test_histogram_depends_on_neither_batches_nor_order(
    x: F32, cuts: list[int], random: object
) -> None:
    shuffled = np.random.default_rng(hash(random) % 2**32).permutation(x)

    whole, parts = TensorStats.of(x), in_parts(shuffled, cuts)

    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.width, whole.zeros, whole.min, whole.max, whole.count) == (
        parts.width,
        parts.zeros,
        parts.min,
        parts.max,
        parts.count,
    )


@given(arrays)
def test_every_value_is_counted_in_the_bin_it_lies_in(x: F32) -> None:
    stats = TensorStats.of(x)

    steps = np.trunc(np.abs(x.astype(np.float64)) / stats.width).astype(np.int64)
    expected = np.bincount(np.where(x < 0, stats.half - 1 - steps, stats.half + steps))
    np.testing.assert_array_equal(stats.counts[: expected.size], expected)
    assert stats.counts.sum() == stats.count == x.size


@given(arrays)
def test_ends_are_exact_and_the_bins_are_no_wider_than_needed(x: F32) -> None:
    stats = TensorStats.of(x)
    top = np.abs(x.astype(np.float64)).max()

    assert (stats.min, stats.max) == (x.min(), x.max())
    assert top < stats.half * stats.width
    assert stats.width == 2.0**-100 or top >= stats.half * stats.width / 2


@given(friendly, st.lists(st.integers(0, 300), max_size=5))
def test_moments_are_those_of_float64(x: F32, cuts: list[int]) -> None:
    stats = in_parts(x, cuts)

    exact = x.astype(np.float64)
    assert stats.mean == pytest.approx(exact.mean(), rel=1e-12, abs=1e-12)  # order of summation
    assert stats.variance == pytest.approx(exact.var(), rel=1e-11, abs=1e-11)
    assert stats.mad == pytest.approx(
        np.abs(exact - exact.mean()).mean(), abs=stats.width / 2 + 1e-12
    )


def test_variance_survives_a_large_mean() -> None:
    x = (
        np.float32(4096)
        + np.random.default_rng(0).integers(0, 8, 100_000).astype(np.float32) / 1024
    )

    stats = TensorStats.of(x.reshape(100, 10, 100), channels=True)

    assert stats.variance == pytest.approx(x.astype(np.float64).var(), rel=1e-9)
    assert stats.channels is not None
    np.testing.assert_allclose(
        stats.channels.variance,
        x.astype(np.float64).reshape(100, 10, 100).var(axis=(0, 2)),
        rtol=1e-9,
    )


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=st.floats(-(2.0**10), 2.0**10, width=32),
    )
)
def test_channels_are_measured_along_axis_1(x: F32) -> None:
    stats = Stats(channels=("x",))
    for sample in x:
        stats.update("x", sample[None])

    found = stats["x"].channels

    assert found is not None
    for c in range(x.shape[1]):
        exact = x[:, c].astype(np.float64)
        assert (found.min[c], found.max[c]) == (exact.min(), exact.max())
        assert found.mean[c] == pytest.approx(exact.mean(), rel=1e-12, abs=1e-12)
        assert found.variance[c] == pytest.approx(exact.var(), rel=1e-11, abs=1e-11)
        assert found.counts[c].sum() == exact.size
        mad = np.abs(exact - exact.mean()).mean()
        assert found.mad[c] == pytest.approx(mad, abs=found.width[c] / 2 + 1e-12)


def test_channels_are_left_out_where_there_is_no_axis_1() -> None:
    assert TensorStats.of(np.zeros(4, np.float32), channels=True).channels is None


def test_number_of_channels_must_not_change() -> None:
    stats = Stats(channels=("x",))
    stats.update("x", np.zeros((1, 3), np.float32))

    with pytest.raises(CalibrationError, match="'x' has 4 channels now and had 3 before"):
        stats.update("x", np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("channels", [False, True])
def test_nan_and_inf_are_counted_and_left_out_of_all_else(channels: bool) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5000)).astype(np.float32)
    dirty = np.concatenate([[[np.nan], [np.inf], [-np.inf], [np.nan]], x], axis=1)

    clean = TensorStats.of(x)
    found = TensorStats.of(dirty, channels)

    assert (found.nan_count, found.inf_count, found.count) == (2, 2, x.size)
    np.testing.assert_array_equal(found.counts, clean.counts)
    assert found.mean == pytest.approx(clean.mean, rel=1e-12)
    assert (found.min, found.max) == (clean.min, clean.max)


def test_nan_alone_leaves_nothing_to_measure() -> None:
    stats = TensorStats.of(np.full((2, 3), np.nan, np.float32), channels=True)

    assert (stats.count, stats.min, stats.max, stats.mad) == (0, 0.0, 0.0, 0.0)


def test_negative_zero_counts_as_zero() -> None:
    stats = TensorStats.of(np.array([-0.0, 0.0, 1.0], np.float32))

    assert (stats.zeros, stats.counts[stats.half], str(stats.min)) == (2, 2, "0.0")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_other_types_are_measured_as_float32(dtype: type) -> None:
    assert TensorStats.of(np.arange(5, dtype=dtype)).max == 4.0


def filled() -> Stats:
    stats = Stats(channels=("b",), model_digest="m", data_digest="d")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "empty"):
        stats.update(name, rng.standard_normal((2, 3, 4)).astype(np.float32) * (name != "empty"))
    stats.samples = 2
    return stats


def test_saved_statistics_load_the_same(tmp_path: Path) -> None:
    stats = filled()
    save_stats(stats, tmp_path / "s.stats.npz")

    loaded = load_stats(tmp_path / "s.stats.npz", "m", "d")

    assert set(loaded) == set(stats)
    assert loaded.samples == 2
    for name in stats:
        np.testing.assert_array_equal(loaded[name].counts, stats[name].counts)
        np.testing.assert_array_equal(
            loaded.accumulators[name].state, stats.accumulators[name].state
        )
    first, second = stats["b"].channels, loaded["b"].channels
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(first.mean, second.mean)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("other", "d", r"s.stats.npz: statistics of another model \(digest m, .* has other\)"),
        ("m", "other", r"statistics of another data \(digest d, .* has other\)"),
    ],
)
def test_statistics_of_others_are_refused(
    tmp_path: Path, model: str, data: str, message: str
) -> None:
    save_stats(filled(), tmp_path / "s.stats.npz")

    with pytest.raises(CalibrationError, match=message):
        load_stats(tmp_path / "s.stats.npz", model, data)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut"])
def test_something_else_is_no_statistics_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.stats.npz").write_bytes(content)

    with pytest.raises(CalibrationError, match=r"s.stats.npz: not a statistics file"):
        load_stats(tmp_path / "s.stats.npz", "m", "d")


def test_other_npz_is_no_statistics_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.stats.npz", x=np.zeros(3))

    with pytest.raises(CalibrationError, match=r"not a statistics file"):
        load_stats(tmp_path / "s.stats.npz", "m", "d")


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot write .*s.stats.npz: folder"):
        save_stats(filled(), tmp_path / "nowhere" / "s.stats.npz")

"""collect: streams, stops and goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import pytest

from onnxptq.calibrate.data import Array, Batch, Data, PortInfo, open_data
from onnxptq.calibrate.run import CollectOptions, Run, collect
from onnxptq.calibrate.stats import Stats
from onnxptq.calibrate.stats_file import load_stats
from onnxptq.errors import CalibrationError

PORTS = (PortInfo("x", np.dtype(np.float32), ("N", 4)),)
X = np.random.default_rng(0).standard_normal((37, 4)).astype(np.float32)
VALUES = ("x", "y")


def double(batch: Batch) -> dict[str, Array]:
    return {"y": batch["x"] * np.float32(2)}


def data(x: Array = X) -> Data:
    return open_data({"x": x}, PORTS)


def same(first: Stats, second: Stats) -> bool:
    return all(
        np.array_equal(first[name].counts, second[name].counts)
        and first[name].count == second[name].count
        for name in VALUES
    )


class Shouter:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.total: int | None = None
        self.finished = 0

    def start(self, what: str, total: int | None) -> None:
        assert what == "calibrate"
        self.total = total

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def finish(self) -> None:
        self.finished += 1

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def test_collects_inputs_and_outputs_of_a_real_model() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 21]> m (float[N,4] x) => (float[N,4] y) {y = Relu(x)}'
    )
    model = onnx.parser.parse_model(text).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    stats = collect(lambda batch: {"y": np.asarray(session.run(["y"], batch)[0])}, data(), VALUES)

    assert stats.samples == 37
    assert stats["x"].min == X.min()
    assert stats["y"].min == 0
    assert stats["y"].zeros == (X < 0).sum()


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("jobs", [1, 2])
def test_statistics_do_not_depend_on_batch_size_or_threads(size: int, jobs: int) -> None:
    found = collect(double, data(), VALUES, CollectOptions(batch_size=size, jobs=jobs))

    assert same(found, collect(double, data(), VALUES))


def test_batch_size_follows_the_size_of_the_taps() -> None:
    seen: list[int] = []

    def large(batch: Batch) -> dict[str, Array]:
        seen.append(len(batch["x"]))
        return {"y": np.zeros((len(batch["x"]), 6 << 20), np.float32)}  # 24 MB a sample

    collect(large, data(X[:4]), VALUES)

    assert seen == [1, 2, 2]


def test_progress_is_told_every_sample() -> None:
    shouter = Shouter()

    collect(double, data(), VALUES, CollectOptions(batch_size=10, progress=shouter))

    assert (shouter.total, sum(shouter.steps), shouter.finished) == (37, 37, 1)


def interrupting_after(batches: int) -> Run:
    seen = 0

    def run(batch: Batch) -> dict[str, Array]:
        nonlocal seen
        seen += 1
        if seen > batches:
            os.kill(os.getpid(), signal.SIGINT)
        return double(batch)

    return run


def test_ctrl_c_leaves_a_checkpoint_from_which_the_next_run_goes_on(tmp_path: Path) -> None:
    options = CollectOptions(5, model_digest="m", checkpoint=tmp_path / "c.stats.npz")
    with pytest.raises(KeyboardInterrupt):
        collect(interrupting_after(3), data(), VALUES, options)
    seen: list[int] = []

    def counting(batch: Batch) -> dict[str, Array]:
        seen.append(len(batch["x"]))
        return double(batch)

    resumed = collect(counting, data(), VALUES, options)

    assert sum(seen) == 37 - 15
    assert same(resumed, collect(double, data(), VALUES))


def test_ctrl_c_while_arrays_are_folded_waits_for_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CollectOptions(5, model_digest="m", checkpoint=tmp_path / "c.stats.npz")
    update: Callable[[Stats, str, Array], None] = Stats.update

    def interrupted(self: Stats, name: str, array: Array) -> None:
        if self.samples == 10 and name == "x":
            os.kill(os.getpid(), signal.SIGINT)
        update(self, name, array)

    monkeypatch.setattr(Stats, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(double, data(), VALUES, options)

    kept = load_stats(tmp_path / "c.stats.npz", "m", data().digest())
    assert kept.samples == 15
    assert [kept[name].count for name in VALUES] == [60, 60]


def test_finished_checkpoint_is_not_measured_again(tmp_path: Path) -> None:
    options = CollectOptions(5, model_digest="m", checkpoint=tmp_path / "c.stats.npz")
    first = collect(double, data(), VALUES, options)

    def forbidden(batch: Batch) -> dict[str, Array]:
        raise AssertionError(batch)

    assert same(collect(forbidden, data(), VALUES, options), first)


def test_checkpoint_is_written_while_running(tmp_path: Path) -> None:
    path = tmp_path / "c.stats.npz"
    options = CollectOptions(5, model_digest="m", checkpoint=path, checkpoint_seconds=0)
    seen: list[bool] = []

    def watching(batch: Batch) -> dict[str, Array]:
        seen.append(path.exists())
        return double(batch)

    collect(watching, data(), VALUES, options)

    assert seen == [False] + [True] * 7
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("model", "x", "values", "message"),
    [
        ("other", X, VALUES, "statistics of another model"),
        ("m", X[1:], VALUES, "statistics of another data"),
        ("m", X, ("x",), "measured 2 values, now 1 others are wanted"),
    ],
)
def test_checkpoint_of_something_else_is_refused(
    tmp_path: Path, model: str, x: Array, values: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "c.stats.npz"
    collect(double, data(), VALUES, CollectOptions(5, model_digest="m", checkpoint=path))

    with pytest.raises(CalibrationError, match=message):
        collect(double, data(x), values, CollectOptions(5, model_digest=model, checkpoint=path))


def test_one_shot_iterator_is_collected_without_resuming(tmp_path: Path) -> None:
    feeds = ({"x": X[i : i + 2]} for i in range(0, 10, 2))
    options = CollectOptions(checkpoint=tmp_path / "c.stats.npz")

    stats = collect(double, open_data(feeds, PORTS), VALUES, options)

    assert stats.samples == 5
    assert stats["x"].count == 40


def test_nan_in_a_value_names_it() -> None:
    with pytest.raises(
        CalibrationError, match=r"value 'y' was NaN 4 times and inf 0 times in 1 sam"
    ):
        collect(lambda batch: {"y": batch["x"] * np.float32(np.nan)}, data(X[:1]), VALUES)


def test_nan_is_only_counted_where_that_is_allowed() -> None:
    options = CollectOptions(allow_nonfinite=True)

    stats = collect(lambda batch: {"y": batch["x"] * np.float32(np.inf)}, data(), VALUES, options)

    assert (stats["y"].inf_count, stats["y"].count) == (X.size, 0)


def test_value_that_is_not_tapped_is_named() -> None:
    with pytest.raises(CalibrationError, match="value 'z' was not among the outputs"):
        collect(double, data(), ("x", "z"))


def test_no_samples_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="the data had no samples"):
        collect(double, open_data(iter([]), PORTS), VALUES)

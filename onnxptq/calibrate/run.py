"""collect: feed batches, tap values, fold the arrays into Stats and let them go. Resumable."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from onnxptq.calibrate.ports import Array, Batch
from onnxptq.calibrate.progress import Progress, Silent
from onnxptq.calibrate.source import Data
from onnxptq.calibrate.stats import Stats
from onnxptq.calibrate.stats_file import load_stats, save_stats
from onnxptq.errors import CalibrationError
from onnxptq.files import writable

TAP_BYTES = 64 << 20
"""Taps of one batch stay below this, unless one sample is larger by itself."""
LARGEST_BATCH = 8

Run = Callable[[Batch], dict[str, Array]]


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How to collect.

    Attributes:
        batch_size: Samples in a batch; None chooses 1 to 8, so that taps take at most 64 MB.
        channels: Values of which the channels are measured too.
        model_digest: Written into the statistics, and asked of a checkpoint.
        checkpoint: A .stats.npz to continue from if it exists, written now and then and at the end.
        checkpoint_seconds: How often.
        jobs: Threads that fold arrays.
        allow_nonfinite: Count NaN and inf instead of raising; the caller keeps such values float.
        progress: Where to report to.
    """

    batch_size: int | None = None
    channels: tuple[str, ...] = ()
    model_digest: str = ""
    checkpoint: Path | None = None
    checkpoint_seconds: float = 5.0
    jobs: int = 1
    allow_nonfinite: bool = False
    progress: Progress = field(default_factory=Silent)


def collect(
    run: Run, data: Data, values: Sequence[str], options: CollectOptions | None = None
) -> Stats:
    """Statistics of `values` over all of `data`, in memory that does not grow with its length.

    Interrupted by Ctrl-C between two batches; if there is a checkpoint path, it then holds all
    batches seen, and the next call goes on from there.

    Args:
        run: Feeds a batch to the model and gives the tapped values by name.
        data: The samples.
        values: Names to measure.
        options: Checkpoint, batch size and the like.

    Raises:
        CalibrationError: A value was NaN or inf, or the checkpoint is of another model or data.
        ModelError: The checkpoint cannot be written.
    """
    options = options or CollectOptions()
    stats = _start(data, values, options)
    if stats.samples and stats.samples == data.count:
        return stats
    options.progress.start("calibrate", data.count)
    options.progress.advance(stats.samples)
    try:
        _update_with_all(stats, run, data, values, options)
    except KeyboardInterrupt:
        _write(stats, options)
        raise
    finally:
        options.progress.finish()
    _write(stats, options)
    if stats.samples == 0:
        raise CalibrationError("the data had no samples; at least one is needed")
    return stats


def _update_with_all(
    stats: Stats, run: Run, data: Data, values: Sequence[str], options: CollectOptions
) -> None:
    """Fold the batches that `stats` has not seen, and write a checkpoint from time to time."""
    size = options.batch_size or _batch_size(run, data)
    written = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        for batch in data.batches(size, stats.samples):
            taps = _tap(run, batch, values)
            with uninterrupted():
                list(pool.map(stats.update, values, [taps[name] for name in values]))
                stats.samples += data.feed_samples(batch)
            del taps
            _require_finite(stats, values, options)
            options.progress.advance(data.feed_samples(batch))
            if time.monotonic() - written > options.checkpoint_seconds:
                _write(stats, options)
                written = time.monotonic()


def _start(data: Data, values: Sequence[str], options: CollectOptions) -> Stats:
    """Empty statistics, or those of the checkpoint."""
    if options.checkpoint is None:
        return Stats(options.channels, options.model_digest)
    writable(options.checkpoint)
    digest = data.digest()
    if not digest or not options.checkpoint.exists():
        return Stats(options.channels, options.model_digest, digest)
    stats = load_stats(options.checkpoint, options.model_digest, digest)
    if set(stats) != set(values) or stats.channels != frozenset(options.channels):
        raise CalibrationError(
            f"{options.checkpoint}: measured {len(stats)} values, "
            f"now {len(values)} others are wanted; remove the file to measure anew"
        )
    return stats


def _batch_size(run: Run, data: Data) -> int:
    """As many samples as keep the taps small, found by running the first one."""
    if data.count is None:
        return 1
    first = next(data.batches(1), None)
    if first is None:
        return 1
    taps = run(first)
    tap_bytes = sum(array.nbytes for array in taps.values()) // max(1, data.feed_samples(first))
    return max(1, min(LARGEST_BATCH, TAP_BYTES // max(1, tap_bytes)))


def _tap(run: Run, batch: Batch, values: Sequence[str]) -> dict[str, Array]:
    taps = {**batch, **run(batch)}
    for name in values:
        if name not in taps:
            raise CalibrationError(f"value {name!r} was not among the outputs of the tapped model")
    return taps


def _require_finite(stats: Stats, values: Sequence[str], options: CollectOptions) -> None:
    if not options.allow_nonfinite:
        for name in values:
            stats.require_finite(name)


def _write(stats: Stats, options: CollectOptions) -> None:
    if options.checkpoint is not None:
        with uninterrupted():
            save_stats(stats, options.checkpoint)


@contextmanager
def uninterrupted() -> Generator[None]:
    """Hold back Ctrl-C until the end of the block, so that what it changes is changed wholly."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers Ctrl-C to the main thread only
        return
    held: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt

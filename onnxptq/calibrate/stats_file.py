"""The .stats.npz file: statistics keyed by model and data, also of an unfinished run."""

import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onnxptq.calibrate.stats import HALF_BINS, Stats
from onnxptq.errors import CalibrationError
from onnxptq.files import write_atomically

FORMAT = "onnxptq.stats/1"


def save_stats(stats: Stats, path: Path) -> None:
    """Write statistics; the file is either the old or the new one, never half.

    Raises:
        ModelError: The file cannot be written.
    """
    names = sorted(stats)
    accumulators = [stats.accumulators[name] for name in names]
    spans = [_span(accumulator.counts) for accumulator in accumulators]
    head = {
        "format": FORMAT,
        "model_digest": stats.model_digest,
        "data_digest": stats.data_digest,
        "samples": stats.samples,
        "channels": sorted(stats.channels),
        "names": names,
        "spans": spans,
    }
    empty = np.zeros(0, np.int64)
    arrays: dict[str, npt.NDArray[Any]] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "state": np.asarray([accumulator.state for accumulator in accumulators]),
        "counts": np.concatenate(
            [empty, *(a.counts[lo:hi] for a, (lo, hi) in zip(accumulators, spans, strict=True))]
        ),
    }
    for position, accumulator in enumerate(accumulators):
        if accumulator.channel_counts is not None and accumulator.channel_state is not None:
            arrays[f"channel_counts_{position}"] = accumulator.channel_counts
            arrays[f"channel_state_{position}"] = accumulator.channel_state
    _write(path, arrays)


def _span(counts: npt.NDArray[np.int64]) -> tuple[int, int]:
    """First and last + 1 of the bins that are not empty."""
    filled = np.flatnonzero(counts)
    return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)


def _write(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    def fill(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - stubs take a keyword for it

    write_atomically(path, fill)


def load_stats(path: Path, model_digest: str, data_digest: str) -> Stats:
    """Read statistics of this model and this data.

    Args:
        path: The file.
        model_digest: Digest of the model they must be of.
        data_digest: Digest of the data they must be of; "" if any data will do.

    Raises:
        CalibrationError: Not a statistics file, or one of another model or other data.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        head = json.loads(arrays["head"].tobytes())
        stats = _stats(head, arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"{path}: not a statistics file ({error}); remove it to measure anew"
        ) from error
    for what, have, want in (
        ("model", stats.model_digest, model_digest),
        ("data", stats.data_digest, data_digest or stats.data_digest),
    ):
        if have != want:
            raise CalibrationError(
                f"{path}: statistics of another {what} (digest {have[:12] or 'none'}, "
                f"this {what} has {want[:12] or 'none'}); "
                f"give another file or remove this one to measure anew"
            )
    return stats


def _stats(head: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Stats:
    if head["format"] != FORMAT:
        raise ValueError(f"format is {head['format']!r}, not {FORMAT!r}")
    stats = Stats(head["channels"], head["model_digest"], head["data_digest"])
    stats.samples = head["samples"]
    position = 0
    for i, (name, (lo, hi)) in enumerate(zip(head["names"], head["spans"], strict=True)):
        stats.update(name, np.zeros(0, np.float32))
        accumulator = stats.accumulators[name]
        if not 0 <= lo <= hi <= 2 * HALF_BINS:
            raise ValueError(f"histogram of {name!r} spans {lo}..{hi}")
        accumulator.counts[lo:hi] = arrays["counts"][position : position + hi - lo]
        accumulator.state[:] = arrays["state"][i]
        position += hi - lo
        accumulator.channel_counts = arrays.get(f"channel_counts_{i}")
        accumulator.channel_state = arrays.get(f"channel_state_{i}")
    return stats

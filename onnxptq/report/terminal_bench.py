"""What `bench` says: engines, ratios, layers."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxptq.report.bench import Bench
from onnxptq.runtime.interleave import Ratio
from onnxptq.runtime.profile import LayerTime, Profile

BUSY_CORES = 0.1
"""Cores of other processes that are worth a note."""
WIDE = 150
"""Columns from which on the shapes of layers are shown too; JSON and report have them always."""


def bench(found: Bench, width: int) -> tuple[RenderableType, ...]:
    """The tables of `bench`, for a window of so many columns."""
    parts: list[RenderableType] = [_engines(found), *_load(found)]
    if found.ratios:
        parts += ["", _ratios(found)]
    for model, profile in found.profiles.items():
        parts += ["", _layers(model, profile, shapes=width >= WIDE), *_limits(profile)]
    return tuple(parts)


def _table(title: str, heads: Sequence[str], left: int = 1) -> Table:
    """A table whose first columns are text and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < left else "right", overflow="fold")
    return table


def _engines(found: Bench) -> Table:
    heads = ("model", "engine", "threads", "median", "fastest", "middle half within")
    table = _table(f"milliseconds of a run, {found.runs} runs of each in turns", heads, left=2)
    fastest = {(row.model, row.threads): row for row in found.rows}
    for row in found.rows:
        best = fastest[row.model, row.threads]
        if row.median_ms < best.median_ms:
            fastest[row.model, row.threads] = row
    for row in found.rows:
        rivals = sum((r.model, r.threads) == (row.model, row.threads) for r in found.rows)
        style = "bold" if rivals > 1 and fastest[row.model, row.threads] is row else ""
        cells = (f"{row.median_ms:.3f}", f"{row.min_ms:.3f}", f"{row.iqr_ms:.3f}")
        table.add_row(Text(row.model), row.engine, str(row.threads), *cells, style=style)
    return table


def _load(found: Bench) -> tuple[Text, ...]:
    cores = found.other_cores
    if cores is None or cores < BUSY_CORES:
        return ()
    return (Text(f"note: other processes used {cores:.1f} cores meanwhile; times suffer from it"),)


def _ratios(found: Bench) -> Table:
    table = _table("ratios of medians", ("what", "model", "threads", "ratio", "95 %"), left=2)
    for key, value in found.ratios.items():
        what, rest = key.split(":", 1)
        model, threads = rest.rsplit(":", 1)
        table.add_row(what, Text(model), threads, f"{value.ratio:.3f}", _interval(value))
    return table


def _interval(value: Ratio) -> str:
    return f"{value.low:.3f} to {value.high:.3f}"


def _layers(model: str, profile: Profile, *, shapes: bool) -> Table:
    title = f"layers of {model} in the executor, 1 thread, {profile.runs} runs"
    words = ("node", "kernel", "shape") if shapes else ("node", "kernel")
    heads = (*words, "MMACs", "us", "GMAC/s", "of peak", "of time", "bound")
    table = _table(title, heads, left=len(words))
    for layer in profile.layers:
        texts = (Text(layer.node), layer.kernel, layer.shape)[: len(words)]
        table.add_row(*texts, *_figures(layer))
    macs = sum(layer.macs for layer in profile.layers)
    speed = macs / max(profile.total_ms, 1e-9) / 1e6
    cells = (f"{macs / 1e6:.2f}", f"{1e3 * profile.total_ms:.1f}", f"{speed:.1f}")
    of_peak = f"{1e11 * speed / profile.peak.macs_per_s:.1f} %"
    table.add_row("all", *("",) * (len(words) - 1), *cells, of_peak, "100.0 %", "", style="bold")
    return table


def _figures(layer: LayerTime) -> tuple[str, ...]:
    speed = (f"{layer.gmac_per_s:.1f}", f"{100 * layer.share_of_peak:.1f} %") if layer.macs else ""
    return (
        f"{layer.macs / 1e6:.2f}" if layer.macs else "",
        f"{1e3 * layer.ms:.1f}",
        *(speed or ("", "")),
        f"{100 * layer.share_of_time:.1f} %",
        layer.bound,
    )


def _limits(profile: Profile) -> tuple[Text, ...]:
    peak, read = profile.peak, profile.peak.read(profile.working_set_bytes)
    reads = ", ".join(f"{r.bytes_per_s / 1e9:.0f} GB/s from {r.place}" for r in peak.reads)
    return (
        Text(f"peak of a core: {peak.macs_per_s / 1e9:.0f} GMAC/s ({peak.instruction}); {reads}"),
        Text(
            f"a run touches {profile.working_set_bytes / 1e6:.1f} MB, so bytes come from "
            f"{read.place}; measuring takes {profile.overhead_us:.1f} us a row, which is taken off"
        ),
    )

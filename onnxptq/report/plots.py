"""The report's plots as inline SVG: text stays text, and colours are the page's own variables.

matplotlib draws them; the colours it is given are placeholders that become CSS variables, so that
one drawing serves light and dark pages. Equal rows give equal text.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onnxptq.report.rows import EQUAL_DB, LayerRow

# Placeholder colour -> CSS variable of page.html; none of them may occur as a colour otherwise.
_INK, _QUIET, _GRID, _PALE = "#010203", "#010204", "#010205", "#010206"
_BITS = {bits: f"#0102{bits:02d}" for bits in range(10, 19)}
_VARIABLES = {_INK: "--ink", _QUIET: "--quiet", _GRID: "--grid", _PALE: "--pale"} | {
    colour: f"--bits-{index - 10}" for index, colour in _BITS.items()
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "onnxptq",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
}


def noise_plot(rows: Sequence[LayerRow]) -> str:
    """SQNR of each layer's output, coloured by weight bits; "" if none is known."""
    known = [(i, row, row.sqnr_db) for i, row in enumerate(rows, 1) if row.sqnr_db is not None]
    if not known:
        return ""

    def draw(axes: Axes) -> list[str]:
        titles: list[str] = []
        values = [min(value, _ceiling(rows)) for _, _, value in known]
        axes.plot([i for i, _, _ in known], values, color=_PALE, linewidth=1.2, zorder=1)
        for (i, row, value), height in zip(known, values, strict=True):
            (mark,) = axes.plot(
                [i], [height], "o", markersize=5, color=_colour(row.w_bits), zorder=2
            )
            mark.set_gid(f"mark-{len(titles)}")
            titles.append(f"{row.node} ({row.op}, {_widths(row)}): {value:.1f} dB")
        axes.set_ylabel("SQNR of the output, dB")
        axes.set_xlabel("layer, numbered as in the table")
        return titles

    return _svg(draw, "noise")


def size_plot(rows: Sequence[LayerRow]) -> str:
    """Weight bytes of each layer before and after; "" if no layer has a quantized weight."""
    weights = [(i, row) for i, row in enumerate(rows, 1) if row.weight_bytes]
    if not weights:
        return ""

    def draw(axes: Axes) -> list[str]:
        titles: list[str] = []
        for i, row in weights:
            (before,) = axes.bar(i, row.weight_bytes_float / 1024, width=0.8, color=_PALE)
            (after,) = axes.bar(i, row.weight_bytes / 1024, width=0.8, color=_colour(row.w_bits))
            for bar in (before, after):
                bar.set_gid(f"mark-{len(titles)}")
                titles.append(
                    f"{row.node} ({_widths(row)}): {row.weight_bytes_float / 1024:.1f} KiB"
                    f" in float, {row.weight_bytes / 1024:.1f} KiB as codes"
                )
        axes.set_ylabel("weights, KiB")
        axes.set_xlabel("layer, numbered as in the table")
        return titles

    return _svg(draw, "size")


def _colour(bits: int | None) -> str:
    return _BITS[10 + (bits or 0)]


def _widths(row: LayerRow) -> str:
    weight = f"w{row.w_bits}" if row.w_bits else ""
    return weight + (f"a{row.a_bits}" if row.a_bits else "")


def _ceiling(rows: Sequence[LayerRow]) -> float:
    """Layers without any error would squeeze the others: they are drawn just above the best."""
    others = [row.sqnr_db for row in rows if row.sqnr_db is not None and row.sqnr_db < EQUAL_DB]
    return max(others, default=0.0) + 5.0


def _svg(draw: Callable[[Axes], list[str]], name: str) -> str:
    """The SVG element that `draw` makes, with hover titles on the marks it gave an id."""
    with mpl.rc_context():
        mpl.rcdefaults()  # not the style of whoever runs this
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(9.2, 2.9), layout="constrained")
        axes = figure.subplots()
        titles = draw(axes)
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(length=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    for index, title in enumerate(titles):
        mark = f'<g id="mark-{index}">'
        text = text.replace(mark, f"{mark}<title>{html.escape(title)}</title>")
    # Two drawings share a page: ids must not.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)

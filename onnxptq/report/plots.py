"""The report's plots as inline SVG: text stays text, and colours are the page's own variables.

matplotlib draws them; the colours it is given are placeholders that become CSS variables, so that
one drawing serves light and dark pages. Equal rows give equal text.
"""

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from onnxptq.report.rows import EQUAL_DB, LayerRow

if TYPE_CHECKING:
    from onnxptq.runtime.profile import LayerTime, Profile

# Placeholder colour -> CSS variable of page.html; none of them may occur as a colour otherwise.
_INK, _QUIET, _GRID, _PALE = "#010203", "#010204", "#010205", "#010206"
_ACCENT, _WARN = "#010207", "#010208"
_BITS = {bits: f"#0102{bits:02d}" for bits in range(10, 19)}
_VARIABLES = (
    {_INK: "--ink", _QUIET: "--quiet", _GRID: "--grid", _PALE: "--pale"}
    | {
        _ACCENT: "--accent",
        _WARN: "--warn",
    }
    | {colour: f"--bits-{index - 10}" for index, colour in _BITS.items()}
)
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

    def draw(figure: Figure) -> list[str]:
        axes = _axes_of_layers(figure)
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
        return titles

    return _svg(draw, "noise")


def size_plot(rows: Sequence[LayerRow]) -> str:
    """Weight bytes of each layer before and after; "" if no layer has a quantized weight."""
    weights = [(i, row) for i, row in enumerate(rows, 1) if row.weight_bytes]
    if not weights:
        return ""

    def draw(figure: Figure) -> list[str]:
        axes = _axes_of_layers(figure)
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
        return titles

    return _svg(draw, "size")


def roofline_plot(profile: "Profile") -> str:
    """Speed of each layer under the roof of this machine; layers without products by bytes.

    The area of a dot is the layer's share of the time. Its colour says whether it takes more than
    twice the time that its products and bytes take at least.
    """
    if not profile.layers:
        return ""

    def draw(figure: Figure) -> list[str]:
        left, right = figure.subplots(1, 2, width_ratios=(1, 4))
        titles: list[str] = []
        plain = [layer for layer in profile.layers if not layer.macs]
        products = [layer for layer in profile.layers if layer.macs]
        for i, layer in enumerate(plain, 1):
            speed = layer.bytes / layer.ms / 1e6
            titles.append(_dot(left, len(titles), (i, max(speed, 1e-3)), layer))
        for layer in products:
            place = (layer.macs / max(layer.bytes, 1), layer.gmac_per_s)
            titles.append(_dot(right, len(titles), place, layer))
        _bandwidths(left, profile, len(plain))
        _roofs(right, profile, [layer.macs / max(layer.bytes, 1) for layer in products])
        return titles

    return _svg(draw, "roofline", height=4.2)


def _dot(axes: Axes, number: int, place: tuple[float, float], layer: "LayerTime") -> str:
    """Draw a layer; gives its title."""
    colour = _ACCENT if layer.share_of_limit >= 0.5 else _WARN
    size = 3.0 + 22.0 * layer.share_of_time**0.5
    (mark,) = axes.plot(*place, "o", markersize=size, color=colour, alpha=0.65, mew=0, zorder=3)
    mark.set_gid(f"mark-{number}")
    speed = f"{layer.gmac_per_s:.1f} GMAC/s, " if layer.macs else ""
    return (
        f"{layer.node} ({layer.kernel}, {layer.shape}): {1e3 * layer.ms:.1f} us, {speed}"
        f"{layer.bytes / layer.ms / 1e6:.1f} GB/s"
    )


def _bandwidths(axes: Axes, profile: "Profile", count: int) -> None:
    """The roofs of layers without products."""
    own = profile.peak.read(profile.working_set_bytes)
    for read in profile.peak.reads:
        style = "-" if read is own else ":"
        axes.axhline(read.bytes_per_s / 1e9, color=_QUIET, linewidth=1.2, linestyle=style, zorder=2)
    axes.set(yscale="log", xticks=[], xlim=(0, count + 1), ylabel="GB/s")
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("layers without products")


def _roofs(axes: Axes, profile: "Profile", intensities: Sequence[float]) -> None:
    """What a layer can reach at most, by the products it has for each byte."""
    peak, own = profile.peak, profile.peak.read(profile.working_set_bytes)
    top = peak.macs_per_s / 1e9
    corner = peak.macs_per_s / min(read.bytes_per_s for read in peak.reads)
    lo, hi = min([*intensities, 1.0]) / 2, max([*intensities, corner]) * 4
    for read in peak.reads:
        speed, style = read.bytes_per_s / 1e9, "-" if read is own else ":"
        corner = top / speed
        axes.plot([lo, corner, hi], [lo * speed, top, top], style, color=_QUIET, linewidth=1.2)
        axes.text(
            lo * 1.2,
            lo * 1.3 * speed,  # just above its line, and as steep there
            f"{read.place}, {speed:.0f} GB/s",
            rotation=math.degrees(math.atan(speed * 1.3 / 1.2)),
            rotation_mode="anchor",
            transform_rotates_text=True,
            color=_QUIET,
            fontsize=7,
        )
    axes.annotate(
        f"{top:.0f} GMAC/s ({peak.instruction})",
        (hi, top),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        color=_QUIET,
        fontsize=8,
    )
    axes.set(xscale="log", yscale="log", xlim=(lo, hi), ylabel="GMAC/s")
    _plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_xlabel("products for each byte that is read or written at least")


def _plain_numbers(*axes: Axis) -> None:
    """1, 10 and 100 along a logarithmic axis, and nothing between them."""
    for axis in axes:
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _axes_of_layers(figure: Figure) -> Axes:
    axes = figure.subplots()
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer, numbered as in the table")
    return axes


def _colour(bits: int | None) -> str:
    return _BITS[10 + (bits or 0)]


def _widths(row: LayerRow) -> str:
    weight = f"w{row.w_bits}" if row.w_bits else ""
    return weight + (f"a{row.a_bits}" if row.a_bits else "")


def _ceiling(rows: Sequence[LayerRow]) -> float:
    """Layers without any error would squeeze the others: they are drawn just above the best."""
    others = [row.sqnr_db for row in rows if row.sqnr_db is not None and row.sqnr_db < EQUAL_DB]
    return max(others, default=0.0) + 5.0


def _svg(draw: Callable[[Figure], list[str]], name: str, height: float = 2.9) -> str:
    """The SVG element that `draw` makes, with hover titles on the marks it gave an id."""
    with mpl.rc_context():
        mpl.rcdefaults()  # not the style of whoever runs this
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(9.2, height), layout="constrained")
        titles = draw(figure)
        for axes in figure.axes:
            axes.tick_params(which="both", length=0)
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

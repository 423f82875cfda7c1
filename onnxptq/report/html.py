"""The report as one HTML page that needs no network: facts, plots, sortable tables."""

import html
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

from onnxptq.report import plots
from onnxptq.report.rows import EQUAL_DB, STEP_HEADS, FloatRow, LayerRow, StepRow

if TYPE_CHECKING:
    from onnxptq.runtime.profile import LayerTime, Profile

_FULL_BAR_DB = 60.0  # a layer this good needs no attention; its bar is full


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows.

    Attributes:
        title: Heading, usually the file's name.
        lead: One sentence below it: what was compared with what.
        facts: Label to value, as cards.
        layers: One row a quantized layer.
        float_nodes: One row a node that stays in float.
        steps: One row a method that was applied; none where that is not known.
        speed: The layers as the executor runs them; None if it was not measured.
        footer: Versions.
    """

    title: str
    lead: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    layers: Sequence[LayerRow] = ()
    float_nodes: Sequence[FloatRow] = ()
    steps: Sequence[StepRow] = ()
    speed: "Profile | None" = None
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML text; equal pages give equal text."""
    template = resources.files("onnxptq.report").joinpath("page.html").read_text(encoding="utf-8")
    facts = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd></div>"
        for label, value in page.facts.items()
    )
    return string.Template(template).substitute(
        title=html.escape(page.title),
        lead=html.escape(page.lead),
        facts=facts,
        body="\n".join(filter(None, _sections(page))),
        footer=html.escape(page.footer),
    )


def _sections(page: Page) -> list[str]:
    return [
        _figure(
            "Error along the network",
            "Signal to quantization noise of each layer's output against the float model; errors"
            " add up on the way. Hover over a point for its name.",
            plots.noise_plot(page.layers),
            page.layers,
        ),
        _figure(
            "Size of the weights",
            "Pale: 32-bit float. Coloured: as codes.",
            plots.size_plot(page.layers),
            [row for row in page.layers if row.weight_bytes],
        ),
        _step_table(page.steps),
        _layer_table(page.layers),
        _float_table(page.float_nodes),
        *([] if page.speed is None else _speed(page.speed)),
    ]


def _figure(heading: str, note: str, svg: str, rows: Sequence[LayerRow]) -> str:
    if not svg:
        return ""
    legend = "".join(
        f'<li><span class="dot" style="background:var(--bits-{bits})"></span>'
        f"{f'{bits}-bit weights' if bits else 'no weights'}</li>"
        for bits in sorted({row.w_bits or 0 for row in rows}, reverse=True)
    )
    return (
        f'<h2>{heading}</h2>\n<p class="note">{note}</p>\n<figure>{svg}</figure>\n'
        f'<ul class="legend">{legend}</ul>'
    )


def _step_table(rows: Sequence[StepRow]) -> str:
    if not rows:
        return ""
    classes = ("name", "n", "n", "n", "")
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}">{html.escape(cell)}</td>'
            for kind, cell in zip(classes, row.cells(), strict=True)
        )
        + "</tr>"
        for row in rows
    )
    names = [head[:1].upper() + head[1:] for head in STEP_HEADS]
    heads = list(zip(names, ("", "n", "n", "n", ""), strict=True))
    note = (
        "Signal to noise of the outputs on samples held out from learning; where a step says that "
        "it fitted them in the end, it brings less on others."
    )
    return f'<h2>Steps</h2>\n<p class="note">{note}</p>\n{_table(heads, body)}'


def _layer_table(rows: Sequence[LayerRow]) -> str:
    if not rows:
        return "<h2>Layers</h2>\n<p>No node of this model is quantized.</p>"
    heads = [
        ("#", "n"),
        ("Node", ""),
        ("Operator", ""),
        ("Weight bits", "n"),
        ("Input bits", "n"),
        ("SQNR, dB", ""),
        ("Cosine", "n"),
        ("Weights, KiB", "n"),
        ("Set by", ""),
    ]
    body = "\n".join(_layer_row(position, row) for position, row in enumerate(rows, 1))
    return f"<h2>Layers</h2>\n{_table(heads, body)}"


def _layer_row(position: int, row: LayerRow) -> str:
    cells = [
        f'<td class="n">{position}</td>',
        f'<td class="name">{html.escape(row.node)}</td>',
        f"<td>{html.escape(row.op)}</td>",
        f'<td class="n">{row.w_bits or ""}</td>',
        f'<td class="n">{row.a_bits or ""}</td>',
        _bar(row.sqnr_db),
        f'<td class="n">{"" if row.cosine is None else f"{row.cosine:.6f}"}</td>',
        f'<td class="n">{f"{row.weight_bytes / 1024:.1f}" if row.weight_bytes else ""}</td>',
        f"<td>{html.escape(row.set_by)}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _bar(sqnr_db: float | None) -> str:
    if sqnr_db is None:
        return '<td class="bar" data-key=""></td>'
    share = min(max(sqnr_db / _FULL_BAR_DB, 0.02), 1.0)
    colour = "var(--accent)" if sqnr_db >= 20.0 else "var(--warn)"
    text = "equal" if sqnr_db >= EQUAL_DB else f"{sqnr_db:.1f}"
    return (
        f'<td class="bar" data-key="{sqnr_db:.4f}"><span>'
        f'<b>{text}</b><i style="width:{share * 5:.2f}rem;background:{colour}"></i></span></td>'
    )


def _float_table(rows: Sequence[FloatRow]) -> str:
    if not rows:
        return "<h2>Nodes in float</h2>\n<p>None.</p>"
    body = "\n".join(
        f'<tr><td class="name">{html.escape(row.node)}</td><td>{html.escape(row.op)}</td>'
        f"<td>{html.escape(row.why)}</td></tr>"
        for row in rows
    )
    heads = [("Node", ""), ("Operator", ""), ("Why", "")]
    return f"<h2>Nodes in float</h2>\n{_table(heads, body)}"


def _speed(profile: "Profile") -> list[str]:
    """The roofline, and the layers by time."""
    peak, read = profile.peak, profile.peak.read(profile.working_set_bytes)
    note = (
        "Each dot is a layer of the integer executor on one thread, as large as its share of the "
        "time. The roof is what this machine can do: "
        f"{peak.macs_per_s / 1e9:.0f} GMAC/s with {html.escape(peak.instruction)}, and bytes at "
        f"{read.bytes_per_s / 1e9:.0f} GB/s from the {read.place}, where the "
        f"{profile.working_set_bytes / 1e6:.1f} MB of a run fit. Hover over a dot for its name."
    )
    legend = "".join(
        f'<li><span class="dot" style="background:var({variable})"></span>{text}</li>'
        for variable, text in (
            ("--accent", "at least half of what the machine allows"),
            ("--warn", "less"),
        )
    )
    heads = [("#", "n"), ("Node", ""), ("Kernel", ""), ("Shape", ""), ("MMACs", "n")]
    heads += [("Time, us", "n"), ("GMAC/s", "n"), ("Of peak", "n"), ("Of time", ""), ("Bound", "")]
    top = max((layer.share_of_time for layer in profile.layers), default=1.0)
    body = "\n".join(_speed_row(i, layer, top) for i, layer in enumerate(profile.layers, 1))
    return [
        f'<h2>Speed under the roof of this machine</h2>\n<p class="note">{note}</p>',
        f'<figure>{plots.roofline_plot(profile)}</figure>\n<ul class="legend">{legend}</ul>',
        f"<h2>Time of each layer</h2>\n{_table(heads, body)}",
    ]


def _speed_row(position: int, layer: "LayerTime", top: float) -> str:
    share = layer.share_of_time
    figures = (
        f"{layer.macs / 1e6:.2f}" if layer.macs else "",
        f"{1e3 * layer.ms:.1f}",
        f"{layer.gmac_per_s:.1f}" if layer.macs else "",
        f"{100 * layer.share_of_peak:.1f} %" if layer.macs else "",
    )
    keys = (layer.macs, layer.ms, layer.gmac_per_s, layer.share_of_peak)
    numbers = "".join(
        f'<td class="n" data-key="{key:.6g}">{text}</td>'
        for key, text in zip(keys, figures, strict=True)
    )
    return (
        f'<tr><td class="n">{position}</td><td class="name tight">{html.escape(layer.node)}</td>'
        f'<td>{html.escape(layer.kernel)}</td><td class="shape">{html.escape(layer.shape)}</td>'
        f'{numbers}<td class="bar share" data-key="{share:.6f}"><span><b>{100 * share:.1f} %</b>'
        f'<i style="width:{share / top * 3.5:.2f}rem"></i></span></td>'
        f'<td class="tight">{layer.bound}</td></tr>'
    )


def _table(heads: Sequence[tuple[str, str]], body: str) -> str:
    cells = "".join(
        f'<th class="{kind}" scope="col"><button type="button">{name}</button></th>'
        for name, kind in heads
    )
    return (
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )

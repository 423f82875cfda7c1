import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import pytest

from onnxptq.kernels.peak import Peak, Read
from onnxptq.report.html import Page, render
from onnxptq.report.plots import noise_plot, roofline_plot, size_plot
from onnxptq.report.rows import EQUAL_DB, LayerRow, StepRow
from onnxptq.runtime.profile import LayerTime, Profile


@dataclass(frozen=True)
class FloatNode:
    node: str
    op: str
    why: str


ROWS = (
    LayerRow("conv<1>", "Conv", 8, 8, 41.25, 0.99996, "minmax", 432, 1728),
    LayerRow("conv2", "Conv", 3, 4, 17.5, 0.991, "mse{p=2.4}", 216, 2304),
    LayerRow("add", "Add", None, 8, EQUAL_DB, 1.0, "mse", 0, 0),
    LayerRow("fc", "Gemm", 4, 8, None, None, "mse", 320, 2560),
)
PAGE = Page(
    title="a & b.onnx",
    lead="Measured against <float>.",
    facts={"File": "1.00 MB"},
    layers=ROWS,
    float_nodes=(FloatNode("soft", "Softmax", "last & final"),),
    footer="onnxptq",
)
VOID = {"meta", "br", "path", "use", "rect"}


class Balance(HTMLParser):
    """Counts what is open, so that a forgotten end tag is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_needs_no_network() -> None:
    text = render(PAGE)

    fetched = re.findall(r'(?:src|href)="(?!#)[^"]*"|@import|url\((?!#)', text)
    assert fetched == []


def test_equal_pages_are_equal_text() -> None:
    assert render(PAGE) == render(PAGE)


def test_tags_are_balanced_and_ids_unique() -> None:
    parser = Balance()

    parser.feed(render(PAGE))

    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))


def test_names_are_escaped() -> None:
    text = render(PAGE)

    assert "conv<1>" not in text
    assert "conv&lt;1&gt;" in text
    assert "<title>a &amp; b.onnx</title>" in text
    assert "last &amp; final" in text


def test_a_dollar_in_a_name_is_only_text() -> None:
    assert "cost $facts" in render(Page("cost $facts", ""))


def test_every_layer_has_a_row_and_its_figures() -> None:
    text = render(PAGE)

    assert text.count('<td class="name">') == len(ROWS) + len(PAGE.float_nodes)
    assert 'data-key="17.5000"' in text
    assert ">17.5</b>" in text
    assert "mse{p=2.4}" in text


def test_a_page_without_layers_says_so() -> None:
    text = render(Page("m", ""))

    assert "No node of this model is quantized" in text
    assert "<svg" not in text


def test_a_mark_tells_its_layer_when_hovered_over() -> None:
    svg = noise_plot(ROWS)

    assert "<title>conv2 (Conv, w3a4): 17.5 dB</title>" in svg
    assert "conv&lt;1&gt;" in svg
    assert svg.count("<title>") == 3  # that of fc was not measured


def test_bars_tell_both_sizes() -> None:
    assert "fc (w4a8): 2.5 KiB in float, 0.3 KiB as codes" in size_plot(ROWS)


def test_colours_are_those_of_the_page() -> None:
    drawn = noise_plot(ROWS) + size_plot(ROWS) + roofline_plot(PROFILE)

    colours = set(re.findall(r"#[0-9a-f]{6}\b", drawn))

    assert colours <= {"#000000"}  # matplotlib's own default, hidden behind ours


@pytest.mark.parametrize("plot", [noise_plot, size_plot])
def test_nothing_to_draw_is_no_drawing(plot: object) -> None:
    assert callable(plot)
    assert plot([]) == ""


def layer(node: str, macs: int, share_of_limit: float, bound: str) -> LayerTime:
    """A layer of 1 ms that moves 1 MB."""
    return LayerTime(
        *(node, "conv", "conv", "1x4 -> 1x4", macs, 1_000_000, 1.0, macs / 1e6),
        *(0.25, share_of_limit, 0.25, bound),
    )


READS = (Read("second cache", 9e10, 1 << 20, 1), Read("memory", 2e10, None, 1))
PROFILE = Profile(
    layers=(
        layer("conv<1>", 50_000_000, 0.9, ""),
        layer("conv2", 3_000_000, 0.1, "compute"),
        layer("add", 0, 0.4, "memory"),
        layer("pool", 0, 0.8, "memory"),
    ),
    peak=Peak("vpdpbusd zmm", 4e11, READS),
    working_set_bytes=2 << 20,
    overhead_us=1.0,
    runs=20,
)


def test_the_roofline_contains_every_layer() -> None:
    svg = roofline_plot(PROFILE)

    titles = re.findall(r"<title>([^<]*)</title>", svg)
    assert {title.split(" ")[0] for title in titles} == {*("add", "conv2", "conv&lt;1&gt;", "pool")}
    assert "conv2 (conv, 1x4 -&gt; 1x4): 1000.0 us, 3.0 GMAC/s, 1.0 GB/s" in titles
    assert "add (conv, 1x4 -&gt; 1x4): 1000.0 us, 1.0 GB/s" in titles


def test_the_roofline_names_the_limits_of_the_machine() -> None:
    svg = roofline_plot(PROFILE)

    for text in ("400 GMAC/s (vpdpbusd zmm)", "second cache, 90 GB/s", "memory, 20 GB/s"):
        assert text in svg


def test_layers_far_below_their_limit_stand_out() -> None:
    svg = roofline_plot(PROFILE)

    for number, title in enumerate(("add", "pool", "conv<1>", "conv2")):
        colour = "--warn" if title in ("add", "conv2") else "--accent"
        mark = svg[svg.index(f'id="roofline-mark-{number}"') :]
        assert f"var({colour})" in mark[: mark.index("</g>")]


@pytest.mark.parametrize("kept", [slice(0, 1), slice(2, 3), slice(0, 4)])
def test_a_page_shows_the_time_of_each_layer(kept: slice) -> None:
    layers = PROFILE.layers[kept]
    page = replace(PAGE, speed=replace(PROFILE, layers=layers))

    text = render(page)

    assert text.count('<td class="name tight">') == len(layers)
    assert "Speed under the roof of this machine" in text
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))


def test_without_layers_there_is_no_roofline() -> None:
    assert roofline_plot(replace(PROFILE, layers=())) == ""


def test_the_page_shows_what_each_step_brought() -> None:
    steps = (
        StepRow("mse{p=2.4}", 0.25, 12.5, 1.25, {"tensors": 3.0, "tried_db": 1.0}),
        StepRow("gptq", 0.0, None, None, {"tensors": 0.0}),
    )

    page = render(replace(PAGE, steps=steps))

    assert "<h2>Steps</h2>" in page
    assert '<td class="n">12.50</td><td class="n">+1.25</td><td class="">tensors 3</td>' in page
    assert '<td class="n"></td><td class="n"></td><td class="n"></td><td class=""></td>' in page
    assert "<h2>Steps</h2>" not in render(PAGE)

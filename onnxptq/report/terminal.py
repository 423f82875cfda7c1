"""What the commands say: tables for people, JSON for programs, errors on standard error."""

import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from onnxptq.report.rows import (
    STEP_HEADS,
    Evaluation,
    FloatRow,
    LayerRow,
    QuantizeReport,
    StepRow,
    decibels,
    percent,
)

if TYPE_CHECKING:
    from onnxptq.runtime.certify import Certificate
    from onnxptq.runtime.verify import Difference, Verification

_WORST_LAYERS = 8
_SATURATES_HERE = (
    "onnxruntime cuts off such sums at 16 bits on this CPU, which has no VNNI; the executor never "
    "does, so results may differ there. --bits w7a8 avoids it"
)
_PIPE_WIDTH = 160  # columns of tables, where nobody looks at the width of a window


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's answer goes.

    Attributes:
        json: Where to write it for programs; "-" for standard output, which then carries nothing
            else; None for nowhere.
    """

    json: str | None = None

    def check(self) -> None:
        """Refuse a JSON file that cannot be written, before long work starts.

        Raises:
            ModelError: Its folder is missing or not writable.
        """
        if self.json not in (None, "-"):
            from onnxptq.graph import io

            io.writable(Path(str(self.json)))

    @property
    def width(self) -> int:
        """Columns of what is printed."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH

    def say(self, *parts: RenderableType) -> None:
        """Print for people, unless standard output belongs to the JSON."""
        if self.json == "-":
            return
        wrap = sys.stdout.isatty()
        console = Console(highlight=False, soft_wrap=not wrap, width=None if wrap else _PIPE_WIDTH)
        with _reader_may_leave():
            for part in parts:
                console.print(part)
            sys.stdout.flush()

    def answer(self, data: Mapping[str, Any]) -> None:
        """Write the JSON where it was asked for.

        Raises:
            ModelError: The file cannot be written.
        """
        if self.json is None:
            return
        text = json.dumps(plain(data), indent=2, allow_nan=False) + "\n"
        if self.json != "-":
            from onnxptq.graph import io

            io.write_atomically(Path(self.json), text.encode())
            return
        with _reader_may_leave():
            sys.stdout.write(text)
            sys.stdout.flush()


def plain(value: Any) -> Any:
    """`value` with tuples as lists and floats that JSON cannot spell (NaN, infinity) as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def complain(message: str) -> None:
    """One message on standard error, unwrapped and without markup."""
    print(f"error: {message}", file=sys.stderr)


def facts(pairs: Mapping[str, str]) -> Table:
    """Two columns: label and value."""
    table = Table.grid(padding=(0, 2))
    for label, value in pairs.items():
        table.add_row(Text(label, style="dim"), Text(value))
    return table


def quantized(report: QuantizeReport) -> tuple[RenderableType, ...]:
    """What `quantize` did."""
    parts = [
        facts(report.summary()),
        *([steps(report.steps)] if any(row.gain_db is not None for row in report.steps) else []),
        worst_layers(report.layers),
        float_nodes(report.float_nodes),
    ]
    return tuple(part for each in parts for part in (each, ""))[:-1]


def steps(rows: Sequence[StepRow]) -> Table:
    """What each method brought."""
    table = Table(title="what each method brought", title_justify="left", box=None, pad_edge=False)
    for place, head in enumerate(STEP_HEADS):
        justify = "right" if 0 < place < len(STEP_HEADS) - 1 else "left"
        table.add_column(head, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.cells()))
    return table


def slow(nodes: Sequence[str]) -> tuple[str, ...]:
    """What to know about layers with tables of borders, if there are any."""
    if not nodes:
        return ()
    return (
        f"{len(nodes)} layers have tables of borders, from {nodes[0]} on: onnxruntime runs "
        "them in integers but slowly; the executor has a form for them",
    )


def notes(texts: Sequence[str]) -> tuple[RenderableType, ...]:
    """What else there is to know, a line each."""
    return tuple(Text(f"note: {text}") for text in texts)


def worst_layers(rows: Sequence[LayerRow]) -> RenderableType:
    """The layers that lost most, where a user would look first."""
    known = [row for row in rows if row.sqnr_db is not None]
    worst = sorted(known, key=lambda row: row.sqnr_db or 0.0)[:_WORST_LAYERS]
    if not worst:
        return Text("")
    table = Table(title="layers that lost most", title_justify="left", box=None, pad_edge=False)
    for head in ("node", "operator", "bits", "SQNR"):
        table.add_column(head, justify="right" if head == "SQNR" else "left", overflow="fold")
    for row in worst:
        bits = f"w{row.w_bits or '-'} a{row.a_bits or '-'}"
        table.add_row(Text(row.node), row.op, bits, decibels(row.sqnr_db))
    return table


def float_nodes(rows: Sequence[FloatRow]) -> RenderableType:
    """The nodes that stay in float, each with the reason."""
    if not rows:
        return Text("no node stays in float")
    table = Table(title="nodes in float", title_justify="left", box=None, pad_edge=False)
    for head in ("node", "operator", "why"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(Text(row.node), row.op, Text(row.why))
    return table


def evaluation(result: Evaluation) -> Table:
    """Accuracy and nearness; what was not measured is left out."""
    pairs = {
        "samples": str(result.n),
        "top-1": percent(result.top1),
        "top-5": percent(result.top5),
        "agreement with reference": percent(result.agreement),
        "SQNR": decibels(result.sqnr_db),
        "KL divergence": "" if result.kl is None else f"{result.kl:.3g} nats",
    }
    return facts({label: value for label, value in pairs.items() if value})


def verification(result: "Verification") -> tuple[RenderableType, ...]:
    """What was compared, what differs, what was proved, and what runs in float."""
    certificate = result.certificate
    forms = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in certificate.by.items() if count
    )
    unproved = certificate.channels - certificate.proved
    pairs = {
        "bit-exact": "yes" if result.bit_exact else "no",
        "compared": f"{result.elements} elements of {result.tensors} tensors and the outputs",
        "differing": str(result.mismatches),
        "proved": f"{certificate.proved} of {certificate.channels} channels ({forms})",
        "onnxruntime": f"{certificate.onnxruntime} on {certificate.cpu}",
        "probe": certificate.probe,
        "without VNNI": _saturation(certificate),
    }
    parts: list[RenderableType] = [facts(pairs), *_islands(result)]
    if result.first_difference is not None:
        parts += ["", *_difference(result.first_difference)]
    if unproved:
        worst = [row.node for row in certificate.layers if row.proved < row.channels]
        parts += notes([f"not proved: {', '.join(worst)}"])
    if certificate.saturates_here:
        parts += notes([_SATURATES_HERE])
    parts += notes([f"codes may leave their range at {node}" for node in certificate.unsound])
    parts += notes([f"not compared: {name}" for name in result.not_compared])
    return tuple(parts)


def _saturation(certificate: "Certificate") -> str:
    risky = [row for row in certificate.layers if row.saturation.channels]
    if not risky:
        return "the same numbers"
    results = sum(row.saturation.accumulators for row in risky)
    return f"{len(risky)} layers could saturate, in at most {results} results of this run"


def _islands(result: "Verification") -> tuple[RenderableType, ...]:
    if not result.islands:
        return ()
    table = Table(title="run by onnxruntime", title_justify="left", box=None, pad_edge=False)
    for head in ("operators", "of MACs", "of elements", "why"):
        table.add_column(head, overflow="fold")
    for row in result.islands:
        counts = Counter(row.op_types).items()
        operators = ", ".join(op if count == 1 else f"{count} {op}" for op, count in counts)
        table.add_row(
            Text(operators),
            percent(row.share_of_macs),
            percent(row.share_of_elements),
            Text(row.why),
        )
    return ("", table)


def _difference(first: "Difference") -> tuple[RenderableType, ...]:
    table = Table(
        title=f"first difference: {first.tensor} of node {first.node or '(an output)'}, "
        f"{first.count} elements",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for head in ("index", "onnxruntime", "executor"):
        table.add_column(head, justify="right")
    for index, expected, found in zip(first.indices, first.expected, first.found, strict=True):
        table.add_row(str(index), f"{expected:.9g}", f"{found:.9g}")
    return (table,)


@contextmanager
def _reader_may_leave() -> Generator[None]:
    """`onnxptq ... | head`: the reader has what it wanted, the rest is dropped without a word."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes once more at exit; that write must find an open end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

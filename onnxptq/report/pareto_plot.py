"""The plot beside a file of Pareto points: how far the outputs move over the size of the file."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from onnxptq.methods.pareto import ParetoPoint

LEAST = 1e-12
"""Distances below this are drawn there: the axis is logarithmic."""


def pareto_svg(points: Sequence[ParetoPoint]) -> bytes:
    """An SVG; equal points give equal bytes."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "onnxptq", "font.size": 9})
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        kilobytes = [point.bytes / 1e3 for point in points]
        predicted = [max(point.predicted, LEAST) for point in points]
        axes.plot(kilobytes, predicted, "o-", color="#8899aa", label="predicted", markersize=4)
        known = [(p.bytes / 1e3, max(p.measured, LEAST)) for p in points if p.measured is not None]
        axes.plot(
            *zip(*known, strict=True), "s", color="#1f5fbf", label="measured on held-out samples"
        )
        for point, x, y in zip(points, kilobytes, predicted, strict=True):
            axes.annotate(f"{point.average_bits:.1f}", (x, y), (0, 5), textcoords="offset points")
            if point.chosen:
                axes.axvline(x, color="#c05020", linewidth=0.8, label="chosen")
        axes.set(xlabel="file, kB (labels: average bits)", ylabel="distance of the outputs")
        axes.set_yscale("log")
        axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()

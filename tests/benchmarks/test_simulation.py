"""The simulation of papers clips channels where the data say so."""

import numpy as np
import pytest

from benchmarks import simulation
from benchmarks.simulation import Arm, by_channel
from onnxptq import ort
from onnxptq.calibrate.source import Taken
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from tests.small_models import array_of, from_text


def errors(values: np.ndarray, grid: simulation.Grid) -> np.ndarray:
    rows = by_channel(values)
    return np.square(grid.rounded(rows) - rows).sum(axis=1)


def test_the_best_grid_of_a_channel_is_no_worse_than_laplaces_or_the_whole_range(
    rng: np.random.Generator,
):
    """A few numbers at 6 among zeros are lost by Laplace's clip; a long tail is won by it."""
    model = from_text(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float lo = {0}, float hi = {6}> {
            a = Conv<group = 4>(x, w1)
            b = Clip(a, lo, hi)
            c = Conv<group = 4>(b, w2)
            d = Conv(c, w3)
            y = Conv(d, w4)
        }""",
        rng,
        {"w1": (4, 1, 1, 1), "w2": (4, 1, 1, 1), "w3": (4, 4, 1, 1), "w4": (4, 4, 1, 1)},
    )
    spread = np.array([0.1, 1.0, 20.0, 0.0])[:, None, None]
    x = (rng.laplace(size=(8, 4, 8, 8)) * spread).astype(np.float32)
    x[:, 3] = np.where(rng.random((8, 8, 8)) < 0.03, 6.0, 0.0) / array_of(model, "w1")[3]
    data = Taken([{"x": x}], None, 8, "test")
    recipe = place(model, Placing(bits="w8a4"))
    measured = simulation.measure(model, recipe, data)

    def found(arm: Arm) -> np.ndarray:
        return errors(values, simulation.activation_grids(model, recipe, measured, data, arm)["b"])

    values = ort.session(ort.with_outputs(model, ["b"])).run({"x": x}, ["b"])["b"]
    best, laplace, whole = found(Arm(best=True)), found(Arm(aciq=True)), found(Arm())

    assert (best <= np.minimum(laplace, whole)).all()
    assert (laplace < whole).any()
    assert (whole < laplace).any()


@pytest.mark.parametrize("places", [[0, 1, 1], [1, 0, 0]])
def test_channels_take_their_grids_from_where_they_are_told(places: list[int]):
    grids = [
        simulation.Grid(np.full(3, step), np.full(3, -step), np.full(3, 2 * step))
        for step in (1.0, 5.0)
    ]

    found = simulation.Grid.picked(grids, np.array(places))

    assert found.scale.tolist() == [(1.0, 5.0)[place] for place in places]
    assert found.high.tolist() == [(2.0, 10.0)[place] for place in places]

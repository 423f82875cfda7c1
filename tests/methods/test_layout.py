"""Images in the two orders in memory: what is computed is the same."""

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq.quant import QParams, QuantSpec

torch = pytest.importorskip("torch", reason="needs the torch extra")
coins = pytest.importorskip("onnxptq.methods.reconstruction.coins")
grids = pytest.importorskip("onnxptq.methods.reconstruction.grids")
layout = pytest.importorskip("onnxptq.methods.reconstruction.layout")
samples = pytest.importorskip("onnxptq.methods.reconstruction.samples")

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
F32 = npt.NDArray[np.float32]
SHAPES = [(5, 4, 4, 4), (5, 3, 2, 6), (5, 7, 1, 1), (5, 1, 4, 3), (5, 3, 4), (5, 6)]
"""The first one looks the same from all sides."""


@pytest.fixture(params=SHAPES, ids=str)
def images(request: pytest.FixtureRequest, rng: np.random.Generator) -> F32:
    return rng.normal(size=request.param).astype(np.float32)


def shelved(array: F32) -> F32:
    """As samples are kept."""
    batches = ({"x": rows[None]} for rows in array)
    return samples.Shelf().gathered(batches, len(array))["x"]


def test_samples_are_kept_with_channels_side_by_side(rng: np.random.Generator):
    array = rng.normal(size=(5, 3, 2, 6)).astype(np.float32)

    kept = shelved(array)

    assert np.array_equal(kept, array)
    assert kept.transpose(0, 2, 3, 1).flags.c_contiguous


def test_rows_drawn_are_those_of_the_array(images: F32):
    rows = np.array([3, 0, 3])

    for array in (images, shelved(images)):
        assert np.array_equal(samples.drawn(array, rows, CPU).numpy(), images[rows])


def test_mixed_rows_have_each_element_of_one_of_two(images: F32):
    rows, other = np.array([4, 1]), images + 100
    tosses = coins.Coins(0, CPU).drawn(torch.Size((2, *images.shape[1:])), 0.5)

    found = samples.mixed(shelved(images), shelved(other), rows, tosses).numpy()

    assert np.all((found == images[rows]) | (found == other[rows]))
    assert np.sum(found == images[rows]) == int(tosses.sum())


def test_coins_lie_in_memory_as_what_they_are_drawn_for(images: F32):
    laid = samples.drawn(shelved(images), np.arange(5), CPU)

    drawn = coins.Coins(0, CPU).drawn_like(laid, 0.5)

    assert drawn.shape == laid.shape
    flat = coins.Coins(0, CPU).drawn(torch.Size([images.size]), 0.5)
    assert torch.equal(torch.from_numpy(layout.in_memory(drawn)), flat)


def test_a_grid_rounds_alike_in_both_orders(images: F32, rng: np.random.Generator):
    codes = (np.asarray(code, np.int32) for code in (4, 0))
    params = QParams(QuantSpec(4, signed=False), np.asarray(0.3, np.float32), *codes)
    grid = grids.Grid(params, CPU)
    weight = torch.from_numpy(rng.normal(size=images.shape).astype(np.float32))
    free = torch.from_numpy((rng.random(images.shape) < 0.5).astype(np.uint8))
    plain = torch.from_numpy(images).requires_grad_()
    laid = samples.drawn(shelved(images), np.arange(5), CPU).requires_grad_()

    found = [grid(x, free) for x in (plain, laid)]
    slopes = [
        torch.autograd.grad((y * weight).sum(), [x, grid.log_scale])
        for x, y in zip((plain, laid), found, strict=True)
    ]

    assert torch.equal(*found)
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert slopes[0][1].item() == pytest.approx(slopes[1][1].item(), rel=1e-4)

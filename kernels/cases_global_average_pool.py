"""Arguments that tests and benchmarks run the kernel of global_average_pool.py on."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import global_average_pool
from onnxptq.kernels.cases_requantize import Bytes, add_requant, forms_of
from onnxptq.kernels.cases_rows import Arguments, Layout, named

THREADS = 3
WORK = 49 * 512


def call(
    x: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
    zeros: tuple[int, int],
    forms: npt.NDArray[np.uint8],
    channels_last: bool,
) -> Arguments:
    """Arguments for stored codes x [batch, channels, pixels], laid out as channels_last says."""
    batch, channels, pixels = x.shape
    layout, consts = Layout(), Bytes()
    columns = named(
        global_average_pool.COLUMNS,
        x=layout.put(np.moveaxis(x, 1, 2) if channels_last else x),
        y=layout.room(batch * channels),
        batch=batch,
        channels=channels,
        pixels=pixels,
        x_n=channels * pixels,
        x_c=1 if channels_last else pixels,
        x_p=channels if channels_last else 1,
        y_n=channels,
        y_c=1,
        x_zero=zeros[0],
        scratch=layout.room(THREADS * global_average_pool.scratch_bytes()),
        scratch_bytes=global_average_pool.scratch_bytes(),
    )
    row, arena, _, *threads = layout.arguments(columns)
    add_requant(row, consts, scales, (0, 255, zeros[1]), forms)
    return row, arena, consts.array(), *threads


def _random(rng: np.random.Generator, shape: tuple[int, int, int], last: bool) -> Arguments:
    x = rng.integers(0, 256, shape).astype(np.uint8)
    scales = (rng.uniform(0.2, 2, shape[1]) / max(shape[2], 1)).astype(np.float32)
    zeros = (int(rng.integers(0, 256)), int(rng.integers(0, 256)))
    return call(x, scales, zeros, forms_of(rng, shape[1]), last)


def pools(rng: np.random.Generator) -> Iterator[Arguments]:
    """Channels around the blocks, one and many pixels, both layouts, no batch, many large codes."""
    for last in (False, True):
        for shape in ((1, 1, 1), (2, 5, 49), (1, 64, 7), (3, 65, 12), (2, 200, 3), (0, 4, 4)):
            yield _random(rng, shape, last)
    x = np.full((1, 70, 600), 255, np.uint8)
    yield call(x, np.full(70, 1 / 600, np.float32), (0, 0), np.zeros(5, np.uint8), True)


def pool_work(rng: np.random.Generator) -> Arguments:
    """The end of a ResNet-18, fixed point; time is for an input element."""
    x = rng.integers(0, 256, (1, 512, 49)).astype(np.uint8)
    return call(x, np.full(512, 0.02, np.float32), (0, 0), np.zeros(32, np.uint8), True)

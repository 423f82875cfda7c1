"""kernels/pool.py equals onnxruntime's pooling of codes, with scales that are full of ties."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxptq.kernels import cases_pool, pool
from onnxptq.kernels.cases_rows import Layout, named

Codes = npt.NDArray[Any]
TYPES = {"uint8": (np.uint8, TensorProto.UINT8), "int8": (np.int8, TensorProto.INT8)}

# kernel, strides, pads in front, pads behind, ceil_mode
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), (0, 0), 0),
    ((3, 3), (1, 1), (1, 1), (1, 1), 0),
    ((3, 2), (2, 1), (1, 0), (2, 1), 0),
    ((3, 3), (2, 2), (0, 0), (0, 0), 1),
    ((4, 3), (3, 2), (1, 2), (2, 0), 1),
    ((3,), (2,), (1,), (1,), 1),
    ((3,), (1,), (0,), (2,), 0),
    ((2, 3, 2), (2, 1, 2), (1, 1, 0), (0, 1, 1), 1),
    ((2, 2, 2), (1, 2, 1), (0, 0, 0), (0, 0, 0), 0),
]


def session(node: onnx.NodeProto, x: Codes, constants: dict[str, Any]) -> ort.InferenceSession:
    """One node, from the codes x to y."""
    of = TYPES[x.dtype.name][1]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", of, x.shape)],
        [helper.make_tensor_value_info("y", of, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def stored(codes: Codes) -> npt.NDArray[np.uint8]:
    """Codes as the arena holds them."""
    return (codes.astype(np.int64) + (128 if codes.dtype == np.int8 else 0)).astype(np.uint8)


def window_of(x: Codes, channels_last: bool, sizes: tuple[Any, ...], y: Codes) -> cases_pool.Window:
    """The window with one and two axes filled up by ones in front; y says how many there are."""
    kernel, strides, pads, _, _ = sizes
    space = x.shape[1:-1] if channels_last else x.shape[2:]
    out = y.shape[1:-1] if channels_last else y.shape[2:]
    missing = 3 - len(space)
    channels = x.shape[-1] if channels_last else x.shape[1]

    def triple(values: tuple[int, ...], fill: int) -> cases_pool.Triple:
        a, b, c = (fill,) * missing + tuple(values)
        return a, b, c

    behind = [
        (o - 1) * s + k - n - p
        for o, s, k, n, p in zip(out, strides, kernel, space, pads, strict=True)
    ]
    return cases_pool.Window(
        x.shape[0],
        channels,
        triple(space, 1),
        triple(kernel, 1),
        triple(strides, 1),
        pads=triple(pads, 0),
        pads_after=triple(tuple(behind), 0),
    )


@pytest.mark.parametrize("channels_last", [0, 1])
@pytest.mark.parametrize("include_pad", [0, 1])
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("sizes", WINDOWS, ids=str)
def test_average_pool_equals_onnxruntime(
    sizes: tuple[Any, ...],
    name: str,
    include_pad: int,
    channels_last: int,
    rng: np.random.Generator,
) -> None:
    kernel, strides, before, after, ceil_mode = sizes
    of = TYPES[name][0]
    limits = np.iinfo(of)
    space = (9, 8, 7)[: len(kernel)]
    node = helper.make_node(
        "QLinearAveragePool",
        ["x", "xs", "xz", "ys", "yz"],
        ["y"],
        domain="com.microsoft",
        channels_last=channels_last,
        kernel_shape=kernel,
        strides=strides,
        pads=[*before, *after],
        ceil_mode=ceil_mode,
        count_include_pad=include_pad,
    )
    for _ in range(12):
        # Multiples of 0.01 and of powers of two have many exact halves and near ones.
        unit = float(rng.choice([0.01, 0.5, 0.013]))
        scales = [unit * int(n) for n in rng.choice([1, 2, 3, 4, 7, 8, 16, 31], 2)]
        zeros = [int(n) for n in rng.integers(limits.min, limits.max + 1, 2)]
        shape = (2, *space, 5) if channels_last else (2, 5, *space)
        x = rng.integers(limits.min, limits.max + 1, shape).astype(of)
        constants = {
            "xs": np.float32(scales[0]),
            "xz": of(zeros[0]),
            "ys": np.float32(scales[1]),
            "yz": of(zeros[1]),
        }
        y = np.asarray(session(node, x, constants).run(None, {"x": x})[0])
        window = window_of(x, bool(channels_last), sizes, y)
        layout = Layout()
        columns = cases_pool.window_columns(
            layout, window, layout.put(stored(x)), bool(channels_last)
        )
        columns |= cases_pool.average_columns(
            layout, (scales[0], scales[1]), (zeros[0], zeros[1]), of == np.int8
        )
        columns["include_pad"] = include_pad
        row, arena, consts, *_ = layout.arguments(named(pool.AVERAGE_POOL_COLUMNS, **columns))

        pool.average_pool(row, arena, consts, 0, 1)

        found = arena[columns["y"] : columns["y"] + y.size].reshape(y.shape)
        np.testing.assert_array_equal(found, stored(y))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("sizes", WINDOWS, ids=str)
def test_max_pool_equals_onnxruntime(
    sizes: tuple[Any, ...], name: str, rng: np.random.Generator
) -> None:
    kernel, strides, before, after, ceil_mode = sizes
    of = TYPES[name][0]
    space = (9, 8, 7)[: len(kernel)]
    node = helper.make_node(
        "MaxPool",
        ["x"],
        ["y"],
        kernel_shape=kernel,
        strides=strides,
        pads=[*before, *after],
        ceil_mode=ceil_mode,
    )
    x = rng.integers(0, 256, (2, 5, *space)).astype(np.uint8).view(of)
    y = np.asarray(session(node, x, {}).run(None, {"x": x})[0])
    window = window_of(x, False, sizes, y)
    for channels_last in (False, True):
        layout = Layout()
        codes = stored(np.moveaxis(x, 1, -1) if channels_last else x)
        columns = cases_pool.window_columns(layout, window, layout.put(codes), channels_last)
        row, arena, consts, *_ = layout.arguments(named(pool.MAX_POOL_COLUMNS, **columns, empty=0))

        pool.max_pool(row, arena, consts, 0, 1)

        expected = stored(np.moveaxis(y, 1, -1) if channels_last else y)
        found = arena[columns["y"] : columns["y"] + y.size].reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ratio", [2.0**-24, 2.0**-12, 1 / 3, 1.0, 100.0, 2.0**16, 2.0**24])
@pytest.mark.parametrize("side", [1, 2, 31])
def test_average_pool_equals_its_twin_at_any_ratio(
    ratio: float, side: int, rng: np.random.Generator
) -> None:
    window = cases_pool.Window(1, 40, (1, 33, 33), (1, side, side), (1, 2, 2))
    for zero in (0, 100, 255):
        layout = Layout()
        x = rng.integers(max(zero - 3, 0), min(zero + 4, 256), 40 * 33 * 33).astype(np.uint8)
        columns = cases_pool.window_columns(layout, window, layout.put(x), True)
        columns |= cases_pool.average_columns(layout, (0.37 * ratio, 0.37), (zero, 128), False)
        row, arena, consts, *_ = layout.arguments(
            named(pool.AVERAGE_POOL_COLUMNS, **columns, include_pad=0)
        )
        expected = arena.copy()
        pool.average_pool_naive(row, expected, consts)

        pool.average_pool(row, arena, consts, 0, 1)

        np.testing.assert_array_equal(arena, expected)

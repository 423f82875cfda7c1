"""Executor: an onnxruntime look-alike that any number of callers and processes can use."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import onnxptq
from onnxptq.errors import ModelError, ProgramError
from onnxptq.program import IntegerProgram
from onnxptq.runtime import execute
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.plan import make_plan
from tests.data_paths import ROOT
from tests.runtime.small_programs import Array, Builder, F, found, found_pair, graph, random_codes

CHANNELS = 24


def layer(builder: Builder, x: int, rng: np.random.Generator, depthwise: bool) -> int:
    shape = (CHANNELS, 1 if depthwise else CHANNELS, 3, 3)
    weight = random_codes(rng, "int8", *shape)
    attributes = {"x_zero": 3, "pads": (1, 1, 1, 1), "group": CHANNELS if depthwise else 1}
    arrays = {"weight": weight, "weight_zero": np.zeros(1, np.int8)}
    scale = rng.uniform(1e-4, 1e-2, CHANNELS).astype(F)
    requant = found(scale, 3, "uint8")
    return builder.add("conv", [x], "uint8", attributes, arrays=arrays, requant=requant)


def network(rng: np.random.Generator, batch: int | str = "N") -> IntegerProgram:
    """Quantize, convolutions with a residual, concat, pools, product, softmax, dequantize."""
    builder = Builder()
    x = builder.input("float32", (batch, CHANNELS, None, None))
    first = {"scale": np.array([0.05], F), "zero_point": np.array([3], np.uint8)}
    limits = {"axis": 1, "lo": 0, "hi": 255}
    codes = builder.add("quantize", [x], "uint8", limits, arrays=first)
    a = layer(builder, codes, rng, depthwise=False)
    b = layer(builder, a, rng, depthwise=True)
    c = builder.add(
        "add", [a, b], "uint8", requant=found_pair("add", (1, 2, 3), (3, 3, 3), "uint8")
    )
    d = builder.add("max_pool", [c], "uint8", {"kernel_shape": (2, 2), "strides": (2, 2)})
    e = builder.add("concat", [d, d], "uint8", {"axis": 1})
    scales = {"scales": np.array([0.1, 0.05], F), "zero_points": np.array([3, 5])}
    f = builder.add("global_average_pool", [e], "uint8", {}, arrays=scales)
    g = builder.add("flatten", [f], "uint8", {"axis": 1})
    weight = random_codes(rng, "int8", 2 * CHANNELS, 10)
    arrays = {"weight": weight, "weight_zero": np.zeros(1, np.int8)}
    requant = found(np.array([0.002], F), 128, "uint8")
    h = builder.add("matmul", [g], "uint8", {"x_zero": 5}, arrays=arrays, requant=requant)
    last = {"scale": np.array([0.1], F), "zero_point": np.array([128], np.uint8)}
    real = builder.add("dequantize", [h], "float32", {"axis": 1}, arrays=last)
    return builder.program(real, c)


def feed(rng: np.random.Generator, *shape: int) -> dict[str, Array]:
    return {"v0": (rng.standard_normal(shape) * 3).astype(F)}


def test_arguments_are_described_as_onnxruntime_does(rng: np.random.Generator) -> None:
    executor = Executor(network(rng))

    (x,), (real, codes) = executor.get_inputs(), executor.get_outputs()

    assert (x.name, x.shape, x.type) == ("v0", ["N", CHANNELS, None, None], "tensor(float)")
    assert (real.name, real.type, codes.type) == ("v10", "tensor(float)", "tensor(uint8)")


def test_outputs_come_in_the_order_asked_for(rng: np.random.Generator) -> None:
    executor, x = Executor(network(rng)), feed(rng, 2, CHANNELS, 8, 6)

    real, codes = executor.run(None, x)

    assert real.shape == (2, 10)
    assert codes.shape == (2, CHANNELS, 8, 6)
    for names, expected in ((["v4", "v10"], [codes, real]), (["v10"], [real]), ([], [real, codes])):
        for one, other in zip(executor.run(names, x), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_trace_holds_what_a_run_gives(rng: np.random.Generator) -> None:
    program, x = network(rng), feed(rng, 2, CHANNELS, 9, 7)
    executor = Executor(program)

    values = executor.trace(x)

    assert list(values) == [value.name for value in program.values]
    for name, array in zip(("v10", "v4"), executor.run(None, x), strict=True):
        np.testing.assert_array_equal(values[name], array)
    np.testing.assert_array_equal(values["v0"], x["v0"])
    for value in program.values:
        assert values[value.name].dtype == value.dtype


@pytest.mark.parametrize("threads", [0, 2, 3])
def test_threads_do_not_change_a_bit(threads: int, rng: np.random.Generator) -> None:
    program, x = network(rng), feed(rng, 3, CHANNELS, 20, 20)
    expected = Executor(program).run(None, x)
    executor = Executor(program, threads)

    for _ in range(5):
        for one, other in zip(executor.run(None, x), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_callers_at_once(threads: int, rng: np.random.Generator) -> None:
    executor = Executor(network(rng), threads)
    feeds = [feed(rng, 1 + i % 3, CHANNELS, 12, 12) for i in range(6)]
    expected = [executor.run(["v10"], x)[0] for x in feeds]

    def one(number: int) -> Array:
        return executor.run(["v10"], feeds[number % 6])[0]

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, range(90)))

    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 6])


def test_a_forked_child_runs_too(rng: np.random.Generator) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    executor, x = Executor(network(rng), 2), feed(rng, 1, CHANNELS, 20, 20)
    expected = executor.run(["v10"], x)[0]
    child = os.fork()
    if child == 0:
        same = np.array_equal(executor.run(["v10"], x)[0], expected)
        os._exit(0 if same else 1)

    deadline = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)

    assert status == (child, 0)


def test_a_row_without_a_kernel_is_an_error(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, x = Executor(network(rng), 2), feed(rng, 1, CHANNELS, 20, 20)

    def forgotten(addresses: Array, rows: Array) -> None:
        del addresses, rows

    monkeypatch.setattr(execute, "update_addresses", forgotten)

    with pytest.raises(
        ProgramError, match=r"rows call kernels \[.*\], of which one has no address"
    ):
        executor.run(None, x)


ONLY_CLIP = """
import numpy as np
from onnxptq.runtime.execute import Executor
from tests.runtime.small_programs import Builder
builder = Builder()
clipped = builder.add("clip", [builder.input("uint8")], "uint8", {"lo": 2, "hi": 9})
print(*Executor(builder.program(clipped)).run(None, {"v0": np.arange(12, dtype=np.uint8)})[0])
"""


def test_only_what_a_model_uses_is_compiled(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ONLY_CLIP]

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout == "2 2 2 3 4 5 6 7 8 9 9 9\n"
    compiled = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert compiled == {"dispatch.dispatch", "share.share", "table.clip"}


def test_an_empty_batch_gives_empty_outputs(rng: np.random.Generator) -> None:
    real, codes = Executor(network(rng)).run(None, feed(rng, 0, CHANNELS, 8, 8))

    assert (real.shape, codes.shape) == ((0, 10), (0, CHANNELS, 8, 8))


def test_only_the_plans_used_last_are_kept(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "MOST_PLANS", 2)
    executor = Executor(network(rng))
    made: list[int] = []

    def counting(*arguments: Any, **named: Any) -> Any:
        made.append(1)
        return make_plan(*arguments, **named)

    monkeypatch.setattr(execute, "make_plan", counting)
    for side in (8, 10, 8, 12, 8, 10):
        executor.run(None, feed(rng, 1, CHANNELS, side, side))

    assert len(made) == 4  # 8, 10, 12, and 10 again, which went for 12


FIXED = [
    ({}, "input 'v0' is missing: found nothing, expected v0"),
    ({"x": np.zeros(1, F)}, "no input 'x', expected v0"),
    ({"v0": np.zeros((1, CHANNELS, 8, 8))}, "input 'v0' is float64, expected float32"),
    ({"v0": np.zeros((1, 8, 8), F)}, r"'v0' has shape \(1, 8, 8\), expected \(N, 24, any, any\)"),
    ({"v0": np.zeros((1, 3, 8, 8), F)}, r"'v0' has shape \(1, 3, 8, 8\), expected \(N, 24,"),
]


@pytest.mark.parametrize(("feeds", "message"), FIXED, ids=[text for _, text in FIXED])
def test_feeds_that_do_not_fit_are_refused(
    feeds: dict[str, Array], message: str, rng: np.random.Generator
) -> None:
    with pytest.raises(ModelError, match=message):
        Executor(network(rng)).run(None, feeds)


def test_unknown_outputs_and_threads_are_refused(rng: np.random.Generator) -> None:
    program = network(rng)

    with pytest.raises(ModelError, match="no output 'y', expected one of v10, v4"):
        Executor(program).run(["y"], feed(rng, 1, CHANNELS, 8, 8))
    with pytest.raises(ModelError, match=r"threads must be 0 .* found -1"):
        Executor(program, -1)


def test_shapes_that_do_not_fit_inside_name_the_node(rng: np.random.Generator) -> None:
    with pytest.raises(ProgramError, match=r"node 'max_pool_4' \(max_pool\): a window of \(2, 2\)"):
        Executor(network(rng)).run(None, feed(rng, 1, CHANNELS, 1, 8))


def test_islands_run_between_rows_and_hosts_before_them(rng: np.random.Generator) -> None:
    builder = Builder()
    x = builder.input("int8")
    example = np.zeros((1, 1), np.int8)
    cast = [helper.make_node("Cast", ["v1"], ["a"], to=1)]
    cast += [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Cast", ["b"], ["v2"], to=3)]
    shape = helper.make_node("Shape", ["v1"], ["v4"])
    clipped = builder.add("clip", [x], "int8", {"lo": -100, "hi": 100})
    number = builder.island(graph(cast, {"v1": example}, {"v2": "int8"}))
    negated = builder.add("island", [clipped], "int8", {"island": number})
    turned = builder.add("transpose", [negated], "int8", {"perm": (1, 0)})
    number = builder.island(graph([shape], {"v1": example}, {"v4": "int64"}))
    sizes = builder.add("host", [clipped], "int64", {"island": number})
    back = builder.add("reshape", [turned, sizes], "int8", {"allowzero": 0})
    number = builder.island(
        graph([helper.make_node("Abs", ["v5"], ["v6"])], {"v5": example}, {"v6": "int8"})
    )
    absolute = builder.add("island", [back], "int8", {"island": number})
    executor = Executor(builder.program(absolute, back, sizes))
    data = random_codes(rng, "int8", 5, 7)

    found_absolute, found_back, found_sizes = executor.run(None, {"v0": data})

    expected = -np.clip(data, -100, 100).T.reshape(5, 7)
    np.testing.assert_array_equal(found_back, expected)
    np.testing.assert_array_equal(found_absolute, np.abs(expected))
    np.testing.assert_array_equal(found_sizes, [5, 7])
    assert executor.trace({"v0": data})["v6"].tolist() == np.abs(expected).tolist()


def test_what_only_islands_touch_may_have_any_shape() -> None:
    builder = Builder()
    x = builder.input("uint8")
    nodes = [
        helper.make_node("Cast", ["v0"], ["a"], to=1),
        helper.make_node("NonZero", ["a"], ["v1"]),
    ]
    number = builder.island(graph(nodes, {"v0": np.zeros(1, np.uint8)}, {"v1": "int64"}))
    places = builder.add("island", [x], "int64", {"island": number})
    executor = Executor(builder.program(places, x))

    for data in (np.array([0, 3, 5], np.uint8), np.array([0, 0, 1], np.uint8)):
        where, same = executor.run(None, {"v0": data})

        np.testing.assert_array_equal(where, [np.flatnonzero(data)])
        np.testing.assert_array_equal(same, data)


LIGHT = """
import sys, time, numpy as np
from onnxptq.runtime.execute import Executor
executor = Executor(sys.argv[1], 2)
x = np.ones((1, 24, 8, 8), np.float32)
start = time.perf_counter()
real, _ = executor.run(None, {"v0": x})
seconds = time.perf_counter() - start
heavy = {"onnx", "onnx_ir", "torch", "onnxruntime"} & set(sys.modules)
print(sorted(heavy), seconds, real.tobytes().hex())
"""


def test_a_saved_program_runs_without_onnx_and_starts_fast(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    program, path = network(rng), tmp_path / "small.program.npz"
    program.save(path)
    expected = Executor(program).run(None, {"v0": np.ones((1, CHANNELS, 8, 8), F)})[0]
    command = [sys.executable, "-c", LIGHT, str(path)]

    # The best of three: Numba has stored what this process compiled, but the machine may be busy.
    lines = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]

    heavy, seconds, codes = zip(*(line.rsplit(maxsplit=2) for line in lines), strict=True)
    assert set(heavy) == {"[]"}
    assert set(codes) == {expected.tobytes().hex()}
    assert min(map(float, seconds)) < 2


def test_the_front_page_names_them() -> None:
    assert onnxptq.Executor is Executor
    assert onnxptq.IntegerProgram is IntegerProgram

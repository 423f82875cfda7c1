"""Float islands: the same nodes as in the whole model, wherever they stand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxptq
from onnxptq import Executor
from onnxptq.errors import ProgramError
from onnxptq.graph import io
from onnxptq.program import IntegerProgram
from onnxptq.runtime.lower import lower
from onnxptq.runtime.verify import verify
from tests.cpus import needs_vnni
from tests.small_models import proto_from_text

FLOAT_BETWEEN = """net (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {
  a = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x, v)
  b = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (a, w)
  r = Relu (b)
  y = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (r, u)
}"""
WEIGHTS = dict.fromkeys(("u", "v", "w"), (16, 16, 3, 3))

CAPTURED = """net (float[2, 3] x, bool pick) => (float[2, 3] y) {
  a = Relu (x)
  m = MatMul (a, w)
  b = If (pick) <
    then_branch = yes () => (float[2, 3] t) { t = Mul (m, a) },
    else_branch = no () => (float[2, 3] e) { e = Identity (m) }
  >
  y = MatMul (b, v)
}"""


@pytest.fixture
def program(rng: np.random.Generator, tmp_path: Path) -> tuple[Path, IntegerProgram]:
    """A convolution in float between two on codes, in onnxruntime's own layout for floats."""
    images = {"x": rng.normal(size=(4, 16, 8, 8)).astype(np.float32)}
    proto = proto_from_text(FLOAT_BETWEEN, rng, dict.fromkeys("uvw", (16, 16, 3, 3)))
    second = proto.graph.node[1]
    second.name = "in_float"
    quantized = onnxptq.quantize(proto, images, float_patterns=("in_float",))
    quantized.save(tmp_path / "q.onnx")
    return tmp_path / "q.onnx", lower(tmp_path / "q.onnx")


@needs_vnni
def test_a_float_convolution_has_the_bits_of_the_whole_model(
    program: tuple[Path, IntegerProgram],
) -> None:
    path, lowered = program

    found = verify(path)

    assert found.first_difference is None
    (island,) = found.islands
    assert "Conv" in island.op_types
    assert 0.3 < island.share_of_macs < 0.36
    assert lowered.islands[0].block in (8, 16)


def test_an_island_of_another_cpu_is_refused(program: tuple[Path, IntegerProgram]) -> None:
    _, lowered = program
    block = lowered.islands[0].block
    foreign = replace(lowered.islands[0], block=24 - block)
    executor = Executor(replace(lowered, islands=(foreign,)))

    with pytest.raises(ProgramError, match=r"in the layout of another CPU .* lower the quantized"):
        executor.run(None, {"x": np.zeros((1, 16, 8, 8), np.float32)})


@needs_vnni
def test_bodies_read_codes_of_the_graph_around_them(rng: np.random.Generator) -> None:
    proto = proto_from_text(CAPTURED, rng, {"w": (3, 3), "v": (3, 3)})
    onnx.checker.check_model(proto)
    feeds = [
        {"x": rng.normal(size=(2, 3)).astype(np.float32), "pick": np.array(pick)}
        for pick in (True, False)
    ]
    quantized = onnxptq.quantize(proto, feeds)

    found = verify(io.from_proto(onnx.load_from_string(io.to_bytes(quantized.model)), "q"), feeds)

    assert found.first_difference is None
    assert [island.op_types for island in found.islands if "If" in island.op_types]

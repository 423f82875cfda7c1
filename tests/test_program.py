"""Integer programs as files and as text."""

import functools
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxptq.errors import ProgramError
from onnxptq.program import IntegerProgram
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.lower import lower
from tests.cpus import needs_vnni
from tests.networks import Activation, Branches, Conv, Excite, Net, Pool, Residual
from tests.odd_graphs import Format, Odd
from tests.random_networks import quantized

GOLDEN = Path(__file__).parent / "programs" / "golden"

NETS = {
    "conv_relu_gemm": Net(blocks=(Conv(8), Pool(), Conv(4, strides=(2, 1))), classes=5),
    "residual_concat": Net(
        blocks=(Conv(6), Residual(), Branches(3, ("Relu", "none"))), head="pooled", free_batch=True
    ),
    "depthwise_se_w4a4": Net(
        blocks=(Conv(16), Conv(16, groups="each", then="Relu6"), Excite(4)),
        bits="w4a4",
        keep_first_last=True,
    ),
    "tables_w2": Net(
        blocks=(Conv(8, then="HardSwish"), Activation("Tanh"), Conv(8, then="Sigmoid")),
        bits="w2a8",
        head="relu",
    ),
}
QOPERATOR = Odd(
    op="conv",
    qdq=False,
    signed=True,
    x=Format(3, 0.25),
    other=Format(2),
    y=Format(31, 0.0),
    channels=17,
)
FOREIGN = """
import sys
import numpy as np
from onnxptq import Executor
executor = Executor(sys.argv[1])
found = executor.run(None, dict(np.load(sys.argv[2])))
for name in ("onnx", "onnx_ir", "onnxruntime", "torch"):
    assert name not in sys.modules, name
np.savez(sys.argv[3], *found)
"""


@functools.cache
def program(name: str) -> IntegerProgram:
    return lower(QOPERATOR.model() if name == "qoperator_int8" else quantized(NETS[name]))


NAMES = (*NETS, "qoperator_int8")


def feeds(name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    port = program(name).inputs[0]
    shape = [side if isinstance(side, int) else 3 for side in port.shape or ()]
    if name == "qoperator_int8":
        return {port.name: rng.integers(-128, 127, shape, endpoint=True).astype(np.int8)}
    return {port.name: rng.normal(size=shape).astype(np.float32)}


@needs_vnni
@pytest.mark.parametrize("name", NAMES)
def test_programs_print_as_before(name: str, golden: Callable[[str, Path], None]):
    golden(program(name).to_text(), GOLDEN / f"{name}.txt")


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_program_gives_the_same_bytes_and_outputs(
    name: str, rng: np.random.Generator, tmp_path: Path
):
    path = tmp_path / "net.npz"
    program(name).save(path)

    loaded = IntegerProgram.load(path)

    assert loaded.to_bytes() == path.read_bytes() == program(name).to_bytes()
    assert loaded.to_text() == program(name).to_text()
    inputs = feeds(name, rng)
    for found, expected in zip(
        Executor(loaded).run(None, inputs), Executor(program(name)).run(None, inputs), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_same_model_gives_the_same_bytes():
    name = "residual_concat"

    assert lower(quantized(NETS[name])).to_bytes() == program(name).to_bytes()


def test_another_weight_gives_another_text():
    before = program("conv_relu_gemm")
    place = next(at for at, instr in enumerate(before.instrs) if instr.op == "conv")
    conv = before.instrs[place]
    weight = conv.arrays["weight"].copy()
    weight.flat[0] -= np.sign(weight.flat[0]) or 1
    instrs = list(before.instrs)
    instrs[place] = replace(conv, arrays={**conv.arrays, "weight": weight})

    after = replace(before, instrs=tuple(instrs))

    lines = zip(before.to_text().splitlines(), after.to_text().splitlines(), strict=True)
    assert [a != b for a, b in lines].count(True) == 1


def test_a_program_runs_where_nothing_else_is_loaded(rng: np.random.Generator, tmp_path: Path):
    name, inputs = "depthwise_se_w4a4", feeds("depthwise_se_w4a4", rng)
    paths = [tmp_path / "net.npz", tmp_path / "in.npz", tmp_path / "out.npz"]
    program(name).save(paths[0])
    np.savez(paths[1], allow_pickle=False, **inputs)

    subprocess.run([sys.executable, "-c", FOREIGN, *map(str, paths)], check=True, timeout=300)

    with np.load(paths[2]) as found:
        for position, expected in enumerate(Executor(program(name)).run(None, inputs)):
            np.testing.assert_array_equal(found[f"arr_{position}"], expected)


def damaged(change: Callable[[dict[str, np.ndarray]], None]) -> bytes:
    """A program's file with something changed inside."""
    with np.load(io.BytesIO(program("conv_relu_gemm").to_bytes())) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def without_an_array(arrays: dict[str, np.ndarray]) -> None:
    del arrays["a0"]


def of_the_future(arrays: dict[str, np.ndarray]) -> None:
    header = json.loads(arrays["header"].tobytes())
    header["format"] = "onnxptq-program-9"
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)


def of_another_kind(arrays: dict[str, np.ndarray]) -> None:
    header = {"format": "onnxptq-program-1", "program": {"tuple": []}}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_an_array, r"not a program \(KeyError: 'a0'\)"),
        (of_the_future, "of format 'onnxptq-program-9', expected 'onnxptq-program-1'"),
        (of_another_kind, "not a program; give a file that IntegerProgram.save wrote"),
    ],
)
def test_a_damaged_file_is_refused(
    change: Callable[[dict[str, np.ndarray]], None], message: str, tmp_path: Path
):
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged(change))

    with pytest.raises(ProgramError, match=f"damaged.npz: .*{message}"):
        IntegerProgram.load(path)


@pytest.mark.parametrize("cut", [0, 10, 1000, -1000, -1])
def test_a_file_that_was_cut_off_is_refused(cut: int, tmp_path: Path):
    path = tmp_path / "cut.npz"
    path.write_bytes(program("conv_relu_gemm").to_bytes()[:cut])

    with pytest.raises(ProgramError, match=r"cut\.npz: not a program"):
        IntegerProgram.load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x93NUMPY", b"\x08\x0a"])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "other.npz"
    path.write_bytes(content)

    with pytest.raises(ProgramError, match=r"other\.npz: not a program"):
        IntegerProgram.load(path)


def test_a_flipped_bit_is_refused(tmp_path: Path):
    data = bytearray(program("conv_relu_gemm").to_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path = tmp_path / "flipped.npz"
    path.write_bytes(data)

    with pytest.raises(ProgramError, match="not a program"):
        IntegerProgram.load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ProgramError, match=r"cannot read .*none\.npz: No such file"):
        IntegerProgram.load(tmp_path / "none.npz")

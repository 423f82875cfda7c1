import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxptq.errors import ModelError
from onnxptq.graph import io, text


def small_model(scale: float = 1.0) -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(
        np.arange(3000, dtype=np.float32).reshape(3, 1000) * scale, "w"
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external_model(folder: Path, location: str = "w.data") -> Path:
    """A model whose weight is the file `location`, which is written inside of `folder`."""
    proto = small_model()
    tensor = proto.graph.initializer[0]
    (folder / "w.data").write_bytes(tensor.raw_data)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models above 1 kB are saved with external data, as those above 1.9 GB are."""
    monkeypatch.setattr(io, "INLINE_LIMIT_BYTES", 1000)


def test_a_saved_model_loads_as_the_same_model(tmp_path: Path) -> None:
    model = io.from_proto(small_model(), "test")

    io.save(model, tmp_path / "m.onnx")

    loaded = io.load(tmp_path / "m.onnx")
    assert io.to_bytes(loaded) == io.to_bytes(model)
    assert io.digest(loaded) == io.digest(model)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        io.save(io.from_proto(small_model(), "test"), tmp_path / name)

    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_numbers_stored_one_by_one_become_raw_data() -> None:
    proto = small_model()
    tensor = proto.graph.initializer[0]
    raw = tensor.raw_data
    tensor.float_data.extend(np.frombuffer(raw, np.float32).tolist())
    tensor.ClearField("raw_data")

    model = io.from_proto(proto, "test")

    assert onnx.ModelProto.FromString(io.to_bytes(model)).graph.initializer[0].raw_data == raw
    assert io.digest(model) == io.digest(io.from_proto(small_model(), "test"))


def test_the_digest_changes_with_a_weight_a_name_and_an_attribute() -> None:
    model = io.from_proto(small_model(), "test")
    other_weight = io.from_proto(small_model(scale=2.0), "test")
    renamed, changed = model.clone(), model.clone()
    renamed.graph[0].name = "other"
    changed.graph[0].attributes.add(ir.AttrInt64("axis", 1))

    digests = {io.digest(m) for m in (model, other_weight, renamed, changed)}

    assert len(digests) == 4


def test_the_digest_ignores_producer_and_metadata() -> None:
    model = io.from_proto(small_model(), "test")
    other = model.clone()
    other.producer_name = "someone"
    other.metadata_props["note"] = "text"

    assert io.digest(other) == io.digest(model)


def test_external_data_is_read(tmp_path: Path) -> None:
    model = io.load(external_model(tmp_path))

    assert io.digest(model) == io.digest(io.from_proto(small_model(), "test"))


@pytest.mark.usefixtures("_small_limit")
def test_large_models_are_saved_as_a_pair_that_loads(tmp_path: Path) -> None:
    model = io.from_proto(small_model(), "test")

    io.save(model, tmp_path / "m.onnx")

    (data,) = tmp_path.glob("m.*.data")
    assert data.stat().st_size == 12_000
    assert io.digest(io.load(tmp_path / "m.onnx")) == io.digest(model)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("_small_limit")
def test_replacing_a_pair_removes_the_data_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    io.save(io.from_proto(small_model(), "test"), path)
    other = io.from_proto(small_model(scale=2.0), "test")

    io.save(other, path)

    assert len(list(tmp_path.glob("*.data"))) == 1
    assert io.digest(io.load(path)) == io.digest(other)


@pytest.mark.usefixtures("_small_limit")
def test_a_loaded_pair_can_be_saved_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    io.save(io.from_proto(small_model(), "test"), path)
    model = io.load(path)
    digest = io.digest(model)

    io.save(model, path)

    assert io.digest(io.load(path)) == digest


@pytest.mark.usefixtures("_small_limit")
def test_a_pair_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    old = io.from_proto(small_model(), "test")
    io.save(old, path)
    replace = Path.replace

    def fail_on_model(self: Path, target: Path) -> Path:
        if target.suffix == ".onnx":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_model)

    with pytest.raises(ModelError, match="unchanged"):
        io.save(io.from_proto(small_model(scale=2.0), "test"), path)

    assert io.digest(io.load(path)) == io.digest(old)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 10, 100, 6000, 12_000])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small_model().SerializeToString()[:cut])

    with pytest.raises(ModelError, match=r"m\.onnx is truncated or not an ONNX model"):
        io.load(path)


@pytest.mark.parametrize(
    "content", [b"hello", b"\x00" * 64, b"PK\x03\x04zip", b"\x08\x08", b"# text\n" * 50]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)

    with pytest.raises(ModelError, match="truncated or not an ONNX model"):
        io.load(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()

    with pytest.raises(ModelError, match="is empty: expected an ONNX model"):
        io.load(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder\. Give the \.onnx file in it"):
        io.load(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*m\.onnx: No such file"):
        io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("version", [0, 99])
def test_an_opset_that_is_not_read_is_refused(version: int) -> None:
    proto = small_model()
    proto.opset_import[0].version = version

    with pytest.raises(ModelError, match=f"has opset {version}: onnxptq reads opset 1 to"):
        io.from_proto(proto, "m.onnx")


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "w.data").unlink()

    with pytest.raises(ModelError, match=r"tensor 'w' .* does not exist\. Copy that file"):
        io.load(path)


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "w.data").write_bytes(b"short")

    with pytest.raises(ModelError, match=r"needs bytes 0 to 12000 of .* which has 5 bytes"):
        io.load(path)


@pytest.mark.parametrize("location", ["../w.data", "sub/../../w.data", "/etc/hostname", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.data").write_bytes(b"\0" * 12_000)
    path = external_model(folder, location)

    with pytest.raises(ModelError, match="is outside the model's folder"):
        io.load(path)


def test_external_data_behind_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external_model(folder)
    (folder / "w.data").rename(tmp_path / "secret")
    (folder / "w.data").symlink_to(tmp_path / "secret")

    with pytest.raises(ModelError, match="is outside the model's folder"):
        io.load(path)


def test_a_model_in_memory_cannot_have_external_data(tmp_path: Path) -> None:
    proto = onnx.load(external_model(tmp_path), load_external_data=False)

    with pytest.raises(ModelError, match="external data without a folder"):
        io.from_proto(proto, "model")


def test_a_tensor_with_too_few_numbers_is_refused() -> None:
    proto = small_model()
    proto.graph.initializer[0].raw_data = b"\0" * 8

    with pytest.raises(ModelError, match=r"tensor 'w' .* does not hold as many numbers"):
        io.from_proto(proto, "m.onnx")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ModelError, match=r"No space left on device.*unchanged.*Free some space"):
        io.save(io.from_proto(small_model(), "test"), path)

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_real_write_limit_leaves_the_old_file(tmp_path: Path) -> None:
    """The kernel itself refuses the write, as on a full disk."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    program = """
import resource, signal, sys
from pathlib import Path
from onnxptq.errors import ModelError
from onnxptq.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), b"x" * 100_000)
except ModelError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )

    assert "File too large. The file that was there is unchanged. Free some space" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.write_atomically(path, interrupted)

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_keeps_the_mode_and_follows_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)

    io.write_atomically(link, b"new")

    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_directly() -> None:
    io.write_atomically(Path(os.devnull), b"gone")

    assert Path(os.devnull).is_char_device()


def test_an_output_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"folder .*absent does not exist\. Make it with: mkdir -p"
    ):
        io.writable(tmp_path / "absent" / "m.onnx")


def test_an_output_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ModelError, match="is a file, not a folder"):
        io.writable(tmp_path / "file" / "m.onnx")


def test_an_output_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it is a folder"):
        io.writable(tmp_path)


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the kernel, because permissions do not stop root."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)

    with pytest.raises(ModelError, match=r"is not writable \(Permission denied\)"):
        io.writable(tmp_path / "m.onnx")


def test_the_text_form_round_trips() -> None:
    source = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"""

    model = text.from_text(source)

    assert io.digest(text.from_text(text.to_text(model))) == io.digest(model)


def test_bad_text_is_refused() -> None:
    with pytest.raises(ModelError, match="not ONNX text"):
        text.from_text("g (float x) =>")


def test_where_names_node_operator_and_opset() -> None:
    model = io.from_proto(small_model(), "test")

    assert text.where(model.graph[0]) == "node 'product' (MatMul, opset 17)"

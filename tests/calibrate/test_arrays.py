"""Arrays ready to feed and pixels, from memory, .npy and .npz; damaged files."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxptq.calibrate.data import Data, PortInfo, open_data
from onnxptq.errors import CalibrationError

FLOAT = np.dtype(np.float32)
IMAGE = (PortInfo("input", FLOAT, ("N", 3, 8, 8)),)
VECTOR = (PortInfo("v", FLOAT, ("N", 4)),)
PLAIN = "mean=0,layout=NCHW"


def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def pixels(n: int = 5, side: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, 3), np.uint8)


def all_of(data: Data, name: str, batch_size: int = 2) -> np.ndarray[Any, Any]:
    return np.concatenate([batch[name] for batch in data.batches(batch_size)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_named_arrays_yields_them_in_batches(tmp_path: Path, save: Any) -> None:
    v = floats(5, 4)
    save(tmp_path / "d.npz", v=v)

    data = open_data(tmp_path / "d.npz", VECTOR)

    assert [batch["v"].shape[0] for batch in data.batches(2)] == [2, 2, 1]
    np.testing.assert_array_equal(all_of(data, "v"), v)
    np.testing.assert_array_equal(all_of(data, "v", 3), v)
    assert len(data) == 5
    assert data.labels is None


def test_batches_can_start_in_the_middle(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", v=floats(5, 4))

    data = open_data(tmp_path / "d.npz", VECTOR)

    assert next(data.batches(2, start=3))["v"][0, 0] == 12


def test_samples_takes_the_first_of_an_npz() -> None:
    data = open_data({"v": floats(5, 4)}, VECTOR, samples=3)

    np.testing.assert_array_equal(all_of(data, "v"), floats(5, 4)[:3])


def test_npy_feeds_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", floats(3, 4))

    data = open_data(tmp_path / "d.npy", VECTOR)

    np.testing.assert_array_equal(all_of(data, "v"), floats(3, 4))


def test_array_in_python_feeds_the_only_input() -> None:
    np.testing.assert_array_equal(all_of(open_data(floats(3, 4), VECTOR), "v"), floats(3, 4))


def test_fixed_batch_of_the_model_sets_the_batch_size() -> None:
    ports = (PortInfo("v", FLOAT, (2, 4)),)

    data = open_data({"v": floats(5, 4)}, ports)

    assert [batch["v"].shape for batch in data.batches(8)] == [(2, 4), (2, 4)]
    assert len(data) == 4


def test_extra_front_axis_holds_complete_inputs() -> None:
    ports = (PortInfo("v", FLOAT, (1, 4)), PortInfo("state", FLOAT, (2, 1, 3)))
    arrays = {"v": floats(5, 1, 4), "state": floats(5, 2, 1, 3)}

    batches = list(open_data(arrays, ports).batches(4))

    assert len(batches) == 5
    assert batches[0]["state"].shape == (2, 1, 3)


def test_scalar_inputs_take_one_number_a_sample() -> None:
    ports = (PortInfo("v", FLOAT, (1, 4)), PortInfo("rate", np.dtype(np.int64), ()))
    arrays = {"v": floats(5, 1, 4), "rate": np.full(5, 16000)}

    batch = next(open_data(arrays, ports).batches(4))

    assert batch["rate"].shape == ()


def test_inputs_whose_first_axes_differ_ask_for_complete_inputs() -> None:
    ports = (PortInfo("v", FLOAT, (1, 4)), PortInfo("state", FLOAT, (2, 3)))

    with pytest.raises(CalibrationError, match=r"first axes .* differ \(v 1, state 2\)"):
        open_data({"v": floats(5, 4), "state": floats(5, 3)}, ports)


def test_double_becomes_float() -> None:
    batch = next(open_data({"v": floats(3, 4).astype(np.float64)}, VECTOR).batches(1))

    assert batch["v"].dtype == np.float32


def test_labels_come_along_and_are_cut_to_samples() -> None:
    data = open_data({"v": floats(5, 4), "y": np.arange(5, dtype=np.uint8)}, VECTOR, samples=3)

    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": floats(5, 4)}, r"no array 'v', which the model takes as input; found w"),
        ({"v": floats(5, 3)}, r"'v' has shape \[5, 3\], .* takes \[N, 4\]"),
        ({"v": floats(5, 4, 1, 1)}, r"'v' has shape \[5, 4, 1, 1\]"),
        ({"v": floats(5, 4).astype(np.int64)}, r"'v' is int64, the model's input takes float32"),
        ({"v": floats(5, 4).astype(np.uint8)}, r"'v' is uint8, .*--preprocess"),
        ({"v": np.float32(1)}, r"'v' is one number; its first axis must be samples"),
        ({"v": floats(0, 4)}, r"0 samples"),
        ({"v": floats(5, 4), "y": np.zeros(4, int)}, r"labels 'y' have shape \[4\]"),
        ({"v": floats(5, 4), "y": np.zeros(5)}, r"labels are float64"),
    ],
)
def test_arrays_that_do_not_fit_say_what_was_found_and_expected(
    arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_data(arrays, VECTOR)


def test_different_numbers_of_samples_are_refused() -> None:
    ports = (*VECTOR, PortInfo("u", FLOAT, ("N", 4)))

    with pytest.raises(CalibrationError, match=r"different numbers of samples \(v 5, u 4\)"):
        open_data({"v": floats(5, 4), "u": floats(4, 4)}, ports)


@pytest.mark.parametrize(
    ("bad", "count"), [(np.nan, "1 NaN and 0 inf"), (np.inf, "0 NaN and 1 inf")]
)
def test_nan_and_inf_name_array_and_samples(tmp_path: Path, bad: float, count: str) -> None:
    v = floats(5, 4)
    v[3, 1] = bad
    np.savez(tmp_path / "d.npz", v=v)

    with pytest.raises(CalibrationError, match=rf"d.npz, samples 2..3: array 'v' holds {count}"):
        list(open_data(tmp_path / "d.npz", VECTOR).batches(2))


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nothing.npz: no such file or folder"):
        open_data(tmp_path / "nothing.npz", VECTOR)


def test_text_file_named_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_text("hello")

    with pytest.raises(CalibrationError, match=r"d.npz: not an .npz file"):
        open_data(tmp_path / "d.npz", VECTOR)


def test_unknown_suffix_lists_the_forms(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1,2")

    with pytest.raises(CalibrationError, match=r"d.csv: unknown kind of data; expected an .npz"):
        open_data(tmp_path / "d.csv", VECTOR)


def test_npy_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", floats(3, 4))

    with pytest.raises(CalibrationError, match=r"one array, the model has 2 inputs \(v, v\)"):
        open_data(tmp_path / "d.npy", VECTOR * 2)


@pytest.mark.parametrize("cut", [20, 90, 130])
def test_truncated_npy_says_so(tmp_path: Path, cut: int) -> None:
    np.save(tmp_path / "whole.npy", floats(30, 4))
    (tmp_path / "d.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:cut])

    with pytest.raises(CalibrationError, match=r"d.npy: (ends early|not an array)"):
        list(open_data(tmp_path / "d.npy", VECTOR).batches(2))


def test_damaged_zip_stream_says_so(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, v=np.random.default_rng(0).random((500, 4), np.float32))
    damaged = bytearray(path.read_bytes())
    damaged[2000:2100] = bytes(100)
    path.write_bytes(damaged)

    with pytest.raises(CalibrationError, match=r"array 'v'.*(damaged|ends early)"):
        list(open_data(path, VECTOR).batches(64))


def test_fortran_order_and_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", v=np.asfortranarray(floats(5, 4)))
    np.savez(tmp_path / "o.npz", v=np.array([1, "a", None], object))

    with pytest.raises(CalibrationError, match=r"Fortran order.*ascontiguousarray"):
        open_data(tmp_path / "f.npz", VECTOR)
    with pytest.raises(CalibrationError, match="holds Python objects"):
        open_data(tmp_path / "o.npz", VECTOR)


def test_npz_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("v.npy", b"no array")

    with pytest.raises(CalibrationError, match=r"array 'v': not an array in .npy format"):
        open_data(tmp_path / "d.npz", VECTOR)


def test_big_endian_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", v=floats(5, 4).astype(">f4"))

    np.testing.assert_array_equal(all_of(open_data(tmp_path / "d.npz", VECTOR), "v"), floats(5, 4))


def test_npz_pixels_are_preprocessed(tmp_path: Path) -> None:
    x = pixels()
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(5, dtype=np.uint8))

    data = open_data(tmp_path / "d.npz", IMAGE, "mean=127,std=128,layout=NCHW")

    expected = ((x.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(all_of(data, "input"), expected)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


def test_grey_pixels_without_channel_axis_are_taken() -> None:
    ports = (PortInfo("x", FLOAT, ("N", 1, 8, 8)),)

    data = open_data({"x": pixels()[..., 0]}, ports, "scale=1/16,layout=NCHW")

    assert next(data.batches(2))["x"].shape == (2, 1, 8, 8)


def test_images_without_preprocess_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"images need a preprocessing: give --preprocess"):
        open_data({"x": pixels()}, IMAGE)


def test_pixels_of_the_wrong_size_name_the_preprocess() -> None:
    data = open_data({"x": pixels(side=9)}, IMAGE, PLAIN)

    with pytest.raises(CalibrationError, match=r"gives \[2, 3, 9, 9\], .* takes \[N, 3, 8, 8\]"):
        next(data.batches(2))


def test_uint8_model_takes_uint8_as_it_is() -> None:
    ports = (PortInfo("x", np.dtype(np.uint8), ("N", 8, 8, 3)),)

    np.testing.assert_array_equal(all_of(open_data({"x": pixels()}, ports), "x"), pixels())

"""Iterables of dicts, data readers, ONNX test folders."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxptq.calibrate.data import PortInfo, open_data
from onnxptq.errors import CalibrationError

FLOAT = np.dtype(np.float32)
VECTOR = (PortInfo("v", FLOAT, ("N", 4)),)


def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


class Reader:
    """What onnxruntime users write."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds, self._left = feeds, iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


class RewindingReader(Reader):
    def rewind(self) -> None:
        self._left = iter(self._feeds)


FEEDS = [{"v": floats(2, 4) + i} for i in range(3)]


def test_list_of_dicts_can_be_read_many_times() -> None:
    data = open_data(FEEDS, VECTOR)

    assert [float(batch["v"][0, 0]) for batch in data.batches(1)] == [0, 1, 2]
    assert len(list(data.batches(1, start=1))) == 2
    assert len(data) == 3
    assert data.digest() == open_data(list(FEEDS), VECTOR).digest() != ""


@pytest.mark.parametrize("source", [lambda: iter(FEEDS), lambda: Reader(FEEDS)])
def test_iterator_is_read_once_and_then_says_so(source: Any) -> None:
    data = open_data(source(), VECTOR)

    assert len(list(data.batches(1))) == 3
    assert data.digest() == ""
    with pytest.raises(CalibrationError, match="read already and cannot be rewound"):
        list(data.batches(1))
    with pytest.raises(CalibrationError, match="take samples before the pass"):
        data.take(1)


def test_length_of_an_iterator_is_not_known() -> None:
    data = open_data(iter(FEEDS), VECTOR)

    assert data.count is None
    with pytest.raises(CalibrationError, match="does not know its length"):
        len(data)


def test_take_from_an_iterator_leaves_its_pass_whole() -> None:
    data = open_data(iter(FEEDS), VECTOR)

    taken = data.take(2)

    assert len(list(data.batches(1))) == 3
    assert len(taken) == len(list(taken.batches(1))) == len(list(taken.batches(1))) == 2


def test_reader_with_rewind_can_be_read_again() -> None:
    data = open_data(RewindingReader(FEEDS), VECTOR)

    assert len(data.take(2)) == 2
    assert len(list(data.batches(1))) == 3
    assert len(list(data.batches(1))) == 3


def test_samples_limits_feeds() -> None:
    assert len(list(open_data(iter(FEEDS), VECTOR, samples=2).batches(1))) == 2


def test_feed_of_the_wrong_shape_names_its_place() -> None:
    feeds = [*FEEDS, {"v": floats(2, 5)}]

    with pytest.raises(CalibrationError, match=r"feed 3 of the data: array 'v' has shape \[2, 5\]"):
        list(open_data(feeds, VECTOR).batches(1))


def test_feed_that_is_an_array_goes_to_the_only_input() -> None:
    assert next(open_data([floats(2, 4)], VECTOR).batches(1))["v"].shape == (2, 4)


def test_feed_that_is_no_dict_is_refused_for_two_inputs() -> None:
    with pytest.raises(CalibrationError, match="feed 0 of the data: is a ndarray, expected a dict"):
        list(open_data([floats(2, 4)], VECTOR * 2).batches(1))


def test_something_else_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"data is a int, expected an .npz"):
        open_data(3, VECTOR)


def test_data_passes_through() -> None:
    data = open_data(FEEDS, VECTOR)

    assert open_data(data, VECTOR) is data


@pytest.mark.parametrize("samples", [0, -1])
def test_less_than_one_sample_is_refused(samples: int) -> None:
    with pytest.raises(CalibrationError, match=f"samples is {samples}"):
        open_data(FEEDS, VECTOR, samples=samples)


def write_tests(folder: Path, count: int, name: str = "v") -> Path:
    for i in range(count):
        case = folder / f"test_data_set_{i}"
        case.mkdir(parents=True)
        tensor = numpy_helper.from_array(floats(2, 4) + i, name)
        (case / "input_0.pb").write_bytes(tensor.SerializeToString())
    return folder


@pytest.mark.parametrize("name", ["v", ""])
def test_onnx_test_folders_are_feeds_by_name_or_position(tmp_path: Path, name: str) -> None:
    data = open_data(write_tests(tmp_path, 11, name), VECTOR)

    assert [float(batch["v"][0, 0]) for batch in data.batches(4)] == list(range(11))
    assert len(data) == 11


def test_one_onnx_test_folder_is_one_feed(tmp_path: Path) -> None:
    assert len(open_data(write_tests(tmp_path, 2) / "test_data_set_1", VECTOR)) == 1


def test_damaged_test_tensor_is_named(tmp_path: Path) -> None:
    folder = write_tests(tmp_path, 1)
    (folder / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff\xff")

    with pytest.raises(CalibrationError, match=r"input_0.pb: not an ONNX tensor"):
        list(open_data(folder, VECTOR).batches(1))


def test_test_tensor_without_data_is_named(tmp_path: Path) -> None:
    folder = write_tests(tmp_path, 1)
    empty = onnx.TensorProto(name="v", data_type=onnx.TensorProto.FLOAT, dims=[2, 4])
    (folder / "test_data_set_0" / "input_0.pb").write_bytes(empty.SerializeToString())

    with pytest.raises(CalibrationError, match=r"input_0.pb: not an ONNX tensor"):
        list(open_data(folder, VECTOR).batches(1))

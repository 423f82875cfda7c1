"""Preprocess: text, pixels, and the zoo's names."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxptq.calibrate.preprocess import Preprocess, load_preprocess
from onnxptq.errors import CalibrationError, SpecError

CIFAR = "scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225,layout=NCHW"


def pixels(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    "text",
    [
        "resize=256,crop=224,mean=127,std=128,layout=NCHW",
        CIFAR,
        "resize=32x48,color=BGR,mean=103.939/116.779/123.68,layout=NHWC",
        "crop=8x9,color=GRAY,layout=NCHW",
        "layout=NCHW",
    ],
)
def test_canonical_text_reads_back_the_same(text: str) -> None:
    assert Preprocess.parse(text).text == text


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4),
    st.fractions(min_value="1/1000", max_value=300),
)
def test_any_numbers_survive_the_text(mean: list[float], scale: object) -> None:
    process = Preprocess.parse(f"scale={scale},mean={'/'.join(map(repr, mean))}")

    assert Preprocess.parse(process.text) == process


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("meen=3", r"unknown preprocess key 'meen'.*did you mean mean\?"),
        ("mean", r"unknown preprocess key 'mean'"),
        ("mean=a", "'a' is no number"),
        ("mean=nan", "'nan' is no number"),
        ("std=0", "'0' is no number other than 0"),
        ("resize=0", "'0' is no side or HxW"),
        ("crop=1x2x3", "'1x2x3' is no side or HxW"),
        ("scale=1/0", "'1/0' is no number or fraction"),
        ("layout=CHW", "'CHW' is no NCHW or NHWC"),
    ],
)
def test_bad_text_names_key_and_value(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Preprocess.parse(text)


def test_cifar_formula_in_float32() -> None:
    images = pixels(2, 4, 5, 3)

    found = Preprocess.parse(CIFAR).apply(images, "test")

    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    expected = (images.astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(found, expected.transpose(0, 3, 1, 2))


def test_nhwc_keeps_the_channels_last_and_bgr_turns_them() -> None:
    images = pixels(2, 4, 5, 3)

    found = Preprocess.parse("color=BGR,layout=NHWC").apply(images, "test")

    np.testing.assert_array_equal(found, images[..., ::-1].astype(np.float32))


@pytest.mark.parametrize(("side", "crop", "first"), [(8, 4, 2), (9, 4, 2), (7, 4, 2), (5, 5, 0)])
def test_crop_is_from_the_centre(side: int, crop: int, first: int) -> None:
    images = np.broadcast_to(
        np.arange(side, dtype=np.uint8)[None, :, None, None], (1, side, side, 1)
    )

    found = Preprocess.parse(f"crop={crop}").apply(np.ascontiguousarray(images), "test")

    assert found[0, 0, :, 0].tolist() == list(range(first, first + crop))


@pytest.mark.parametrize(("size", "expected"), [((20, 10), (16, 8)), ((10, 25), (8, 20))])
def test_resize_sets_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)

    assert Preprocess.parse("resize=8").resize_picture(picture).size == expected


def test_resize_to_height_and_width_in_this_order() -> None:
    assert Preprocess.parse("resize=6x9").resize_picture(Image.new("RGB", (20, 10))).size == (9, 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_resized_like_pictures(channels: int) -> None:
    images = pixels(2, 12, 12, channels)

    found = Preprocess.parse("resize=6,layout=NHWC").apply(images, "test")

    picture = Image.fromarray(images[1] if channels == 3 else images[1, ..., 0])
    expected = np.asarray(picture.resize((6, 6), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found[1], expected.reshape(6, 6, channels).astype(np.float32))


def test_image_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"cat.jpg: image is 4x5, smaller than the crop 8x8"):
        Preprocess.parse("crop=8").apply(pixels(1, 4, 5, 3), "cat.jpg")


def test_means_for_other_channels_are_refused() -> None:
    with pytest.raises(SpecError, match=r"mean has 2 values, the images have 3 channels"):
        Preprocess.parse("mean=1/2").apply(pixels(1, 4, 5, 3), "test")


def test_zoo_names_stand_for_their_text(tmp_path: Path) -> None:
    (tmp_path / "zoo.toml").write_text(f'[resnet20_cifar]\npreprocess = "{CIFAR}"\n[other]\n')

    assert load_preprocess("resnet20_cifar", tmp_path / "zoo.toml").text == CIFAR
    with pytest.raises(SpecError, match=r"unknown preprocess name 'resnet'.*Or write it out"):
        load_preprocess("resnet", tmp_path / "zoo.toml")
    with pytest.raises(SpecError, match=r"\[other\] has no preprocess"):
        load_preprocess("other", tmp_path / "zoo.toml")


def test_name_without_any_zoo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown preprocess name 'resnet'.*no zoo.toml"):
        load_preprocess("resnet", tmp_path / "zoo.toml")

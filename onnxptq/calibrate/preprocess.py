"""Preprocess: from an image to a model's input, as text that models and command lines carry."""

import tomllib
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxptq.errors import CalibrationError, SpecError
from onnxptq.quant import F32
from onnxptq.spec import unknown

U8 = npt.NDArray[np.uint8]
Size = tuple[int, ...]
EXAMPLE = "resize=256,crop=224,mean=127,std=128,layout=NCHW"


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Resize, centre crop, then (pixel * scale - mean) / std in float32.

    Attributes:
        resize: (side,) makes the shorter side this long, (H, W) exactly this; None leaves the size.
            Bicubic with antialiasing (Pillow).
        crop: (side,) or (H, W) cut from the centre; None for no crop.
        color: Order of the channels that the model wants.
        scale: Factor on pixels 0..255, exact: 1/255 divides by 255.
        mean: Subtracted, one value or one a channel, in units after `scale`.
        std: Divided by, one value or one a channel.
        layout: "NCHW" or "NHWC".
    """

    resize: Size | None = None
    crop: Size | None = None
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    scale: Fraction = Fraction(1)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @classmethod
    def parse(cls, text: str) -> "Preprocess":
        """Read "resize=256,crop=224,mean=127,std=128,layout=NCHW"; per-channel values as 1/2/3.

        Raises:
            SpecError: An unknown key or a value that does not fit.
        """
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in _READ or not equals:
                raise unknown("preprocess key", key, _READ)
            try:
                values[key] = _READ[key](value)
            except (ValueError, ZeroDivisionError):
                raise SpecError(
                    f"preprocess {item!r}: {value!r} is no {_KIND[key]}, as in {EXAMPLE!r}"
                ) from None
        return cls(**values)

    @property
    def text(self) -> str:
        """The canonical text: keys in one order, defaults left out; `parse` gives it back."""
        parts = [
            f"resize={_size_text(self.resize)}" if self.resize else "",
            f"crop={_size_text(self.crop)}" if self.crop else "",
            f"color={self.color}" if self.color != "RGB" else "",
            f"scale={self.scale}" if self.scale != 1 else "",
            f"mean={_floats_text(self.mean)}" if self.mean != (0.0,) else "",
            f"std={_floats_text(self.std)}" if self.std != (1.0,) else "",
            f"layout={self.layout}",
        ]
        return ",".join(filter(None, parts))

    def table(self, channels: int) -> F32:
        """What each of the 256 pixel values becomes, [C, 256].

        Raises:
            SpecError: `mean` or `std` has another number of values than there are channels.
        """
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise SpecError(
                    f"preprocess {key} has {len(values)} values, "
                    f"the images have {channels} channels"
                )
        pixels = np.arange(256, dtype=np.float32) * np.float32(self.scale.numerator)
        scaled = pixels / np.float32(self.scale.denominator)
        mean = np.asarray(self.mean, np.float32)[:, None]
        std = np.asarray(self.std, np.float32)[:, None]
        return np.ascontiguousarray(np.broadcast_to((scaled - mean) / std, (channels, 256)))

    def apply(self, images: U8, where: str) -> F32:
        """Model input from images.

        Args:
            images: RGB (or grey) pixels, [N, H, W, C].
            where: File or array, for error messages.

        Returns:
            [N, C, H, W] or [N, H, W, C], float32.

        Raises:
            CalibrationError: The images are smaller than the crop.
            SpecError: Per-channel values that do not fit the channels.
        """
        if self.resize is not None:
            images = np.stack([self._resized(image) for image in images])
        images = self._cropped(images, where)
        if self.color == "BGR":
            images = images[..., ::-1]
        table = self.table(images.shape[-1])
        planes = [table[c][images[..., c]] for c in range(images.shape[-1])]
        return np.stack(planes, axis=1 if self.layout == "NCHW" else -1)

    def _resized(self, image: U8) -> U8:
        grey = image.shape[-1] == 1
        picture = Image.fromarray(image[..., 0] if grey else image)
        resized = np.asarray(self.resize_picture(picture))
        return resized[..., None] if grey else resized

    def resize_picture(self, picture: Image.Image) -> Image.Image:
        """The picture at the size of `resize`; the longer side rounded down as in torchvision."""
        if self.resize is None:
            return picture
        if len(self.resize) == 2:
            height, width = self.resize
        else:
            short = min(picture.size)
            width, height = (side * self.resize[0] // short for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    def _cropped(self, images: U8, where: str) -> U8:
        if self.crop is None:
            return images
        height, width = self.crop if len(self.crop) == 2 else (self.crop[0], self.crop[0])
        have_height, have_width = images.shape[1:3]
        if have_height < height or have_width < width:
            raise CalibrationError(
                f"{where}: image is {have_height}x{have_width}, "
                f"smaller than the crop {height}x{width}; add resize= to --preprocess"
            )
        top, left = round((have_height - height) / 2), round((have_width - width) / 2)
        return images[:, top : top + height, left : left + width]


def load_preprocess(text: str, zoo: Path | None = None) -> Preprocess:
    """Preprocessing from its text, or from the name of a model in zoo.toml.

    Args:
        text: "resize=256,..." or a name.
        zoo: The zoo.toml to look in; None for the one that comes with the package.

    Raises:
        SpecError: Neither a text nor a name in zoo.toml.
    """
    if "=" in text or not text:
        return Preprocess.parse(text)
    table = _zoo(zoo)
    if text not in table:
        error = unknown("preprocess name", text, table or ["(none: no zoo.toml)"])
        stop = "" if str(error).endswith("?") else "."
        raise SpecError(f"{error}{stop} Or write it out, as {EXAMPLE!r}")
    entry = table[text].get("preprocess")
    if not isinstance(entry, str):
        raise SpecError(f'zoo.toml: [{text}] has no preprocess = "..."')
    return Preprocess.parse(entry)


def _zoo(path: Path | None) -> dict[str, Any]:
    source = path or resources.files("onnxptq.demo_data") / "zoo.toml"
    if not source.is_file():
        return {}
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{source}: not a TOML file ({error})") from error


def _size(text: str) -> Size:
    size = tuple(int(side) for side in text.lower().split("x"))
    if len(size) > 2 or min(size) < 1:
        raise ValueError
    return size


def _floats(text: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in text.split("/"))
    if not np.isfinite(values).all():
        raise ValueError
    return values


def _nonzero_floats(text: str) -> tuple[float, ...]:
    if 0.0 in _floats(text):
        raise ValueError
    return _floats(text)


def _choice(*choices: str) -> Any:
    def read(text: str) -> str:
        if text.upper() not in choices:
            raise ValueError
        return text.upper()

    return read


def _size_text(size: Size) -> str:
    return "x".join(map(str, size))


def _floats_text(values: tuple[float, ...]) -> str:
    return "/".join(str(int(value)) if value == int(value) else repr(value) for value in values)


_READ: dict[str, Any] = {
    "resize": _size,
    "crop": _size,
    "color": _choice("RGB", "BGR", "GRAY"),
    "scale": Fraction,
    "mean": _floats,
    "std": _nonzero_floats,
    "layout": _choice("NCHW", "NHWC"),
}
_KIND = {
    "resize": "side or HxW",
    "crop": "side or HxW",
    "color": "RGB, BGR or GRAY",
    "scale": "number or fraction like 1/255",
    "mean": "number (or one a channel, 1/2/3)",
    "std": "number other than 0 (or one a channel, 1/2/3)",
    "layout": "NCHW or NHWC",
}

"""The embedded model and its data: handwritten digits, for a first try without any download.

The model is a file of this package; the images come from scikit-learn, so nothing but the weights
is carried around. Neither needs torch.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxptq.errors import CalibrationError

INPUT_NAME = "input"
OUTPUT_NAME = "output"
PIXEL_MAX = 16  # scikit-learn's digits count the ink in 4x4 blocks of a bitmap: 0..16


def model_path() -> Path:
    """The trained network: input `input` f32 [N, 1, 8, 8] in 0..1, output `output` f32 [N, 10]."""
    return Path(__file__).resolve().parent / "digits.onnx"


def load() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The calibration images, the held-out images and the labels of the latter.

    Returns:
        x_calib [1352, 1, 8, 8] (the training images), x_test [445, 1, 8, 8], both ready to feed
        (0..1), and y_test [445] with digits 0..9.

    Raises:
        CalibrationError: scikit-learn is not installed.
    """
    x, y = _images()
    test = held_out(y)
    return x[~test], x[test], y[test]


def load_train() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The training images [1352, 1, 8, 8] in 0..1 and their labels [1352].

    Raises:
        CalibrationError: scikit-learn is not installed.
    """
    x, y = _images()
    train = ~held_out(y)
    return x[train], y[train]


def held_out(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which images are for testing only: of each digit every fourth, in the order of the data set.

    Stratified, and the same for ever: a shuffle by a seeded generator would move training images
    into the test set on the day the generator's stream changes.

    Args:
        labels: The digits [n].

    Returns:
        True for a test image, shape [n].
    """
    rank = np.zeros(len(labels), np.int64)
    for digit in np.unique(labels):
        members = labels == digit
        rank[members] = np.arange(members.sum())
    return rank % 4 == 3


def _images() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise CalibrationError(
            "the demo's images come from scikit-learn, which cannot be imported here "
            f"({error}): pip install 'onnxptq[demo]'"
        ) from error

    x, y = load_digits(return_X_y=True)
    images = np.asarray(x, np.float32).reshape(-1, 1, 8, 8) / np.float32(PIXEL_MAX)
    return images, np.asarray(y, np.int64)

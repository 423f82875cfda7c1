"""Which 3x3 convolutions Winograd's tiles can compute exactly, and the columns of their rows.

Transforms are sums of codes and of weights, so everything fits bytes or the kernel cannot be used.
"""

import numpy as np

from onnxptq.kernels import conv_u8s8, winograd
from onnxptq.runtime.draft import Array, Cell, Draft

Codes = tuple[int, int]
"""The lowest and the highest, as they are stored."""
BAND_BYTES = 256 * 1024
"""Of V: it stays in the second cache while blocks of channels go over it."""
FEW_WEIGHTS_BYTES = 1024 * 1024
"""U beyond this would have to come from memory for each band, so bands are larger then."""
MOST_WIDE = 255
"""What is left when V begins at 0."""
MOST_SUM = 1 << 29
"""Four times a sum has to fit int32."""


def codes_fit(codes: Codes) -> bool:
    """Whether all V fit a byte: at every position they span four times what codes do."""
    return 4 * (codes[1] - codes[0]) <= MOST_WIDE


def weights_fit(weight: Array, codes: Codes) -> bool:
    """Whether all U fit int8, and sums int32.

    Args:
        weight: int16 [M, 3, 3, C].
        codes: Of x.
    """
    u = winograd.transformed(weight)
    most = np.abs(weight).sum(axis=(1, 2, 3), dtype=np.int64).max(initial=0)
    bytes_ok = u.min(initial=0) >= -128 and u.max(initial=0) <= 127
    return bool(bytes_ok and most * max(map(abs, codes)) < MOST_SUM)


def run_of(channels: int) -> int:
    """Bytes of V of a tile and a position."""
    return -(-channels // conv_u8s8.STEP) * conv_u8s8.STEP


def tiles_of(out: tuple[int, ...]) -> tuple[int, int]:
    """Lines of tiles, and tiles of a line."""
    return -(-out[0] // winograd.OUT), -(-out[1] // winograd.OUT)


def band_of(out: tuple[int, ...], channels: int, outs: int) -> int:
    """Lines of tiles that are worked on at a time: as many as compute least for nothing."""
    (lines, width), each = tiles_of(out), winograd.POSITIONS * run_of(channels)
    size = BAND_BYTES if each * outs <= FEW_WEIGHTS_BYTES else 4 * BAND_BYTES
    most = max(1, size // (width * each))
    bands = range(1, min(most, lines) + 1)
    return min(bands, key=lambda band: (blocks_of(out, outs, band)[0], -band))


def blocks_of(out: tuple[int, ...], outs: int, band: int) -> tuple[int, int]:
    """Blocks of tiles that are computed for an image, and tiles of a block."""
    lines, width = tiles_of(out)
    vectors = min(-(-outs // conv_u8s8.LANES), conv_u8s8.VECTORS)
    block = conv_u8s8.PIXELS[vectors - 1]
    full, rest = divmod(lines, band)
    return full * -(-band * width // block) + -(-rest * width // block), block


def line_bytes(out: tuple[int, ...], channels: int) -> int:
    """Of a copied line."""
    return winograd.OUT * (tiles_of(out)[1] + 1) * channels


def columns(
    draft: Draft, weight: Array, codes: Codes, out: tuple[int, ...], band: int
) -> dict[str, Cell]:
    """What differs from a row of conv_u8s8: weights, corrections, scratch.

    Args:
        draft: Where constants go.
        weight: int16 [M, 3, 3, C].
        codes: Of x, of whom `codes_fit` says so.
        out: Lines and columns of y.
        band: From `band_of`.
    """
    channels = weight.shape[-1]
    run, tiles = run_of(channels), band * tiles_of(out)[1]
    u, offsets = winograd.transformed(weight), winograd.offsets_of(*codes)
    copy = winograd.OUT * (band + 1) * line_bytes(out, channels)
    return {
        "weight": draft.constants.add(conv_u8s8.pack(u[np.newaxis])),
        "n_taps": winograd.POSITIONS,
        "run_steps": run // conv_u8s8.STEP,
        "corrections": draft.constants.add(winograd.corrections_of(u, offsets)),
        "position_bytes": winograd.position_bytes(tiles, run),
        "centre": offsets[0],
        "side": offsets[1],
        **draft.scratch(winograd.scratch_bytes(tiles, run, copy)),
    }

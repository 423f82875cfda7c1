"""ResNet-20, 32, 44 and 56 for CIFAR-10, with parameter-free shortcuts ("option A").

Where a stage halves the size, the shortcut takes every second row and column and fills the new
channels with zeros, half of them before and half after. Parameter names and numbers are those of
the checkpoints of akamaster/pytorch_resnet_cifar10. Input [N, 3, 32, 32], logits [N, 10].

Source: He et al. 2015 (arXiv:1512.03385), section 4.2.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention


class ZeroShortcut(nn.Module):
    """Every second pixel, and `pad` channels of zeros on either side."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Identity() if stride == 1 else ZeroShortcut((c_out - c_in) // 2)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """3x3 stem, three stages of `count` blocks (16, 32, 64 channels), mean, classifier."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, count, 1)
        self.layer2 = self._stage(16, 32, count, 2)
        self.layer3 = self._stage(32, 64, count, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, 10)

    def _stage(self, c_in: int, c_out: int, count: int, stride: int) -> nn.Sequential:
        first = BasicBlock(c_in, c_out, stride)
        return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1) for _ in range(count - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def build_resnet20() -> nn.Module:
    """269,722 parameters."""
    return CifarResNet(3)


def build_resnet32() -> nn.Module:
    """464,154 parameters."""
    return CifarResNet(5)


def build_resnet44() -> nn.Module:
    """658,586 parameters."""
    return CifarResNet(7)


def build_resnet56() -> nn.Module:
    """853,018 parameters."""
    return CifarResNet(9)


def build() -> nn.Module:
    """ResNet-20."""
    return build_resnet20()

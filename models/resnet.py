"""ResNet-18, 34 and 50 for ImageNet, with torchvision's parameter names and strides.

As in torchvision the bottleneck's stride sits on its 3x3 convolution ("ResNet v1.5"), so
torchvision's checkpoints give the accuracy they were published with. Input [N, 3, H, W] (224x224),
logits [N, 1000].

Source: He et al. 2015 (arXiv:1512.03385).
"""

import torch
from torch import nn


def downsample(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The shortcut: a 1x1 convolution where shapes differ, else the input itself."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
    )  # fmt: skip


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(c_in, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3, 1x1 to four times as many."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = downsample(c_in, c_out, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.downsample(x))


Block = type[BasicBlock] | type[Bottleneck]


def stage(block: Block, c_in: int, width: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, the first of which changes size and channels."""
    made = [block(c_in, width, stride)]
    made += [block(width * block.expansion, width, 1) for _ in range(count - 1)]
    return nn.Sequential(*made)


class ResNet(nn.Module):
    """7x7 stem, 3x3 max pool, four stages, mean, classifier."""

    def __init__(self, block: Block, counts: tuple[int, int, int, int]) -> None:
        super().__init__()
        grow = block.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(block, 64, 64, counts[0], 1)
        self.layer2 = stage(block, 64 * grow, 128, counts[1], 2)
        self.layer3 = stage(block, 128 * grow, 256, counts[2], 2)
        self.layer4 = stage(block, 256 * grow, 512, counts[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * grow, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build_resnet18() -> nn.Module:
    """11,689,512 parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def build_resnet34() -> nn.Module:
    """21,797,672 parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


def build_resnet50() -> nn.Module:
    """25,557,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def build() -> nn.Module:
    """ResNet-50."""
    return build_resnet50()

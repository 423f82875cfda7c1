"""MobileNetV2 (width 1.0) for ImageNet, with torchvision's parameter names.

Input [N, 3, H, W] (224x224), logits [N, 1000].

Source: Sandler et al. 2018 (arXiv:1801.04381), table 2.
"""

import torch
from torch import nn

# expansion, output channels, repeats, stride of the first
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_CHANNELS = 1280


def conv_bn_relu(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 expand (unless the expansion is 1), depthwise 3x3, 1x1 project without activation."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        c_mid = c_in * expansion
        self.adds = stride == 1 and c_in == c_out
        expand = [] if expansion == 1 else [conv_bn_relu(c_in, c_mid, 1)]
        self.conv = nn.Sequential(
            *expand,
            conv_bn_relu(c_mid, c_mid, 3, stride, groups=c_mid),
            nn.Conv2d(c_mid, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, seven stages, 1x1 head, mean, dropout (training only), classifier."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_bn_relu(3, 32, 3, stride=2)]
        channels = 32
        for expansion, c_out, repeats, stride in STAGES:
            for repeat in range(repeats):
                first_stride = stride if repeat == 0 else 1
                features.append(InvertedResidual(channels, c_out, first_stride, expansion))
                channels = c_out
        features.append(conv_bn_relu(channels, LAST_CHANNELS, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST_CHANNELS, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def build() -> nn.Module:
    """MobileNetV2, 3,504,872 parameters."""
    return MobileNetV2()

"""The four networks: every kind of linear operator with a norm, in the forms in which exporters write them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def norm_relu(linear: nn.Module, channels: int, name: str) -> nn.Sequential:
    """A linear layer with a norm and a ReLU behind it; the names show in the exported graph (``/stem/conv/Conv``)."""
    return nn.Sequential(OrderedDict({name: linear, "norm": nn.BatchNorm2d(channels), "relu": nn.ReLU()}))


def conv_norm_relu(inputs: int, outputs: int, kernel: int, **options: int | bool) -> nn.Sequential:
    return norm_relu(nn.Conv2d(inputs, outputs, kernel, **options), outputs, "conv")


def deconv_norm_relu(inputs: int, outputs: int, kernel: int, **options: int | bool) -> nn.Sequential:
    return norm_relu(nn.ConvTranspose2d(inputs, outputs, kernel, **options), outputs, "deconv")


def digits_cnn() -> nn.Module:
    """Five Conv-BN-ReLU: plain, depthwise, pointwise, grouped with a stride, and one whose Conv has a bias."""
    layers = {
        "stem": conv_norm_relu(1, 16, 3, padding=1, bias=False),
        "depthwise": conv_norm_relu(16, 16, 3, padding=1, groups=16, bias=False),
        "pointwise": conv_norm_relu(16, 32, 1, bias=False),
        "grouped": conv_norm_relu(32, 32, 3, padding=1, stride=2, groups=4, bias=False),
        "biased": conv_norm_relu(32, 48, 3, padding=1, bias=True),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(48, 10),
    }
    return nn.Sequential(OrderedDict(layers))


class DigitsAutoencoder(nn.Module):
    """Two Conv-BN-ReLU and a Linear down to 24 numbers; then Linear-BN-ReLU and three ConvTranspose-BN-ReLU.

    The transposed convolutions are a plain one, a depthwise one, and a grouped one with a bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_norm_relu(1, 16, 3, padding=1, stride=2, bias=False)
        self.down2 = conv_norm_relu(16, 32, 3, padding=1, stride=2, bias=False)
        self.encode = nn.Linear(128, 24)
        self.decode = nn.Linear(24, 128)
        self.decode_norm = nn.BatchNorm1d(128)
        self.up1 = deconv_norm_relu(32, 16, 4, padding=1, stride=2, bias=False)
        self.smooth = deconv_norm_relu(16, 16, 3, padding=1, groups=16, bias=False)
        self.up2 = deconv_norm_relu(16, 16, 4, padding=1, stride=2, groups=2, bias=True)
        self.image = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.encode(self.down2(self.down1(x)).flatten(1))
        x = self.decode_norm(self.decode(code)).relu().reshape(-1, 32, 2, 2)
        return self.image(self.up2(self.smooth(self.up1(x)))).sigmoid()


class MatrixProduct(nn.Module):
    """``x @ weight + bias`` with ``weight[inputs, outputs]``, which exports as MatMul and Add, not as Gemm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight.T, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class TabularMLP(nn.Module):
    """Four linear layers with a norm behind each, in the four forms in which exporters write them.

    A norm on the raw input standardises it. Then: Linear (Gemm), ``x @ w + b`` (MatMul-Add), a Linear shared by five
    groups of eight units (rank 3: MatMul-Add between two Transposes, since BatchNorm1d has its channels on axis 1),
    and a Linear without bias (MatMul).
    """

    def __init__(self) -> None:
        super().__init__()
        # The smallest of the raw variances is 7e-6, so the usual epsilon of 1e-5 would drown it. The cumulative
        # average (momentum None) makes the running statistics those of the whole training set.
        self.standardise = nn.BatchNorm1d(30, eps=1e-10, momentum=None)
        self.embed = nn.Linear(30, 40)
        self.embed_norm = nn.BatchNorm1d(40)
        self.mix = MatrixProduct(40, 40)
        self.mix_norm = nn.BatchNorm1d(40)
        self.group = nn.Linear(8, 16)
        self.group_norm = nn.BatchNorm1d(16)
        self.merge = nn.Linear(80, 16, bias=False)
        self.merge_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed_norm(self.embed(self.standardise(x))).relu()
        x = self.mix_norm(self.mix(x)).relu()
        x = self.group(x.reshape(-1, 5, 8))
        x = self.group_norm(x.transpose(1, 2)).transpose(1, 2).relu()
        x = self.merge_norm(self.merge(x.flatten(1))).relu()
        return self.head(x)


class PreactivationBlock(nn.Module):
    """BN-ReLU-Conv twice around a shortcut; where the shape changes, the shortcut is a 1x1 Conv of the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.norm1(x).relu()
        inner = self.conv2(self.norm2(self.conv1(active)).relu())
        return inner + (x if self.shortcut is None else self.shortcut(active))


def digits_preact() -> nn.Module:
    """Conv, three pre-activation blocks (the first with an identity shortcut), and a last norm before the pooling."""
    layers = {
        "stem": nn.Conv2d(1, 16, 3, padding=1, bias=False),
        "block1": PreactivationBlock(16, 16),
        "block2": PreactivationBlock(16, 24, stride=2),
        "block3": PreactivationBlock(24, 32, stride=2),
        "norm": nn.BatchNorm2d(32),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(32, 10),
    }
    return nn.Sequential(OrderedDict(layers))

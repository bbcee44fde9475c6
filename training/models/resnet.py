"""ResNets with a clean and a robust mode. The modes differ in the normalisation layers, because a ResNet has no token.

`training.models.shapes.ResNetConfig` describes the variants that Rebuffi, Croce & Gowal (ICLR 2023) compare. Knows
nothing about attacks, data or training.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.errors import RecipeError
from training.models.shapes import ResNetConfig
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix

GROUPS = 32  # of a GroupNorm (Wu & He, ECCV 2018)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # in each of the four stages


class SharedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm that is the same in both modes. Its statistics are those of all rows, clean and adversarial."""

    def forward(self, x: Tensor, betas: Tensor | None = None) -> Tensor:
        return super().forward(x)


class SharedGroupNorm(nn.GroupNorm):
    """A GroupNorm that is the same in both modes."""

    def forward(self, x: Tensor, betas: Tensor | None = None) -> Tensor:
        return super().forward(x)


class _DualNorm(nn.Module):
    """Base class of norms with a scale and an offset for each mode.

    `weight` has the scales and `bias` the offsets, both (2, C) for C channels. Row 0 is for clean mode.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, channels))
        self.bias = nn.Parameter(torch.zeros(2, channels))


class DualGroupNorm(_DualNorm):
    """A GroupNorm with a scale and an offset for each mode. β mixes the two scales, and the two offsets."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(channels)
        self.groups = groups

    def forward(self, x: Tensor, betas: Tensor) -> Tensor:
        """Returns x (B, C, H, W) normalised, each row with the scale and offset at its β. betas: (B,)."""
        return _affine(F.group_norm(x, self.groups), self.weight, self.bias, betas)


class DualBatchNorm(_DualNorm):
    """A BatchNorm with a scale and an offset for each mode, and with separate or common statistics.

    statistics = 2: separate statistics, as in AdvProp (Xie et al., CVPR 2020). Training normalises the rows of each
    mode separately, so every β must be 0 or 1. A mode without rows keeps its running statistics.

    statistics = 1: common statistics, as in DualParams (Rebuffi et al., ICLR 2023). Training normalises all rows
    together.

    `running_mean` and `running_var` are (statistics, C) for C channels. In eval mode the output of a row is
    (1 − β)·(output of clean mode) + β·(output of robust mode).
    """

    def __init__(self, channels: int, statistics: Literal[1, 2], eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels)
        self.eps = eps
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(statistics, channels))
        self.register_buffer("running_var", torch.ones(statistics, channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor, betas: Tensor) -> Tensor:
        """Returns x (B, C, H, W) normalised, each row at its β. betas: (B,).

        In training mode with separate statistics, raises RecipeError if a β is neither 0 nor 1.
        """
        if not self.training:  # a linear map of each channel
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return _affine(x, scale, self.bias - self.running_mean * scale, betas)
        if len(self.running_mean) == 1:
            return _affine(self._normalised(x, 0), self.weight, self.bias, betas)
        is_clean, is_robust = betas == CLEAN_BETA, betas == ROBUST_BETA
        if not (is_clean | is_robust).all():
            raise RecipeError(
                "dual BatchNorm can be trained at β = 0 and β = 1 only: it has statistics for these two modes"
            )
        out = torch.empty_like(x)
        for mode, rows in enumerate((is_clean, is_robust)):
            if rows.any():
                out[rows] = self._normalised(x[rows], mode)
        return _affine(out, self.weight, self.bias, betas)

    def _normalised(self, x: Tensor, index: int) -> Tensor:
        """Returns x (B, C, H, W), normalised by mean and variance of each channel over all images and positions.

        Updates row `index` of the running statistics. For training mode only.
        """
        return F.batch_norm(
            x,
            self.running_mean[index],
            self.running_var[index],
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )


def _affine(x: Tensor, scales: Tensor, offsets: Tensor, betas: Tensor) -> Tensor:
    """Returns x (B, C, H, W), each image times a scale, plus an offset, both for each channel. betas: (B,).

    scales, offsets: (2, C), those of the clean and of the robust mode. β mixes the two scales, and the two offsets.
    """
    column = betas[:, None]
    scale, offset = (mix(pair[0], pair[1], column)[:, :, None, None] for pair in (scales, offsets))
    return torch.addcmul(offset, x, scale)


def _norm(config: ResNetConfig, channels: int) -> nn.Module:
    if config.norm == "batch":
        if config.adapter == "shared":
            return SharedBatchNorm(channels)
        return DualBatchNorm(channels, statistics=2 if config.adapter == "dual" else 1)
    # Narrower ResNets have fewer groups, so that a group has as many channels as published.
    groups = 1 if config.norm == "layer" else math.gcd(GROUPS, config.width // 2)
    return SharedGroupNorm(groups, channels) if config.adapter == "shared" else DualGroupNorm(groups, channels)


def _conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)


class Downsample(nn.Module):
    """The shortcut of a residual block whose output has another shape: a 1 × 1 convolution, then a norm."""

    def __init__(self, config: ResNetConfig, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = _conv(before, after, 1, stride)
        self.norm = _norm(config, after)

    def forward(self, x: Tensor, betas: Tensor) -> Tensor:
        return self.norm(self.conv(x), betas)


class ResidualBlock(nn.Module):
    """A basic block of two convolutions, or a bottleneck of three.

    Input (B, before, H, W), output (B, after, H/stride, W/stride). before, after: numbers of channels. In a bottleneck
    the 3 × 3 convolution has the stride. This variant is ResNet 1.5, to which most published accuracies refer.
    """

    def __init__(self, config: ResNetConfig, before: int, after: int, stride: int) -> None:
        super().__init__()
        if config.depth == 18:
            convs = [_conv(before, after, 3, stride), _conv(after, after, 3)]
        else:
            inner = after // 4
            convs = [_conv(before, inner, 1), _conv(inner, inner, 3, stride), _conv(inner, after, 1)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(_norm(config, conv.out_channels) for conv in convs)
        has_same_shape = stride == 1 and before == after
        self.downsample = None if has_same_shape else Downsample(config, before, after, stride)

    def forward(self, x: Tensor, betas: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x, betas)
        last = len(self.convs) - 1
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x), betas)
            if index < last:
                x = F.relu(x)
        return F.relu(x + shortcut)


class DualResNet(nn.Module):
    """A ResNet (He et al., CVPR 2016) with normalisation layers that differ between clean and robust mode.

    Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 2. The table
    in `ResNetConfig` has the name of each combination of `norm` and `adapter` in the literature. With norm "layer", a
    LayerNorm normalises over channels and positions, as a GroupNorm with one group does. The available pages of the
    paper do not say which LayerNorm the paper uses.

    In training, BatchNorm uses the rows of one process, not of all processes. A moving average of the weights must copy
    the running statistics (buffers) too.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        is_small = config.stem == "small"
        self.stem_conv = _conv(3, config.width, 3) if is_small else _conv(3, config.width, 7, 2)
        self.stem_norm = _norm(config, config.width)
        self.stem_pool = nn.Identity() if is_small else nn.MaxPool2d(3, stride=2, padding=1)
        blocks = []
        before = config.width
        for stage, count in enumerate(BLOCKS[config.depth]):
            after = config.width * 2**stage * (4 if config.depth == 50 else 1)
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(config, before, after, stride))
                before = after
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(before, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, betas: Tensor) -> Tensor:
        """Returns logits (B, K) of images, float (B, 3, H, W) in [0, 1], each at its own β. betas: (B,).

        In training mode with dual BatchNorm, raises RecipeError for a β other than 0 and 1.
        """
        x = self.stem_conv((images - self.mean) / self.std)
        x = self.stem_pool(F.relu(self.stem_norm(x, betas)))
        for block in self.blocks:
            x = block(x, betas)
        return self.head(x.mean(dim=(2, 3)))

    @property
    def adapter_parameters(self) -> int:
        """The number of parameters that each mode has for itself. Running statistics do not count."""
        return sum(m.weight[0].numel() + m.bias[0].numel() for m in self.modules() if isinstance(m, _DualNorm))

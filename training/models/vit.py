"""The dual-token Vision Transformer (ViT): a clean and a robust class token, and all other weights shared.

Includes the variants of the paper: two sets of LayerNorm parameters in place of the two tokens, both, or neither. Knows
nothing about attacks, data or training.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.shapes import ViTConfig
from tureen.tokens import mix


def images_from_pixels(pixels: Tensor) -> Tensor:
    """Converts pixels uint8 (B, H, W, 3) to the input of a model: float32 (B, 3, H, W) in [0, 1], contiguous."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255


def pixels_from_images(images: Tensor) -> NDArray[np.uint8]:
    """Converts images (B, 3, H, W) in [0, 1] to pixels uint8 (B, H, W, 3) on the CPU. Rounds to the nearest level."""
    pixels: NDArray[np.uint8] = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


class DualLayerNorm(nn.Module):
    """A LayerNorm with a scale and an offset for each mode. β mixes the two scales, and the two offsets.

    Source: Rebuffi, Croce & Gowal, ICLR 2023, section 3. The paper compares these LayerNorms with two class tokens.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(2, width))  # clean, robust
        self.bias = nn.Parameter(torch.zeros(2, width))

    def forward(self, x: Tensor, betas: Tensor) -> Tensor:
        """Returns x (B, …, D) normalised, each row with the scale and offset at its β. betas: (B,)."""
        column = betas[:, None]
        scale, offset = (
            mix(p[0], p[1], column).view(len(x), *[1] * (x.ndim - 2), -1) for p in (self.weight, self.bias)
        )
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * scale + offset


class SharedLayerNorm(nn.LayerNorm):
    """A LayerNorm that is the same in both modes."""

    def forward(self, x: Tensor, betas: Tensor | None = None) -> Tensor:
        return super().forward(x)


def quick_gelu(x: Tensor) -> Tensor:
    """Returns the approximation of GELU in CLIP, of the shape of x."""
    return x * torch.sigmoid(1.702 * x)


def swiglu(x: Tensor) -> Tensor:
    """Returns the second half of the channels of x (…, 2C), multiplied by the SiLU of the first half: (…, C)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu, "swiglu": swiglu}


class TransformerBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al., ICLR 2021).

    Input and output are (B, 1 + R + N, D): for each image one token, R registers and N patches, each of width D.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.heads, self.activation = config.heads, ACTIVATIONS[config.mlp]
        self.norm1 = _norm(config)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm, self.k_norm = _head_norm(config), _head_norm(config)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = _norm(config)
        self.fc1 = nn.Linear(config.width, 2 * hidden if config.mlp == "swiglu" else hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor, betas: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x, betas))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x, betas))))

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, 1 + R + N, D / heads)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, 1 + R + N, D)


class ChannelNorm(nn.LayerNorm):
    """A LayerNorm over the channels of each position. Input and output are (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _conv_stem(config: ViTConfig) -> nn.Sequential:
    """Returns a patch embedding of several 3 × 3 convolutions of stride 2, and a last 1 × 1 convolution.

    Source: Xiao et al., NeurIPS 2021. With this embedding, adversarial training makes small ViTs more robust (Singh,
    Croce & Hein, NeurIPS 2023).
    """
    halvings = config.patch_size.bit_length() - 1
    channels = [3, *(config.width >> (halvings - 1 - i) for i in range(halvings))]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), ChannelNorm(after, eps=config.norm_eps), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(config.width, config.width, 1))


def _norm(config: ViTConfig) -> nn.Module:
    if config.adapter in ("norm", "both"):
        return DualLayerNorm(config.width, config.norm_eps)
    return SharedLayerNorm(config.width, eps=config.norm_eps)


def _head_norm(config: ViTConfig) -> nn.Module:
    return nn.LayerNorm(config.width // config.heads, eps=config.norm_eps) if config.qk_norm else nn.Identity()


class DualTokenViT(nn.Module):
    """A Vision Transformer with two class tokens. The β of each image mixes them.

    Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 1. The modes
    share patch embedding, blocks and classifier. The token selects clean mode, robust mode or a soup of both. The
    tokens have no position embedding.

    `config.registers` learned tokens follow the class token. They have no position embedding and no output.

    `config.adapter` selects the parameters that each mode has for itself: its token (`token`), its LayerNorms (`norm`),
    both (`both`) or neither (`none`). In a model with a single token, `robust_token` is None.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        if config.stem == "conv":
            self.patch_embed: nn.Module = _conv_stem(config)
        else:
            self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, config.width))
        self.clean_token = nn.Parameter(torch.zeros(config.width))
        has_two_tokens = config.adapter in ("token", "both")
        self.robust_token = nn.Parameter(torch.zeros(config.width)) if has_two_tokens else None
        self.registers = nn.Parameter(torch.zeros(config.registers, config.width)) if config.registers else None
        self.norm_pre = _norm(config) if config.pre_norm else None
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.norm = _norm(config)
        self.head = nn.Linear(config.width, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.pos_embed, self.clean_token, self.robust_token, self.registers):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor, betas: Tensor) -> Tensor:
        """Returns logits (B, K) of images, float (B, 3, H, W) in [0, 1], each at its own β. betas: (B,)."""
        return self.with_tokens(images, self.soup(betas), betas)

    def with_tokens(self, images: Tensor, tokens: Tensor, betas: Tensor | None = None) -> Tensor:
        """Returns logits (B, K) of images, float (B, 3, H, W) in [0, 1], each with its own token.

        tokens: one token of width D for each image, (B, D). betas: (B,), required for dual LayerNorms only.
        """
        return self.with_patches(self.patch_embed((images - self.mean) / self.std), tokens, betas)

    def with_patches(self, patches: Tensor, tokens: Tensor, betas: Tensor | None = None) -> Tensor:
        """Returns logits (B, K) of images that are given as embedded patches.

        patches: (B, D, H / P, W / P), for images (B, 3, H, W) in patches of P × P pixels. tokens, betas: as for
        `with_tokens`.
        """
        x = patches.flatten(2).transpose(1, 2) + self.pos_embed  # (B, N, D)
        parts = [tokens.unsqueeze(1).to(x.dtype), x]
        if self.registers is not None:
            parts.insert(
                1, self.registers.to(x.dtype).expand(x.shape[0], -1, -1)
            )  # len(x) would fix the exported batch
        x = torch.cat(parts, dim=1)  # (B, 1 + R + N, D)
        if self.norm_pre is not None:
            x = self.norm_pre(x, betas)
        for block in self.blocks:
            x = block(x, betas)
        if self.config.norm_after_pool:
            return self.head(self.norm(self._pooled(x), betas))
        return self.head(self._pooled(self.norm(x, betas)))

    def _pooled(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.config.pool == "token" else x[:, 1 + self.config.registers :].mean(dim=1)

    def soup(self, beta: float | Tensor) -> Tensor:
        """Returns the mix of both tokens at `beta`, (D,). If `beta` is a tensor of B β, returns B mixes, (B, D)."""
        robust = self.clean_token if self.robust_token is None else self.robust_token
        if isinstance(beta, Tensor):
            return mix(self.clean_token[None, :], robust[None, :], beta[:, None])
        return mix(self.clean_token, robust, beta)

    @property
    def adapter_parameters(self) -> int:
        """The number of parameters that each mode has for itself."""
        token = 0 if self.robust_token is None else self.config.width
        norms = sum(m.weight[0].numel() + m.bias[0].numel() for m in self.modules() if isinstance(m, DualLayerNorm))
        return token + norms

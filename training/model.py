"""The dual-token Vision Transformer: two classification tokens, every other weight shared.

Knows nothing about attacks, data or how it is trained.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tureen.tokens import mix


class ViTConfig(BaseModel):
    """The shape of a dual-token ViT, as it is stored beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(gt=0, description="height and width of the input, pixels")
    patch_size: int = Field(gt=0, description="height and width of a patch, pixels")
    width: int = Field(gt=0, description="D, the width of a token")
    depth: int = Field(gt=0, description="number of transformer blocks")
    heads: int = Field(gt=0, description="attention heads; divides width")
    classes: int = Field(gt=1, description="K, the number of labels")
    mlp_ratio: float = Field(default=4.0, gt=0)
    pool: Literal["mean", "token"] = Field(
        default="mean", description="what the classifier reads: the mean of the patches, or the class token"
    )
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _divides(self) -> ViTConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def patches(self) -> int:
        """N, the number of patches."""
        return (self.image_size // self.patch_size) ** 2


def images_from_pixels(pixels: Tensor) -> Tensor:
    """What the model reads, float32 (B, 3, H, W) in [0, 1], of pixels uint8 (B, H, W, 3)."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255


class Block(nn.Module):
    """A pre-norm transformer block, (B, 1 + N, D) to the same (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, 1 + N, D / heads)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, 1 + N, D)


class DualTokenViT(nn.Module):
    """A Vision Transformer whose class token is an argument, and the two tokens it was trained with.

    Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 1: patch
    embedding, blocks and classifier are shared; the token alone tells clean mode, robust mode or a soup of both.
    The token carries no position embedding.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, config.width))
        self.clean_token = nn.Parameter(torch.zeros(config.width))
        self.robust_token = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        fan_in = self.patch_embed.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.weight, std=fan_in**-0.5)
        for parameter in (self.pos_embed, self.clean_token, self.robust_token):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, K) of images float (B, 3, H, W) in [0, 1], each classified with its own row of tokens (B, D)."""
        x = self.patch_embed((images - self.mean) / self.std)  # (B, D, H / P, W / P)
        x = x.flatten(2).transpose(1, 2) + self.pos_embed  # (B, N, D)
        x = torch.cat([tokens.unsqueeze(1).to(x.dtype), x], dim=1)  # (B, 1 + N, D)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        pooled = x[:, 0] if self.config.pool == "token" else x[:, 1:].mean(dim=1)
        return self.head(pooled)

    def soup(self, beta: float | Tensor) -> Tensor:
        """The token at β, float32 (D,); for a β of shape (B,), one token a row, (B, D)."""
        if isinstance(beta, Tensor):
            return mix(self.clean_token[None, :], self.robust_token[None, :], beta[:, None])
        return mix(self.clean_token, self.robust_token, beta)

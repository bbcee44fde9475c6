"""Describes the shapes of the models that can be co-trained, as data. Knows no PyTorch.

So recipes, and the options of commands, can be read where PyTorch is not installed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ViTConfig(BaseModel):
    """The shape of a dual-token ViT. A checkpoint contains this shape beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(gt=0, description="height and width of the input, pixels")
    patch_size: int = Field(gt=0, description="height and width of a patch, pixels")
    width: int = Field(gt=0, description="D, the width of a token")
    depth: int = Field(gt=0, description="number of transformer blocks")
    heads: int = Field(gt=0, description="attention heads; divides width")
    classes: int = Field(gt=1, description="K, the number of labels")
    mlp_ratio: float = Field(default=4.0, gt=0)  # hidden width of the MLP, divided by `width`
    stem: Literal["patch", "conv"] = Field(
        default="patch", description="patch embedding: one linear map a patch, or 3 × 3 convolutions of stride 2"
    )
    adapter: Literal["token", "norm", "both", "none"] = Field(
        default="token", description="the parameters that differ between the two modes; only `token` can be exported"
    )
    pool: Literal["mean", "token"] = Field(
        default="mean", description="input of the classifier: the mean of the patches, or the class token"
    )
    norm_after_pool: bool = Field(default=False, description="the last LayerNorm follows the pooling (timm's fc_norm)")
    registers: int = Field(
        default=0, ge=0, description="learned tokens after the class token, without position (Darcet et al., ICLR 2024)"
    )
    pre_norm: bool = Field(default=False, description="a LayerNorm before the first block (CLIP)")
    mlp: Literal["gelu", "quick_gelu", "swiglu"] = Field(
        default="gelu",
        description="activation of the MLP: GELU, its approximation in CLIP, or a SiLU gate (DINOv2 ViT-g)",
    )
    qk_norm: bool = Field(
        default=False, description="a LayerNorm, shared by both modes, on the queries and keys of a head"
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="ε of every LayerNorm")
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of each channel; subtracted from pixels in [0, 1]
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of each channel; divides the difference

    @model_validator(mode="after")
    def _divides(self) -> ViTConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"patch_size {self.patch_size} is not a power of two, which stem=conv needs")
        return self

    @property
    def patches(self) -> int:
        """The number N of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


class ResNetConfig(BaseModel):
    """The shape of a ResNet, and the parts of its normalisation layers that each mode has for itself.

    | norm         | adapter     | separate for each mode       | name in the literature                       |
    |--------------|-------------|------------------------------|----------------------------------------------|
    | any          | shared      | nothing                      | co-training                                  |
    | batch        | dual        | statistics, scale and offset | AdvProp (Xie et al., CVPR 2020), mixture BN  |
    | batch        | dual_params | scale and offset             | DualParams BatchNorm                         |
    | layer, group | dual        | scale and offset             | dual LayerNorm, dual GroupNorm               |
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: Literal[18, 50] = Field(description="weighted layers: 18 of basic blocks, 50 of bottlenecks")
    image_size: int = Field(gt=0, description="height and width of the input, pixels")
    classes: int = Field(gt=1, description="K, the number of labels")
    stem: Literal["imagenet", "small"] = Field(
        default="imagenet", description="7 × 7 of stride 2 and a max-pool; or 3 × 3 of stride 1, for images up to 64"
    )
    width: int = Field(default=64, gt=0, multiple_of=2, description="channels of the first stage; published with 64")
    norm: Literal["batch", "layer", "group"] = "batch"
    adapter: Literal["shared", "dual", "dual_params"] = "dual"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of each channel; subtracted from pixels in [0, 1]
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of each channel; divides the difference

    @model_validator(mode="after")
    def _has_statistics_to_share(self) -> ResNetConfig:
        if self.adapter == "dual_params" and self.norm != "batch":
            raise ValueError(f"norm {self.norm} keeps no statistics, so dual_params is the same as dual: use dual")
        return self


ModelConfig = ViTConfig | ResNetConfig

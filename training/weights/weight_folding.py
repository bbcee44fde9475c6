"""Converts the tensors of a third-party ViT to those of DualTokenViT, without a change of its features.

Tensors that DualTokenViT does not have become part of others, up to float32 rounding. Knows nothing about the names of
tensors in libraries, and reads no file.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError
from training.weights.weight_files import Weights


def fold_weights(weights: Weights, file: Path) -> dict[str, Any]:
    """Converts the tokens, positions, LayerScale, and query, key and value weights to those of DualTokenViT.

    Changes `weights` in place. Returns the fields of a ViTConfig that follow from the shapes. file: the path for error
    messages. Raises CheckpointError if the shapes are not those of a plain pre-norm ViT.
    """
    for name, dimensions in {"patch_embed.weight": 4, "cls_token": 3, "positions": 3, "blocks.0.fc1.weight": 2}.items():
        if name not in weights or weights[name].ndim != dimensions:
            raise CheckpointError(f"{file} has no {name} of {dimensions} dimensions: it is not a plain pre-norm ViT")
    width, _, patch_size, _ = weights["patch_embed.weight"].shape
    token, positions = weights.pop("cls_token"), weights.pop("positions")
    length = positions.shape[1]
    has_class_position = math.isqrt(length) ** 2 != length  # false for DeiT-III and FlexiViT
    side = math.isqrt(length - has_class_position)
    if side**2 != length - has_class_position or token.shape != (1, 1, width) or positions.shape != (1, length, width):
        raise CheckpointError(
            f"{file}: class token {tuple(token.shape)} and position embeddings {tuple(positions.shape)} are not those "
            f"of one token and a square of patches of width {width}"
        )
    weights["clean_token"] = (token + positions[:, :1] if has_class_position else token).flatten()
    weights["robust_token"] = weights["clean_token"]
    weights["pos_embed"] = positions[:, int(has_class_position) :]
    depth = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in weights)
    for i in range(depth):
        _fold_qkv(weights, f"blocks.{i}.", width)
        _fold_layer_scale(weights, f"blocks.{i}.", file)
    hidden = len(weights["blocks.0.fc1.weight"])
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "mlp_ratio": hidden / width,
    }


def _fold_qkv(weights: Weights, block: str, width: int) -> None:
    """Joins the three linear layers for queries, keys and values of a block into one layer, in this order.

    Changes `weights` in place. block: prefix of the names, such as "blocks.0.". A missing bias becomes 0.
    """
    if f"{block}q.weight" in weights:
        parts = [(f"{block}{part}.weight", f"{block}{part}.bias") for part in "qkv"]
        zeros = torch.zeros(width)
        weights[f"{block}qkv.bias"] = torch.cat([weights.pop(bias, zeros) for _, bias in parts])
        weights[f"{block}qkv.weight"] = torch.cat([weights.pop(weight, zeros[None]) for weight, _ in parts])
    weights.setdefault(f"{block}qkv.bias", torch.zeros(3 * width))


def _fold_layer_scale(weights: Weights, block: str, file: Path) -> None:
    """Multiplies the output rows of a block's attention and of its MLP by the scales of LayerScale.

    Changes `weights` in place. block: prefix of the names, such as "blocks.0.". Raises CheckpointError if a scale does
    not have one value for each row. Source of LayerScale: Touvron et al., ICCV 2021.
    """
    for name, layer in (("scale1", "proj"), ("scale2", "fc2")):
        scale = weights.pop(f"{block}{name}", None)
        for part in ("weight", "bias"):
            rows = weights.get(f"{block}{layer}.{part}")
            if scale is None or rows is None:
                continue
            if scale.shape != rows.shape[:1]:
                raise CheckpointError(
                    f"{file}: the LayerScale {tuple(scale.shape)} of {block}{layer} does not fit its {part} "
                    f"{tuple(rows.shape)}"
                )
            weights[f"{block}{layer}.{part}"] = scale.view(-1, *[1] * (rows.ndim - 1)) * rows

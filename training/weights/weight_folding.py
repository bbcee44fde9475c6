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

# Tensors without which no conversion is possible, for messages.
PARTS = {
    "patch_embed.weight": "patch embedding",
    "cls_token": "class token, in whose place the two tokens are (SigLIP, I-JEPA and the -gap- models have none)",
    "positions": "learned position embeddings (RoPE-ViT and DINOv3 have none)",
    "blocks.0.fc1.weight": "MLP in its first block",
    "blocks.0.fc2.weight": "MLP in its first block",
}


def fold_weights(weights: Weights, file: Path) -> dict[str, Any]:
    """Converts the tokens, positions, LayerScale, and query, key and value weights to those of DualTokenViT.

    Changes `weights` in place. Returns the fields of a ViTConfig that follow from the shapes. file: the path for error
    messages. Raises CheckpointError if the shapes are not those of a plain pre-norm ViT.
    """
    for name, part in PARTS.items():
        if name not in weights:
            raise CheckpointError(f"{file} has no {part}: it is incomplete, or not a plain pre-norm ViT")
    if weights["cls_token"].ndim == 1 and weights["positions"].ndim == 2:  # CLIP of transformers
        weights["cls_token"], weights["positions"] = weights["cls_token"][None, None], weights["positions"][None]
    for name, dimensions in {"patch_embed.weight": 4, "cls_token": 3, "positions": 3, "blocks.0.fc1.weight": 2}.items():
        if weights[name].ndim != dimensions:
            raise CheckpointError(f"{file} has no {name} of {dimensions} dimensions: it is not a plain pre-norm ViT")
    width, _, patch_size, _ = weights["patch_embed.weight"].shape
    token, positions, registers = weights.pop("cls_token"), weights.pop("positions"), weights.pop("registers", None)
    length, count = positions.shape[1], 0 if registers is None else registers.shape[1]
    # Tokens before the patches that have a position: none (DeiT-III, FlexiViT), the class token, or all of them.
    positioned = next((n for n in (0, 1, 1 + count) if math.isqrt(max(length - n, 0)) ** 2 == length - n), None)
    if positioned is None or token.shape != (1, 1, width) or positions.shape != (1, length, width):
        raise CheckpointError(
            f"{file}: class token {tuple(token.shape)} and position embeddings {tuple(positions.shape)} are not those "
            f"of one token and a square of patches of width {width}"
        )
    side = math.isqrt(length - positioned)
    weights["clean_token"] = (token + positions[:, :1] if positioned else token).flatten()
    weights["robust_token"] = weights["clean_token"]
    weights["pos_embed"] = positions[:, positioned:]
    if registers is not None:
        weights["registers"] = (registers + positions[:, 1:positioned] if positioned > 1 else registers).flatten(0, 1)
    depth = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in weights)
    for i in range(depth):
        _fold_qkv(weights, f"blocks.{i}.", width)
        _fold_layer_scale(weights, f"blocks.{i}.", file)
    pre_norm = "norm_pre.weight" in weights
    if pre_norm:  # the patch embedding of CLIP has no bias
        weights.setdefault("patch_embed.bias", torch.zeros(width))
    hidden = len(weights["blocks.0.fc1.weight"])
    is_gated = weights["blocks.0.fc2.weight"].shape == (width, hidden / 2)
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "registers": count,
        "mlp_ratio": hidden / width / (1 + is_gated),
        "pre_norm": pre_norm,
        "qk_norm": "blocks.0.q_norm.weight" in weights,
        **({"mlp": "swiglu"} if is_gated else {}),
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

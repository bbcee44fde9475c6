"""Reads the settings of a third-party ViT from the JSON files beside its weights.

For a setting that no file has, uses the default of the library. Knows nothing about the values of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import CheckpointError

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

# Numbers of heads of the published models that differ from width / 64: ViT-H (Dosovitskiy et al., ICLR 2021, Table 1),
# ViT-g and ViT-G (Zhai et al., CVPR 2022, Table 2), SoViT-400m (Alabdulmohsin et al., NeurIPS 2023).
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
MIN_KNOWN_WIDTH = 192  # width of ViT-Ti; narrower models follow no rule

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# Defaults of the classes ViTConfig and Dinov2Config of transformers.
TRANSFORMERS_EPS = 1e-12
DINOV2_EPS = 1e-6


def library_settings(
    library: str, names: Mapping[str, str], file: Path, *, width: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns fields of a ViTConfig, and a message for the user about each field that no file sets.

    library: "timm", "transformers" or "torchvision". names: maps the name of each tensor in DualTokenViT to its name in
    the file. file: the file of weights. width: of a token. Raises CheckpointError for a setting that DualTokenViT does
    not support, and if the number of attention heads is unknown.
    """
    try:
        stated = _settings(library, names, _json(file.with_name(CONFIG)), _json(file.with_name(PREPROCESSOR)))
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{CONFIG} or {PREPROCESSOR} beside {file} does not have the format of {library}"
        ) from error
    assumed, has_layer_scale = [], "blocks.0.scale1" in names
    if stated["heads"] is None:
        stated["heads"] = _usual_heads(width, file)
        assumed.append(f"{stated['heads']} attention heads, the usual number for width {width}")
    if stated["mean"] is None and stated["std"] is None:
        # DeiT-III and DINOv2 have LayerScale, and the statistics of ImageNet.
        stated |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if has_layer_scale else {"mean": HALF, "std": HALF}
        statistics = "mean and standard deviation of ImageNet" if has_layer_scale else "mean and standard deviation 0.5"
        assumed.append(f"images normalised with {statistics}")
    if stated["norm_eps"] is None:
        stated["norm_eps"] = DINOV2_EPS if has_layer_scale else TRANSFORMERS_EPS
        assumed.append(f"an ε of {stated['norm_eps']:g} in every LayerNorm")
    return stated, tuple(f"{fact} (assumed: no file sets it)" for fact in assumed)


def _json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty object if the file is missing.

    Raises ValueError if the file is not JSON, or if its value is not an object.
    """
    if not file.is_file():
        return {}
    loaded = json.loads(file.read_bytes())
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} holds no object")
    return loaded


def _settings(
    library: str, names: Mapping[str, str], config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns fields of a ViTConfig, read from the JSON files beside the weights. A value that no file sets is None.

    library: "timm", "transformers" or "torchvision". names: maps the name of each tensor in DualTokenViT to its name in
    the file. config, preprocessor: the content of the two JSON files. Raises CheckpointError for a setting that
    DualTokenViT does not support.
    """
    heads = config.get("num_attention_heads")
    if library == "torchvision":
        return {"heads": heads, "pool": "token", "norm_eps": 1e-6, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if library == "transformers":
        _refuse_other_settings(
            config, {"model_type": ("vit", "dinov2", "dinov2_with_registers"), "hidden_act": ("gelu",)}
        )
        mean, std = _normalisation(preprocessor) if preprocessor else (None, None)
        return {"heads": heads, "pool": "token", "norm_eps": config.get("layer_norm_eps"), "mean": mean, "std": std}
    arguments = config.get("model_args") or {}
    _refuse_other_settings(
        arguments,
        {"act_layer": ("gelu",), "norm_layer": ("layernorm",), "block_fn": (), "pool_include_prefix": (False,)},
    )
    has_fc_norm = names.get("norm.weight") == "fc_norm.weight"
    pool = arguments.get("global_pool") or config.get("global_pool") or ("avg" if has_fc_norm else "token")
    if pool not in ("avg", "token"):
        raise CheckpointError(f"{CONFIG} has global_pool {pool!r}: Tureen supports avg and token only")
    statistics = config.get("pretrained_cfg") or config  # older files on the hub have no such section
    return {
        "heads": arguments.get("num_heads", heads),
        "pool": "mean" if pool == "avg" else "token",
        "norm_after_pool": has_fc_norm,
        "norm_eps": 1e-6,
        "mean": statistics.get("mean"),
        "std": statistics.get("std"),
    }


def _refuse_other_settings(config: Mapping[str, Any], supported: Mapping[str, tuple[object, ...]]) -> None:
    for key, values in supported.items():
        if config.get(key) not in (None, *values):
            names = " and ".join(map(repr, values)) or "the default"
            raise CheckpointError(f"{CONFIG} has {key} {config[key]!r}: Tureen supports {names} only")


def _normalisation(preprocessor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Returns the mean and the standard deviation of each channel, for images in [0, 1].

    preprocessor: the settings of an image processor of transformers. Its input is images in [0, 255].
    """
    scale = 255 * preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 255
    if not preprocessor.get("do_normalize", True):
        return [0.0] * 3, [1 / scale] * 3
    mean, std = preprocessor.get("image_mean", HALF), preprocessor.get("image_std", HALF)
    return [value / scale for value in mean], [value / scale for value in std]


def _usual_heads(width: int, file: Path) -> int:
    if width not in HEADS and (width < MIN_KNOWN_WIDTH or width % 64):
        raise CheckpointError(
            f"{file}: the number of attention heads for width {width} is unknown: write "
            f'{{"num_attention_heads": …}} into a {CONFIG} beside it'
        )
    return HEADS.get(width, width // 64)

"""Reads the settings of a third-party ViT from the JSON files beside its weights.

For a setting that no file has, uses the default of the library. Knows nothing about the values of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
ACTIVATIONS = ("gelu", "quick_gelu")


@dataclass(frozen=True)
class Family:
    """The defaults of a family of models.

    mean, std: of images in [0, 1]. statistics: their name for messages. timm_eps, transformers_eps: of LayerNorm, as in
    timm and in the configuration class of transformers.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    statistics: str
    transformers_eps: float
    timm_eps: float = 1e-6


VIT = Family(HALF, HALF, "0.5", transformers_eps=1e-12)
LAYER_SCALE = Family(IMAGENET_MEAN, IMAGENET_STD, "of ImageNet", transformers_eps=1e-6)  # DeiT-III, DINOv2
CLIP = Family(CLIP_MEAN, CLIP_STD, "of CLIP", transformers_eps=1e-5, timm_eps=1e-5)


def library_settings(
    library: str, names: Mapping[str, str], file: Path, *, width: int, architecture: str | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns fields of a ViTConfig, and a message for the user about each field that no file sets.

    library: "timm", "transformers" or "torchvision". names: maps the name of each tensor in DualTokenViT to its name in
    the file. file: the file of weights. width: of a token. architecture: the name of the model in timm; None: that in
    config.json. Raises CheckpointError for a setting that DualTokenViT does not support, and if the number of attention
    heads or the activation is unknown.
    """
    try:
        config = _json(file.with_name(CONFIG)) | ({} if architecture is None else {"architecture": architecture})
        stated = _settings(library, names, config, _json(file.with_name(PREPROCESSOR)))
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{CONFIG} or {PREPROCESSOR} beside {file} does not have the format of {library}"
        ) from error
    assumed, family = [], _family(names)
    if stated["heads"] is None:
        stated["heads"] = _usual_heads(width, file)
        assumed.append(f"{stated['heads']} attention heads, the usual number for width {width}")
    if stated["mean"] is None and stated["std"] is None:
        stated |= {"mean": family.mean, "std": family.std}
        assumed.append(f"images normalised with mean and standard deviation {family.statistics}")
    if stated["norm_eps"] is None:
        stated["norm_eps"] = family.transformers_eps
        assumed.append(f"an ε of {stated['norm_eps']:g} in every LayerNorm")
    if stated["mlp"] is None:
        if library == "timm":
            raise CheckpointError(
                f"{file}: the activation of this CLIP is unknown: write "
                f'{{"hidden_act": "quick_gelu"}} (that of OpenAI) or {{"hidden_act": "gelu"}} into a {CONFIG} beside it'
            )
        stated["mlp"] = "quick_gelu"
        assumed.append("the activation quick_gelu")
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
    family = _family(names)
    if library == "torchvision":
        heads = config.get("num_attention_heads")
        return {
            "heads": heads,
            "mlp": "gelu",
            "pool": "token",
            "norm_eps": 1e-6,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }
    if library == "transformers":
        config = config.get("vision_config") or config
        clip, others = ("clip", "clip_vision_model"), ("vit", "dinov2", "dinov2_with_registers")
        activations = ACTIVATIONS if family is CLIP else ("gelu",)
        _refuse_other_settings(config, {"model_type": clip if family is CLIP else others, "hidden_act": activations})
        mean, std = _normalisation(preprocessor) if preprocessor else (None, None)
        return {
            "heads": config.get("num_attention_heads"),
            "mlp": config.get("hidden_act", None if family is CLIP else "gelu"),
            "pool": "token",
            "norm_eps": config.get("layer_norm_eps"),
            "mean": mean,
            "std": std,
        }
    arguments = config.get("model_args") or {}
    supported: dict[str, tuple[object, ...]] = {"act_layer": ACTIVATIONS, "norm_layer": ("layernorm",)}
    _refuse_other_settings(arguments, supported | {"block_fn": (), "pool_include_prefix": (False,)})
    has_fc_norm = names.get("norm.weight") == "fc_norm.weight"
    pool = arguments.get("global_pool") or config.get("global_pool") or ("avg" if has_fc_norm else "token")
    if pool not in ("avg", "token"):
        raise CheckpointError(f"{CONFIG} has global_pool {pool!r}: Tureen supports avg and token only")
    statistics = config.get("pretrained_cfg") or config  # older files on the hub have no such section
    return {
        "heads": arguments.get("num_heads", config.get("num_attention_heads")),
        "mlp": _timm_activation(config, arguments, family),
        "pool": "mean" if pool == "avg" else "token",
        "norm_after_pool": has_fc_norm,
        "norm_eps": family.timm_eps,
        "mean": statistics.get("mean"),
        "std": statistics.get("std"),
    }


def _family(names: Mapping[str, str]) -> Family:
    if "norm_pre.weight" in names:
        return CLIP
    return LAYER_SCALE if "blocks.0.scale1" in names else VIT


def _timm_activation(config: Mapping[str, Any], arguments: Mapping[str, Any], family: Family) -> str | None:
    """Returns the activation of a model of timm; None: a model of CLIP without its architecture in config.json."""
    stated = arguments.get("act_layer") or config.get("hidden_act")
    _refuse_other_settings({"hidden_act": stated}, {"hidden_act": ACTIVATIONS})
    if stated is not None or family is not CLIP:
        return stated or "gelu"
    architecture = config.get("architecture")
    if architecture is None:
        return None
    return "quick_gelu" if "quickgelu" in architecture else "gelu"


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

"""Loads third-party weights: plain ViT checkpoints of timm, Hugging Face transformers and torchvision.

Converts a model with one token into a model with two tokens. Until training, the new model has the logits of the
original at every β. If a tensor or a setting cannot be converted exactly, raises an error with the name of this tensor
or setting. Uses none of the three libraries, downloads nothing, and knows nothing about training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from training.checkpoint import CHECKPOINT, MODEL, load_checkpoint
from training.errors import CheckpointError
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from training.tensor_names import UNUSED, our_names
from training.weight_files import Weights, read_tensors

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

# Numbers of heads of the published models that differ from width / 64: ViT-H (Dosovitskiy et al., ICLR 2021, Table 1),
# ViT-g and ViT-G (Zhai et al., CVPR 2022, Table 2).
HEADS = {1280: 16, 1408: 16, 1664: 16}
MIN_KNOWN_WIDTH = 192  # width of ViT-Ti; narrower models follow no rule

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

TRANSFORMERS_EPS = 1e-12  # default of its ViTConfig


@dataclass(frozen=True)
class Pretrained:
    """A model with the weights of a third-party file or of a checkpoint, and the assumptions about the file."""

    model: DualTokenViT
    library: str  # origin of the checkpoint: timm, transformers, torchvision or tureen
    has_new_head: bool  # the classifier is random, because the checkpoint had none that fits
    assumed: tuple[str, ...]  # messages for the user: settings that no file has, with the library's defaults


def load_pretrained(path: Path, *, image_size: int | None = None, classes: int | None = None) -> Pretrained:
    """Returns a dual-token model with the weights of a single-token ViT: float32, on the CPU, all parameters trainable.

    path is one of:
    - a .safetensors file
    - a PyTorch file with another suffix in `training.weight_files`; only its tensors are unpickled
    - a directory with model.safetensors, as on the Hugging Face hub
    - a checkpoint of Tureen

    Reads config.json and preprocessor_config.json beside the weights if they exist. For a setting that no file has,
    uses the default of the library, and lists this default in `assumed`.

    Both tokens start as the class token plus its position embedding. So the logits are those of the original at every
    β, up to float32 rounding.

    image_size: in pixels; None: that of the file. If it differs from that of the file, the position embeddings of the
    patches are resampled. classes: number of classes; None: that of the file. If it differs from that of the file, or
    if the file has no linear classifier, the model has a new classifier. The weights of a new classifier are random,
    from the global random state of torch, because an attack on zero weights would have no gradient.

    Raises CheckpointError if the file cannot be read, if it has a tensor or setting that a plain pre-norm ViT lacks, or
    if Tureen does not support its shape. Raises CheckpointError if the file has no linear classifier and `classes` is
    None.
    """
    source = _read_own(path) if (path / CHECKPOINT).is_file() else _read_third_party(path)
    shape, weights = source.shape, source.weights
    kept_classes = (
        len(weights["head.weight"]) if "head.weight" in weights and "pre_logits.weight" not in weights else None
    )
    if classes is None and kept_classes is None:
        raise CheckpointError(f"{path} has no linear classifier to keep: give the number of classes of a new one")
    shape["classes"] = kept_classes if classes is None else classes
    shape["image_size"] = shape["image_size"] if image_size is None else image_size
    try:
        model = DualTokenViT(ViTConfig.model_validate(shape))
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{path} has a shape that Tureen does not support: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from error
    has_new_head = shape["classes"] != kept_classes
    if has_new_head:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(("head.", "pre_logits."))}
        weights |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    weights["pos_embed"] = resample_positions(weights["pos_embed"], model.config.image_size // model.config.patch_size)
    _require_shapes(weights, model.state_dict(), source.names, path)
    model.load_state_dict(weights)
    return Pretrained(model=model, library=source.library, has_new_head=has_new_head, assumed=source.assumed)


def resample_positions(pos_embed: Tensor, side: int) -> Tensor:
    """Returns the position embeddings of a square of N patches, resampled to side × side patches: (1, side², D).

    pos_embed: (1, N, D), of width D. Uses a bicubic filter with antialiasing, like resample_abs_pos_embed of timm.
    Returns `pos_embed` itself if its side is `side`.
    """
    before = math.isqrt(pos_embed.shape[1])
    if before == side:
        return pos_embed
    grid = pos_embed.unflatten(1, (before, before)).permute(0, 3, 1, 2)  # (1, D, before, before)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2)


@dataclass
class _SourceModel:
    """The converted content of a file of weights or of a checkpoint.

    library, assumed: as in Pretrained. shape: fields of a ViTConfig. weights: float32 tensors by their names in
    DualTokenViT. names: maps the name of each tensor in DualTokenViT to its name in the file.
    """

    library: str
    shape: dict[str, Any]
    weights: Weights
    names: dict[str, str]
    assumed: tuple[str, ...]


def _read_own(path: Path) -> _SourceModel:
    model = load_checkpoint(path).model
    if not isinstance(model, DualTokenViT):
        raise CheckpointError(f"{path} is a ResNet: training can start from a Vision Transformer only")
    return _SourceModel("tureen", model.config.model_dump(), model.state_dict(), names={}, assumed=())


def _read_third_party(path: Path) -> _SourceModel:
    file = path / MODEL if path.is_dir() else path
    tensors = read_tensors(file)
    library, names = our_names(tensors, file)
    weights = {ours: tensors[name].to(torch.float32) for ours, name in names.items() if not ours.startswith(UNUSED)}
    try:
        stated = _settings(library, names, _json(file.with_name(CONFIG)), _json(file.with_name(PREPROCESSOR)))
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{CONFIG} or {PREPROCESSOR} beside {file} does not have the format of {library}"
        ) from error
    shape = _fold_weights(weights, file)
    assumed = []
    if stated["heads"] is None:
        stated["heads"] = _usual_heads(shape["width"], file)
        assumed.append(f"{stated['heads']} attention heads, the usual number for width {shape['width']}")
    if stated["mean"] is None and stated["std"] is None:
        stated |= {"mean": HALF, "std": HALF}
        assumed.append("images normalised with mean 0.5 and standard deviation 0.5")
    if stated["norm_eps"] is None:
        stated["norm_eps"] = TRANSFORMERS_EPS
        assumed.append(f"an ε of {TRANSFORMERS_EPS:g} in every LayerNorm")
    return _SourceModel(
        library, shape | stated, weights, names, tuple(f"{fact} (assumed: no file sets it)" for fact in assumed)
    )


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
        _refuse_other_settings(config, {"model_type": "vit", "hidden_act": "gelu"})
        mean, std = _normalisation(preprocessor) if preprocessor else (None, None)
        return {"heads": heads, "pool": "token", "norm_eps": config.get("layer_norm_eps"), "mean": mean, "std": std}
    arguments = config.get("model_args") or {}
    _refuse_other_settings(
        arguments, {"act_layer": "gelu", "norm_layer": "layernorm", "block_fn": None, "pool_include_prefix": False}
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


def _refuse_other_settings(config: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    for key, value in plain.items():
        if config.get(key) not in (None, value):
            raise CheckpointError(f"{CONFIG} has {key} {config[key]!r}: Tureen supports {value!r} only")


def _normalisation(preprocessor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Returns the mean and the standard deviation of each channel, for images in [0, 1].

    preprocessor: the settings of an image processor of transformers. Its input is images in [0, 255].
    """
    scale = 255 * preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 255
    if not preprocessor.get("do_normalize", True):
        return [0.0] * 3, [1 / scale] * 3
    mean, std = preprocessor.get("image_mean", HALF), preprocessor.get("image_std", HALF)
    return [value / scale for value in mean], [value / scale for value in std]


def _fold_weights(weights: Weights, file: Path) -> dict[str, Any]:
    """Converts the tokens, the position embeddings and the query, key and value weights to those of DualTokenViT.

    Changes `weights` in place. Returns the fields of a ViTConfig that follow from the shapes. file: the path for error
    messages. Raises CheckpointError if the shapes are not those of a plain pre-norm ViT.
    """
    for name, dimensions in {"patch_embed.weight": 4, "cls_token": 3, "positions": 3, "blocks.0.fc1.weight": 2}.items():
        if name not in weights or weights[name].ndim != dimensions:
            raise CheckpointError(f"{file} has no {name} of {dimensions} dimensions: it is not a plain pre-norm ViT")
    width, _, patch_size, _ = weights["patch_embed.weight"].shape
    token, positions = weights.pop("cls_token"), weights.pop("positions")
    length = positions.shape[1]
    has_class_position = math.isqrt(length) ** 2 != length  # false for FlexiViT
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


def _usual_heads(width: int, file: Path) -> int:
    if width not in HEADS and (width < MIN_KNOWN_WIDTH or width % 64):
        raise CheckpointError(
            f"{file}: the number of attention heads for width {width} is unknown: write "
            f'{{"num_attention_heads": …}} into a {CONFIG} beside it'
        )
    return HEADS.get(width, width // 64)


def _require_shapes(weights: Weights, expected: Weights, names: Mapping[str, str], file: Path) -> None:
    """Raises CheckpointError if a tensor in `weights` is missing, or is not in `expected` with the same shape.

    names: maps the name of each tensor in DualTokenViT to its name in the file, for the error message.
    """
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise CheckpointError(f"{file} has no tensor for {missing[0]}: it is incomplete, or not a plain pre-norm ViT")
    for name, tensor in weights.items():
        if name not in expected or tensor.shape != expected[name].shape:
            expectation = f"{tuple(expected[name].shape)} is expected" if name in expected else "none is expected"
            raise CheckpointError(
                f"{file}: the tensor {names.get(name, name)!r} is {tuple(tensor.shape)} where {expectation}: "
                "it is incomplete, or not a plain pre-norm ViT"
            )

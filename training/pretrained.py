"""Loads third-party weights: plain ViT checkpoints of timm, Hugging Face transformers and torchvision.

The resulting dual-token model has the logits of the original at every β until it is trained. A tensor or setting that
cannot be converted exactly raises an error that names it. Uses none of the three libraries, downloads nothing, and
knows nothing about training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from training.checkpoint import CHECKPOINT, MODEL, load_checkpoint
from training.errors import CheckpointError
from training.models.vit import DualTokenViT, ViTConfig

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

# Numbers of heads of the published models that differ from width / 64: ViT-H (Dosovitskiy et al., ICLR 2021, Table 1),
# ViT-g and ViT-G (Zhai et al., CVPR 2022, Table 2).
HEADS = {1280: 16, 1408: 16, 1664: 16}
MIN_KNOWN_WIDTH = 192  # width of ViT-Ti; narrower models follow no rule

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin")
# Keys of the weights in files of training scripts, such as that of DeiT, in order of preference.
WRAPPINGS = ("state_dict", "model")
ENTRIES_SHOWN = 6
# Files that are not weights, by their first bytes.
NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: run `git lfs pull`",
    b"<!DOCTYPE": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"\x89HDF": "an HDF5 file of Keras: convert it to a state dict of PyTorch",
    b"\x1f\x8b": "a gzip archive: unpack it first",
}
UNUSED = "unused"
TRANSFORMERS_EPS = 1e-12  # default of its ViTConfig

Weights = dict[str, Tensor]

# Names of tensors in the library and in DualTokenViT. `*` is the number of the block; a name without .weight or .bias
# covers both. A checkpoint may hold no other tensor. `cls_token` and `positions` become the two tokens and pos_embed;
# q, k and v become qkv.
TIMM = {
    "cls_token": "cls_token",
    "pos_embed": "positions",
    "patch_embed.proj": "patch_embed",
    "blocks.*.norm1": "blocks.*.norm1",
    "blocks.*.attn.qkv": "blocks.*.qkv",
    "blocks.*.attn.proj": "blocks.*.proj",
    "blocks.*.norm2": "blocks.*.norm2",
    "blocks.*.mlp.fc1": "blocks.*.fc1",
    "blocks.*.mlp.fc2": "blocks.*.fc2",
    "norm": "norm",
    "fc_norm": "norm",
    "pre_logits.fc": "pre_logits",
    "head": "head",
}
TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "patch_embed",
    # names in files, the same in every version of transformers
    "encoder.layer.*.layernorm_before": "blocks.*.norm1",
    "encoder.layer.*.attention.attention.query": "blocks.*.q",
    "encoder.layer.*.attention.attention.key": "blocks.*.k",
    "encoder.layer.*.attention.attention.value": "blocks.*.v",
    "encoder.layer.*.attention.output.dense": "blocks.*.proj",
    "encoder.layer.*.layernorm_after": "blocks.*.norm2",
    "encoder.layer.*.intermediate.dense": "blocks.*.fc1",
    "encoder.layer.*.output.dense": "blocks.*.fc2",
    # names in memory, from version 5 of transformers
    "layers.*.layernorm_before": "blocks.*.norm1",
    "layers.*.attention.q_proj": "blocks.*.q",
    "layers.*.attention.k_proj": "blocks.*.k",
    "layers.*.attention.v_proj": "blocks.*.v",
    "layers.*.attention.o_proj": "blocks.*.proj",
    "layers.*.layernorm_after": "blocks.*.norm2",
    "layers.*.mlp.fc1": "blocks.*.fc1",
    "layers.*.mlp.fc2": "blocks.*.fc2",
    "layernorm": "norm",
    "pooler.dense": UNUSED,  # part of ViTModel; the classifier does not use it
    "classifier": "head",
}
TORCHVISION = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "positions",
    "conv_proj": "patch_embed",
    "encoder.layers.encoder_layer_*.ln_1": "blocks.*.norm1",
    "encoder.layers.encoder_layer_*.self_attention.in_proj_weight": "blocks.*.qkv.weight",
    "encoder.layers.encoder_layer_*.self_attention.in_proj_bias": "blocks.*.qkv.bias",
    "encoder.layers.encoder_layer_*.self_attention.out_proj": "blocks.*.proj",
    "encoder.layers.encoder_layer_*.ln_2": "blocks.*.norm2",
    "encoder.layers.encoder_layer_*.mlp.0": "blocks.*.fc1",
    "encoder.layers.encoder_layer_*.mlp.3": "blocks.*.fc2",
    "encoder.layers.encoder_layer_*.mlp.linear_1": "blocks.*.fc1",  # in the files torchvision publishes
    "encoder.layers.encoder_layer_*.mlp.linear_2": "blocks.*.fc2",
    "encoder.ln": "norm",
    "heads.pre_logits": "pre_logits",
    "heads.head": "head",
}
LIBRARIES = {  # by the prefix of the names of the patch embedding
    "patch_embed.": ("timm", TIMM),
    "embeddings.patch_embeddings.": ("transformers", TRANSFORMERS),
    "conv_proj.": ("torchvision", TORCHVISION),
}


@dataclass(frozen=True)
class Pretrained:
    """A model with the weights of another checkpoint, and the assumptions that were made to load it."""

    model: DualTokenViT
    library: str  # origin of the checkpoint: timm, transformers, torchvision or tureen
    has_new_head: bool  # the classifier is random, because the checkpoint had none that fits
    assumed: tuple[str, ...]  # messages for the user: settings that no file has, with the library's defaults


def load_pretrained(path: Path, *, image_size: int | None = None, classes: int | None = None) -> Pretrained:
    """Returns a dual-token model with the weights of a single-token ViT: float32, on the CPU, all parameters trainable.

    path is one of:
    - a .safetensors file
    - a file with another of SUFFIXES, of which only tensors are unpickled
    - a directory with model.safetensors, as on the Hugging Face hub
    - a checkpoint of Tureen

    config.json and preprocessor_config.json beside the weights are read if they exist. Otherwise the defaults of the
    library hold, and `assumed` lists them.

    Both tokens start as the class token plus its position embedding, so the logits are those of the original at every
    β, up to float32 rounding. image_size: pixels; if it differs from the checkpoint, the position embeddings of the
    patches are resampled. classes: K. If it differs from the checkpoint, or if the classifier is not linear, the head
    gets random weights from the global random state of torch. Zeros would give an attack no gradient.

    Raises CheckpointError for an unreadable file, and for any tensor or setting that a plain pre-norm ViT lacks.
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
    """Returns position embeddings (1, N, D) of a square of patches, resampled for side × side patches: (1, side², D).

    Bicubic with antialiasing, like resample_abs_pos_embed of timm; unchanged if the side is the same.
    """
    before = math.isqrt(pos_embed.shape[1])
    if before == side:
        return pos_embed
    grid = pos_embed.unflatten(1, (before, before)).permute(0, 3, 1, 2)  # (1, D, before, before)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2)


@dataclass
class _SourceModel:
    """The converted content of a checkpoint.

    shape: fields of a ViTConfig. weights: float32 tensors by their names in DualTokenViT. names: their names in the
    file, by the same keys.
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
    tensors = _read_tensors(file)
    library, names = _our_names(tensors, file)
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


def _read_tensors(file: Path) -> Weights:
    """Returns the tensors of a file by their names in the file; raises CheckpointError."""
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: give a file of weights, or a directory with {MODEL}")
    if not file.name.lower().endswith(SUFFIXES):
        raise CheckpointError(f"{file} has an unsupported suffix: use {', '.join(SUFFIXES)}")
    with file.open("rb") as opened:
        head = opened.read(512)
    if not head:
        raise CheckpointError(f"{file} is empty")
    if found := next((kind for start, kind in NOT_WEIGHTS.items() if head.startswith(start)), None):
        raise CheckpointError(f"{file} is {found}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{file} is a tar archive: unpack it, and give the file of weights in it")
    try:
        if file.name.lower().endswith(".safetensors"):
            loaded: Any = safetensors.torch.load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises exceptions of many types
        if objects := _unsafe_globals(file):
            raise CheckpointError(
                f"{file} holds more than tensors: {_joined_names(objects)}. Reading these would run code of the file. "
                "If you trust it, load it and save only the state_dict() of the model, preferably as .safetensors"
            ) from error
        raise CheckpointError(f"{file} cannot be read: it is damaged, or not a file of PyTorch") from error
    weights = _state_dict(loaded)
    if weights is None:
        entries = [f"{key} ({_kind(value)})" for key, value in loaded.items()] if isinstance(loaded, dict) else []
        raise CheckpointError(
            f"{file} holds no state dict, but {_joined_names(entries) or _kind(loaded)}: save the state_dict() of the "
            "model"
        )
    return weights


def _state_dict(loaded: object) -> Weights | None:
    """Returns the state dict in `loaded`; None if it has none, or several without a usual key.

    It is `loaded` itself, its entry with a key of WRAPPINGS, or else its only entry that is a state dict.
    """
    if not isinstance(loaded, dict):
        return None
    if _is_state_dict(loaded):
        return loaded
    found = [key for key, value in loaded.items() if _is_state_dict(value)]
    usual = [key for key in WRAPPINGS if key in found]
    chosen = usual[0] if usual else found[0] if len(found) == 1 else None
    return None if chosen is None else loaded[chosen]


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _unsafe_globals(file: Path) -> list[str]:
    """Returns the classes and functions that a pickle needs besides those of tensors; empty if it cannot be read."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 - a damaged pickle raises exceptions of many types
        return []


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if _is_state_dict(value):
        assert isinstance(value, dict)
        return f"{len(value)} tensors"
    return type(value).__name__


def _joined_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - ENTRIES_SHOWN} more" if len(names) > ENTRIES_SHOWN else ""
    return ", ".join(names[:ENTRIES_SHOWN]) + more


def _json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, empty if there is no file; raises ValueError if it holds no object."""
    if not file.is_file():
        return {}
    loaded = json.loads(file.read_bytes())
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} holds no object")
    return loaded


def _our_names(tensors: Iterable[str], file: Path) -> tuple[str, dict[str, str]]:
    """Returns the library that names its tensors so, and the name in the file for each name in DualTokenViT.

    Raises CheckpointError for an unknown library, and for a tensor that does not exist in a plain ViT.
    """
    found = next(((name, marker) for marker in LIBRARIES for name in tensors if marker in name), None)
    if found is None:
        raise CheckpointError(
            f"{file} is no Vision Transformer of timm, transformers or torchvision: none of its tensors has a name "
            f"with {', '.join(LIBRARIES)}…"
        )
    marked, marker = found
    prefix = marked[: marked.index(marker)]  # "vit." in transformers, for all but the classifier
    library, table = LIBRARIES[marker]
    names: dict[str, str] = {}
    for name in sorted(tensors):
        ours = _our_name(name.removeprefix(prefix), table)
        if ours is None or ours in names:
            raise CheckpointError(
                f"{file}: the tensor {name!r} does not exist in a plain pre-norm ViT, and the model needs it: "
                f"choose a model of {library} without it"
            )
        names[ours] = name
    return library, names


def _our_name(name: str, table: Mapping[str, str]) -> str | None:
    block = re.search(r"\d+", name)  # the first number is that of the block in all three libraries
    general = re.sub(r"\d+", "*", name, count=1)
    stem, _, leaf = general.rpartition(".")
    if general in table:
        ours = table[general]
    elif stem in table and leaf in ("weight", "bias"):
        ours = f"{table[stem]}.{leaf}"
    else:
        return None
    return ours if block is None else ours.replace("*", block.group())


def _settings(
    library: str, names: Mapping[str, str], config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields of a ViTConfig that the files beside the tensors set. A value that no file sets is None.

    Raises CheckpointError for a setting that DualTokenViT does not support.
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
    """Returns mean and standard deviation for images in [0, 1], from an image processor for images in [0, 255]."""
    scale = 255 * preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 255
    if not preprocessor.get("do_normalize", True):
        return [0.0] * 3, [1 / scale] * 3
    mean, std = preprocessor.get("image_mean", HALF), preprocessor.get("image_std", HALF)
    return [value / scale for value in mean], [value / scale for value in std]


def _fold_weights(weights: Weights, file: Path) -> dict[str, Any]:
    """Converts tokens, position embeddings and qkv in place; returns the fields of a ViTConfig from the shapes."""
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
    """Joins the linear maps of queries, keys and values into one, in that order; a missing bias becomes 0."""
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
    """Raises CheckpointError for a tensor that is missing, unknown or of a wrong shape, with its name in the file."""
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

"""Loads third-party weights: plain ViT checkpoints of timm, Hugging Face transformers and torchvision.

Converts a model with one token into a model with two tokens. Until training, the new model has the logits of the
original at every β. If a tensor or a setting cannot be converted exactly, raises an error with the name of this tensor
or setting. Uses none of the three libraries, and knows nothing about training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from training.checkpoint import CHECKPOINT, load_checkpoint
from training.errors import CheckpointError
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from training.weights.library_settings import library_settings
from training.weights.tensor_names import our_names
from training.weights.weight_files import Weights, read_tensors
from training.weights.weight_folding import fold_weights
from training.weights.weight_sources import LocatedWeights, locate_weights


@dataclass(frozen=True)
class Pretrained:
    """A model with the weights of a third-party file or of a checkpoint, and the assumptions about the file."""

    model: DualTokenViT
    library: str  # origin of the checkpoint: timm, transformers, torchvision or tureen
    has_new_head: bool  # the classifier is random, because the checkpoint had none that fits
    assumed: tuple[str, ...]  # messages for the user: settings that no file has, with the library's defaults


def load_pretrained(
    path: Path | str | LocatedWeights, *, image_size: int | None = None, classes: int | None = None
) -> Pretrained:
    """Returns a dual-token model with the weights of a single-token ViT: float32, on the CPU, all parameters trainable.

    path is one of:
    - a .safetensors file
    - a PyTorch file with another suffix in `training.weights.weight_files`; only its tensors are unpickled
    - a directory with model.safetensors or pytorch_model.bin, as on the Hugging Face hub
    - a checkpoint of Tureen
    - an address on the Hugging Face hub, hf-hub:OWNER/NAME[@REVISION] or timm:NAME; downloads the files
    - a result of `locate_weights`

    Reads config.json and preprocessor_config.json beside the weights if they exist. For a setting that no file has,
    uses the default of the library, and lists this default in `assumed`.

    Both tokens start as the class token plus its position embedding. LayerScale becomes part of the weights of
    attention and MLP. So the logits are those of the original at every β, up to float32 rounding.

    image_size: in pixels; None: that of the file. If it differs from that of the file, the position embeddings of the
    patches are resampled. classes: number of classes; None: that of the file. If it differs from that of the file, or
    if the file has no linear classifier, the model has a new classifier. The weights of a new classifier are random,
    from the global random state of torch, because an attack on zero weights would have no gradient.

    Raises CheckpointError if the file cannot be read, if it has a tensor or setting that a plain pre-norm ViT lacks, or
    if Tureen does not support its shape. Raises CheckpointError if the file has no linear classifier of one token and
    `classes` is None.
    """
    located = path if isinstance(path, LocatedWeights) else locate_weights(path)
    path = located.location
    source = _read_own(Path(path)) if (Path(path) / CHECKPOINT).is_file() else _read_third_party(located)
    shape, weights = source.shape, source.weights
    kept_classes = _kept_classes(weights, shape["width"])
    if classes is None and kept_classes is None:
        raise CheckpointError(
            f"{path} has no linear classifier of one token to keep: give the number of classes of a new one"
        )
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


def _read_third_party(located: LocatedWeights) -> _SourceModel:
    file = located.file
    tensors = read_tensors(file)
    library, names = our_names(tensors, file)
    weights = {ours: tensors[name].to(torch.float32) for ours, name in names.items()}
    shape = fold_weights(weights, file)
    stated, assumed = library_settings(library, names, file, width=shape["width"], architecture=located.architecture)
    return _SourceModel(library, stated | shape, weights, names, assumed)


def _kept_classes(weights: Weights, width: int) -> int | None:
    """Returns the number of classes of the classifier in `weights`; None if DualTokenViT cannot have this classifier.

    This is so behind a hidden layer, and for the classifier of DINOv2 in transformers, which reads the class token and
    the mean of the patches side by side.
    """
    head = weights.get("head.weight")
    if head is None or "pre_logits.weight" in weights or head.shape[1:] == (2 * width,):
        return None
    return len(head)


def _require_shapes(weights: Weights, expected: Weights, names: Mapping[str, str], file: Path | str) -> None:
    """Raises CheckpointError if a tensor in `weights` is missing, or is not in `expected` with the same shape.

    names: maps the name of each tensor in DualTokenViT to its name in the file, for the error message.
    """
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        reason = "has RMSNorm, which Tureen does not support" if "norm" in missing[0] else "not a plain pre-norm ViT"
        raise CheckpointError(f"{file} has no tensor for {missing[0]}: it is incomplete, or {reason}")
    for name, tensor in weights.items():
        if name not in expected or tensor.shape != expected[name].shape:
            expectation = f"{tuple(expected[name].shape)} is expected" if name in expected else "none is expected"
            raise CheckpointError(
                f"{file}: the tensor {names.get(name, name)!r} is {tuple(tensor.shape)} where {expectation}: "
                "it is incomplete, or not a plain pre-norm ViT"
            )

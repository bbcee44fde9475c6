"""Loads a checkpoint or a bundle as PyTorch modules, one for each β, for attacks and other research in PyTorch.

The module for a β is the model with the soup of both tokens at this β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from export.errors import ExportError
from export.graph import can_fold, unfolded_embedding
from training.checkpoint import load_checkpoint
from training.distributed import best_device
from training.errors import RecipeError
from training.evaluation.accuracy import forward_at_beta
from training.models.registry import Model
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from training.recipes import load_recipe
from tureen.bundle.bundle import MANIFEST, Bundle, load_bundle
from tureen.preprocess import PreprocessSpec
from tureen.remote.locate import locate_bundle


@dataclass(frozen=True)
class TorchSoup:
    """A model with a clean and a robust mode, in PyTorch and in eval mode. Its weights do not require gradients."""

    model: Model
    labels: list[str]  # K names, in the order of the logits
    preprocess: PreprocessSpec  # how an image file becomes an input

    def at(self, beta: float) -> nn.Module:
        """Returns the model at `beta` as a module from images float (B, 3, H, W) in [0, 1] to logits (B, K).

        RobustBench and AutoAttack require such a module. H and W are `preprocess.image_size`. The module is
        differentiable with respect to the images. All modules of one `TorchSoup` share their weights, and are in eval
        mode. beta: any finite number; outside [0, 1] the tokens are extrapolated.

        Raises ValueError if `beta` is not finite. The module raises ValueError for images of another shape or dtype.
        """
        if isinstance(beta, str) or not math.isfinite(beta):
            raise ValueError(f"β must be a finite number, not {beta!r}")
        return _SoupAtBeta(self.model, float(beta), self.preprocess.image_size)


class _SoupAtBeta(nn.Module):
    """The model at one β, as a function of images alone."""

    def __init__(self, model: Model, beta: float, size: int) -> None:
        super().__init__()
        self.model, self.beta, self.size = model, beta, size
        # A caller may restore the mode of this module, and with it that of the shared model.
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        shape = (3, self.size, self.size)
        if images.ndim != 4 or images.shape[1:] != shape or not images.is_floating_point():
            raise ValueError(
                f"images must be float (B, {', '.join(map(str, shape))}) in [0, 1], not {images.dtype} "
                f"{tuple(images.shape)}"
            )
        return forward_at_beta(self.model, self.beta)(images)


def load_torch(path: Path | str) -> TorchSoup:
    """Returns the model of a checkpoint or a bundle, on the GPU if the machine has one.

    path: directory of the checkpoint or bundle, or name of an example bundle. Raises CheckpointError or BundleError if
    there is neither at `path`, or if its files are damaged. Raises ExportError, as `model_of_bundle` does, if the model
    of a bundle cannot be rebuilt in PyTorch.
    """
    path = locate_bundle(path, must_exist=False)
    if (path / MANIFEST).exists():
        bundle = load_bundle(path)
        model: Model = model_of_bundle(bundle)
        labels, preprocess = bundle.manifest.labels, bundle.manifest.preprocess
    else:
        checkpoint = load_checkpoint(path)
        model, labels, preprocess = checkpoint.model, checkpoint.labels, checkpoint.preprocess
    return TorchSoup(model.to(best_device()), labels, preprocess)


def model_of_bundle(bundle: Bundle) -> DualTokenViT:
    """Returns the model of a bundle in PyTorch, on the CPU, with the weights in the bundle's graph and its two tokens.

    Raises ExportError if the manifest gives neither the shape of the model nor its recipe, or if the graph does not
    have this shape.
    """
    model = DualTokenViT(_model_shape(bundle))
    try:
        weights = _graph_weights(bundle.graph, model)
        weights |= {f"{name}_token": torch.from_numpy(vector) for name, vector in bundle.tokens.items()}
        model.load_state_dict(weights)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"{bundle.path} holds another model than its manifest says: {model.config}") from error
    return model.eval().requires_grad_(False)


def _model_shape(bundle: Bundle) -> ViTConfig:
    """Returns the shape of the model, from the manifest or from the recipe that the manifest names.

    A bundle of an earlier version of Tureen has only the name of the recipe. Raises ExportError if the manifest has
    neither the shape nor the name of a recipe, or if the model is not a ViT.
    """
    manifest = bundle.manifest
    try:
        if "model" in manifest.provenance:
            return ViTConfig.model_validate(manifest.provenance["model"])
        shape = load_recipe(str(manifest.provenance.get("recipe"))).model
    except (RecipeError, ValidationError) as error:
        raise ExportError(f"the manifest of {bundle.path} does not give the shape of the model") from error
    if not isinstance(shape, ViTConfig):
        raise ExportError(f"{bundle.path} holds a model that is not a ViT")
    return shape.model_copy(update={"classes": len(manifest.labels), "image_size": manifest.preprocess.image_size})


def _graph_weights(graph: bytes, model: DualTokenViT) -> dict[str, Tensor]:
    """Returns the state dict of the model, without its tokens, from the bytes of an ONNX graph that torch exported.

    Identifies the weights of matrix products by their order, because torch transposes them and replaces their names.
    Finds all other tensors by name. Raises ValueError if the graph and the model have different numbers of matrix
    products. Raises KeyError if the graph has no patch embedding.
    """
    proto = onnx.load_from_string(graph).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    products = [node for node in proto.node if node.op_type == "MatMul" and node.input[1] in arrays]
    matrices: list[NDArray[np.float32]] = [arrays[node.input[1]].T for node in products]
    parts = ("qkv", "proj", "fc1", "fc2")
    order = [f"blocks.{i}.{part}.weight" for i in range(model.config.depth) for part in parts]
    weights = dict(zip(order, matrices, strict=True))
    for name in model.state_dict():
        if f"model.{name}" in arrays:
            weights[name] = arrays[f"model.{name}"]
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    if can_fold(model):
        folded = (torch.from_numpy(np.array(arrays[f"embed.{name}"])) for name in ("weight", "bias"))
        tensors["patch_embed.weight"], tensors["patch_embed.bias"] = unfolded_embedding(model, *folded)
    return tensors

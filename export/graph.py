"""Exports the shared backbone as one ONNX graph, with the class token as an input.

    pixels uint8 (B, H, W, 3), cls_token float32 (B, D)  ->  logits float32 (B, K)

B is the number of images, D the width of a token, and K the number of classes. The graph itself casts the pixels to
float, changes their layout and normalises them. This module knows nothing about engines or the files of a bundle.
"""

from __future__ import annotations

import copy
import logging
import warnings

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError
from training.models.registry import Model
from training.models.vit import DualTokenViT, images_from_pixels
from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.manifest import Precision

OPSET = 20
MAX_BATCH = 1024
TRACE_BATCH = 2  # the exporter would treat a batch of one as a constant

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MID_GREY = 127.5
MAX_WEIGHTS_BYTES = 1_500_000_000  # a protobuf message, and so a single ONNX file, has at most 2 GiB


class Backbone(nn.Module):
    """The model as a function of the graph's inputs: uint8 pixels, and one token for each image. Computes in fp32."""

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        return self.model.with_tokens(images_from_pixels(pixels), cls_token)


class CompiledBackbone(nn.Module):
    """The backbone as it is exported: blocks and classifier in `precision`, patch embedding in float32.

    The patch embedding stays in float32 for two reasons. ONNX has no bf16 convolution before opset 22, and rounding
    raw pixels costs more accuracy than any other rounding. If `can_fold(model)` is True, the weights of the patch
    embedding contain the normalisation of the pixels by mean and standard deviation.
    """

    def __init__(self, model: DualTokenViT, precision: Precision = "fp32") -> None:
        """Raises ExportError if the precision is not fp32, fp16 or bf16. `export.quantization` builds int8 graphs."""
        super().__init__()
        if precision not in DTYPES:
            raise ExportError(f"torch has no {precision}: choose {', '.join(DTYPES)}")
        self.dtype = DTYPES[precision]
        self.embed = FoldedEmbedding(model) if can_fold(model) else NormalisedEmbedding(model)
        self.model = model if precision == "fp32" else copy.deepcopy(model).to(self.dtype)

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        # The cast comes first: TensorRT supports no other operation on uint8.
        patches = self.embed(pixels.to(torch.float32).permute(0, 3, 1, 2))
        return self.model.with_patches(patches.to(self.dtype), cls_token).to(torch.float32)


class NormalisedEmbedding(nn.Module):
    """Normalises images, float32 (B, 3, H, W) in [0, 255], and then embeds their patches."""

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        self.mean, self.std, self.patch_embed = model.mean, model.std, model.patch_embed

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.patch_embed((images / 255 - self.mean) / self.std)
        return patches


class FoldedEmbedding(nn.Conv2d):
    """Embeds the patches of images, float32 (B, 3, H, W) in [0, 255], with weights that contain the normalisation.

    The input of the convolution is pixels − 127.5, because these values are exact in bf16. With pixels from 0 to 255,
    two large terms, of the mean and of the bias, would cancel, and bf16 would lose precision.
    """

    def __init__(self, model: DualTokenViT) -> None:
        embed = model.patch_embed
        assert isinstance(embed, nn.Conv2d)
        assert embed.bias is not None
        super().__init__(3, embed.out_channels, model.config.patch_size, model.config.patch_size)
        mean, std, weight = model.mean.double(), model.std.double(), embed.weight.double()
        offset = (weight * (0.5 - mean) / std).sum(dim=(1, 2, 3))
        self.weight = nn.Parameter((weight / (255 * std)).float(), requires_grad=False)
        self.bias = nn.Parameter((embed.bias.double() + offset).float(), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - MID_GREY)


def unfolded_embedding(model: DualTokenViT, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weight and the bias of the patch embedding of `model`, float32, computed from a `FoldedEmbedding`.

    weight, bias: those of the `FoldedEmbedding`. This function removes the normalisation that they contain.
    """
    mean, std = model.mean.double(), model.std.double()
    original = weight.double() * (255 * std)
    offset = (original * (0.5 - mean) / std).sum(dim=(1, 2, 3))
    return original.float(), (bias.double() - offset).float()


def can_fold(model: DualTokenViT) -> bool:
    """Returns whether the weights of the patch embedding can contain the normalisation without an error.

    This is not possible for a convolutional stem. A stem pads images with zeros after the normalisation. Padding with
    zeros before the normalisation gives another result.
    """
    return isinstance(model.patch_embed, nn.Conv2d)


def require_exportable(model: Model) -> DualTokenViT:
    """Returns `model`. Raises ExportError if its clean and robust mode do not differ only in the class token."""
    if not isinstance(model, DualTokenViT) or model.config.adapter != "token":
        raise ExportError(
            f"the model's adapter is {model.config.adapter!r}: only a class token can be an input of the graph"
        )
    return model


def onnx_graph(model: DualTokenViT, precision: Precision = "fp32", *, opset: int = OPSET) -> bytes:
    """Returns the backbone of `model` as the bytes of an ONNX file. Its two inputs share one dynamic batch axis.

    precision: that of blocks and classifier. The dtypes of inputs and logits are the same in every precision. Raises
    ExportError if the weights exceed MAX_WEIGHTS_BYTES, if the precision is int8, or if the exporter changes an input
    or output.
    """
    config = model.config
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_WEIGHTS_BYTES:
        raise ExportError(f"the backbone has {size:,} bytes of weights; a bundle holds at most {MAX_WEIGHTS_BYTES:,}")
    pixels = torch.zeros(TRACE_BATCH, config.image_size, config.image_size, 3, dtype=torch.uint8)
    tokens = torch.zeros(TRACE_BATCH, config.width)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter logs each missing operator library
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter about its internals
        program = torch.onnx.export(
            CompiledBackbone(model, precision).eval(),
            (pixels, tokens),
            input_names=[PIXELS_INPUT, TOKEN_INPUT],
            output_names=[LOGITS_OUTPUT],
            dynamic_shapes={"pixels": {0: batch}, "cls_token": {0: batch}},
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    proto = program.model_proto
    _strip_metadata(proto)
    _check_interface(proto, config.image_size, config.width, config.classes)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Removes the metadata that the exporter added, because they contain stack traces with paths of this machine."""
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


def _check_interface(proto: onnx.ModelProto, image_size: int, width: int, classes: int) -> None:
    """Raises ExportError unless all inputs and outputs of the graph have the names, dtypes and shapes of a bundle.

    The check is needed because the exporter may replace the dynamic batch axis by a constant without a message.
    """
    expected = {
        PIXELS_INPUT: (onnx.TensorProto.UINT8, ["batch", image_size, image_size, 3]),
        TOKEN_INPUT: (onnx.TensorProto.FLOAT, ["batch", width]),
        LOGITS_OUTPUT: (onnx.TensorProto.FLOAT, ["batch", classes]),
    }
    found = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*proto.graph.input, *proto.graph.output)
    }
    if found != expected:
        raise ExportError(f"the exporter changed the graph's interface: expected {expected}, found {found}")

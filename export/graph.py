"""The shared backbone as one ONNX graph, its class token an input.

    pixels uint8 (B, H, W, 3), cls_token float32 (B, D)  ->  logits float32 (B, K)

Cast, layout change and normalisation are inside. Knows nothing about engines or bundles' files.
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
TRACE_BATCH = 2  # a batch of one would be taken for a constant

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MID_GREY = 127.5
MAX_WEIGHTS_BYTES = 1_500_000_000  # protobuf, and so a single ONNX file, ends at 2 GiB


class Backbone(nn.Module):
    """The model with the bundle's inputs: uint8 pixels in NHWC, one token a row. In fp32, as PyTorch computes it."""

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        return self.model.with_tokens(images_from_pixels(pixels), cls_token)


class CompiledBackbone(nn.Module):
    """`Backbone` as engines compile it: normalisation folded away where that is exact, blocks in a precision.

    Images and patch embedding stay float32, and what comes of them is cast once: ONNX has no bf16 convolution before
    opset 22, and raw pixels are where rounding costs most.
    """

    def __init__(self, model: DualTokenViT, precision: Precision = "fp32") -> None:
        """Raises ExportError for a precision that is none of torch's."""
        super().__init__()
        if precision not in DTYPES:
            raise ExportError(f"torch has no {precision}: choose {', '.join(DTYPES)}")
        self.dtype = DTYPES[precision]
        self.embed = FoldedEmbedding(model) if can_fold(model) else NormalisedEmbedding(model)
        self.model = model if precision == "fp32" else copy.deepcopy(model).to(self.dtype)

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        # Cast before all else: TensorRT does nothing but cast a uint8 tensor.
        patches = self.embed(pixels.to(torch.float32).permute(0, 3, 1, 2))
        return self.model.with_patches(patches.to(self.dtype), cls_token).to(torch.float32)


class NormalisedEmbedding(nn.Module):
    """Patches of images float32 (B, 3, H, W) that reach from 0 to 255, normalised first."""

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        self.mean, self.std, self.patch_embed = model.mean, model.std, model.patch_embed

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.patch_embed((images / 255 - self.mean) / self.std)
        return patches


class FoldedEmbedding(nn.Conv2d):
    """The same with the normalisation in its weights, which read pixels − 127.5.

    The pixels are centred, which is exact in bf16 too: weights that read 0–255 would lose much of what bf16 can tell,
    since the mean's share cancels.
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


def can_fold(model: DualTokenViT) -> bool:
    """Whether the patch embedding can normalise: where it pads, the border is 0 after it, and would not be before."""
    return isinstance(model.patch_embed, nn.Conv2d)


def exportable(model: Model) -> DualTokenViT:
    """The model itself; raises ExportError where its modes differ in more than the class token."""
    if not isinstance(model, DualTokenViT) or model.config.adapter != "token":
        raise ExportError(
            f"the model's adapter is {model.config.adapter!r}: only a class token can be an input of the graph"
        )
    return model


def onnx_graph(model: DualTokenViT, precision: Precision = "fp32", *, opset: int = OPSET) -> bytes:
    """The backbone of `model` as a single-file ONNX graph, both inputs sharing one dynamic batch axis.

    precision: that of the blocks and the head; the types of inputs and logits are the same in all.
    Raises ExportError where the graph would not fit a single file, or torch has no such precision.
    """
    config = model.config
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_WEIGHTS_BYTES:
        raise ExportError(f"the backbone has {size:,} bytes of weights; a bundle holds {MAX_WEIGHTS_BYTES:,}")
    pixels = torch.zeros(TRACE_BATCH, config.image_size, config.image_size, 3, dtype=torch.uint8)
    tokens = torch.zeros(TRACE_BATCH, config.width)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every operator library that is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own internals
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
    """Remove the exporter's notes, stack traces with this machine's paths among them."""
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


def _check_interface(proto: onnx.ModelProto, image_size: int, width: int, classes: int) -> None:
    """Assert what the bundle promises of its graph: the exporter may specialise a shape without a word."""
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

"""The shared backbone as one ONNX graph, its class token an input.

    pixels uint8 (B, H, W, 3), cls_token float32 (B, D)  ->  logits float32 (B, K)

Cast, layout change and normalisation are inside. Knows nothing about engines or bundles' files.
"""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError
from training.model import DualTokenViT, images_from_pixels
from training.models import Model
from tureen.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT

OPSET = 20
MAX_BATCH = 1024
TRACE_BATCH = 2  # a batch of one would be taken for a constant

MID_GREY = 127.5
MAX_GRAPH_BYTES = 1_500_000_000  # protobuf, and so a single ONNX file, ends at 2 GiB


class Backbone(nn.Module):
    """The model with the bundle's inputs: uint8 pixels in NHWC, one token a row."""

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        return self.model.with_tokens(images_from_pixels(pixels), cls_token)


class FoldedBackbone(nn.Module):
    """`Backbone` with the normalisation inside the patch embedding, which then reads pixels − 127.5.

    Exact, but for rounding, where patches have no padding, whose border is 0 before or after the normalisation. The
    pixels are centred first, which is exact in bf16 too: weights that read 0–255 lose most of what bf16 can tell, since
    the mean's share cancels.
    """

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        embed, scale = model.patch_embed, 1 / (255 * model.std.double())
        assert isinstance(embed, nn.Conv2d)
        assert embed.bias is not None
        self.model = model
        weight = embed.weight.double()
        offset = (weight * ((0.5 - model.mean.double()) / model.std.double())).sum(dim=(1, 2, 3))
        self.patch_embed = nn.Conv2d(3, embed.out_channels, model.config.patch_size, model.config.patch_size)
        self.patch_embed.weight = nn.Parameter((weight * scale).float(), requires_grad=False)
        self.patch_embed.bias = nn.Parameter((embed.bias.double() + offset).float(), requires_grad=False)

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) - MID_GREY
        return self.model.with_patches(self.patch_embed(images), cls_token)


def can_fold(model: DualTokenViT) -> bool:
    """Whether the normalisation can be folded into the patch embedding exactly."""
    return isinstance(model.patch_embed, nn.Conv2d)


def exportable(model: Model) -> DualTokenViT:
    """The model itself; raises ExportError where its modes differ in more than the class token."""
    if not isinstance(model, DualTokenViT) or model.config.adapter != "token":
        raise ExportError(
            f"the model's adapter is {model.config.adapter!r}: only a class token can be an input of the graph"
        )
    return model


def onnx_graph(model: DualTokenViT, opset: int = OPSET) -> bytes:
    """The backbone of `model` as a single-file ONNX graph, both inputs sharing one dynamic batch axis.

    Raises ExportError where the graph would not fit a single file.
    """
    config = model.config
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_GRAPH_BYTES:
        raise ExportError(f"the backbone has {size:,} bytes of weights; a single ONNX file holds {MAX_GRAPH_BYTES:,}")
    pixels = torch.zeros(TRACE_BATCH, config.image_size, config.image_size, 3, dtype=torch.uint8)
    tokens = torch.zeros(TRACE_BATCH, config.width)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every operator library that is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own internals
        program = torch.onnx.export(
            (FoldedBackbone(model) if can_fold(model) else Backbone(model)).eval(),
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

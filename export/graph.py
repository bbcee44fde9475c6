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
from training.model import DualTokenViT, images_from_pixels
from training.models import Model
from tureen.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT, Precision

OPSET = 20
MAX_BATCH = 1024
TRACE_BATCH = 2  # a batch of one would be taken for a constant

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

MAX_GRAPH_BYTES = 1_500_000_000  # protobuf, and so a single ONNX file, ends at 2 GiB


class Backbone(nn.Module):
    """The model with the bundle's inputs: uint8 pixels in NHWC, one token a row."""

    def __init__(self, model: DualTokenViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, cls_token: Tensor) -> Tensor:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and cls_token float32 (B, D)."""
        # Cast before all else: TensorRT does nothing but cast a uint8 tensor.
        return self.model.with_tokens(images_from_pixels(pixels.to(torch.float32)), cls_token).to(torch.float32)


class Cast(nn.Module):
    """A tensor of any shape, in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def in_precision(model: DualTokenViT, precision: Precision) -> DualTokenViT:
    """The model itself in fp32; otherwise a copy whose blocks and head have weights of that precision.

    Normalisation and patch embedding stay float32, and what comes of them is cast once: ONNX has no bf16 convolution
    before opset 22, and raw pixels are where rounding costs most. Raises ExportError for a precision that is none of
    torch's.
    """
    if precision not in DTYPES:
        raise ExportError(f"torch has no {precision}: choose {', '.join(DTYPES)}")
    if precision == "fp32":
        return model
    low = copy.deepcopy(model).to(DTYPES[precision])
    low.mean, low.std = model.mean, model.std
    low.patch_embed = nn.Sequential(model.patch_embed, Cast(DTYPES[precision]))
    return low


def exportable(model: Model) -> DualTokenViT:
    """The model itself; raises ExportError where its modes differ in more than the class token."""
    if not isinstance(model, DualTokenViT) or model.config.adapter != "token":
        raise ExportError(
            f"the model's adapter is {model.config.adapter!r}: only a class token can be an input of the graph"
        )
    return model


def onnx_graph(model: DualTokenViT, precision: Precision = "fp32") -> bytes:
    """The backbone of `model` as a single-file ONNX graph, opset 20, both inputs sharing one dynamic batch axis.

    precision: that of the blocks and the head; the types of inputs and logits are the same in all.
    Raises ExportError where the graph would not fit a single file, or torch has no such precision.
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
            Backbone(in_precision(model, precision)).eval(),
            (pixels, tokens),
            input_names=[PIXELS_INPUT, TOKEN_INPUT],
            output_names=[LOGITS_OUTPUT],
            dynamic_shapes={"pixels": {0: batch}, "cls_token": {0: batch}},
            opset_version=OPSET,
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

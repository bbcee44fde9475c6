"""Compiles a backbone into a plan, a file that TensorRT runs on one kind of GPU, with torch-tensorrt instead of ONNX.

`tureen.engines.tensorrt_run` runs the plan like any other plan of TensorRT.
"""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from export.errors import ExportError
from export.graph import TRACE_BATCH, CompiledBackbone
from training.models.vit import DualTokenViT
from tureen.bundle.bundle import PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.manifest import PlanRecord, Precision
from tureen.engines.tensorrt_build import DEFAULT_BATCH, plan_record

NO_TORCH_TENSORRT = (
    "torch-tensorrt cannot be used on this machine: it needs the extra [torch-tensorrt], an NVIDIA GPU and its driver; "
    "export on a machine that has them, or use --plan-builder onnx"
)


def load_torch_tensorrt() -> Any:
    """Returns the module torch_tensorrt.

    Raises ExportError if it cannot be imported, or if torch finds no CUDA GPU.
    """
    try:
        # A failed import prints paths of this machine and raises a bare Exception.
        with contextlib.redirect_stdout(io.StringIO()):
            import torch_tensorrt
    except Exception as error:
        raise ExportError(NO_TORCH_TENSORRT) from error
    if not torch.cuda.is_available():
        raise ExportError(NO_TORCH_TENSORRT)
    return torch_tensorrt


def build_torch_plan(
    model: DualTokenViT,
    *,
    precision: Precision,
    backbone_sha256: str,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    cache: Path | None = None,
) -> tuple[bytes, PlanRecord]:
    """Returns the bytes of a plan for the engine "tensorrt", and the record of the plan for the manifest.

    backbone_sha256: SHA-256 of backbone.onnx, hexadecimal. batch: smallest, best and largest batch size. cache:
    directory for kernel timings. Raises ExportError if torch-tensorrt cannot be used, and EngineError if TensorRT or
    its GPU is missing.
    """
    if TYPE_CHECKING:
        import torch_tensorrt
    else:
        torch_tensorrt = load_torch_tensorrt()
    record = plan_record("tensorrt", precision, backbone_sha256=backbone_sha256, batch=batch)
    config = model.config
    shapes = {PIXELS_INPUT: (config.image_size, config.image_size, 3), TOKEN_INPUT: (config.width,)}
    dtypes = {PIXELS_INPUT: torch.uint8, TOKEN_INPUT: torch.float32}
    least, best, largest = batch
    inputs = [
        torch_tensorrt.Input(
            min_shape=(least, *shape),
            opt_shape=(best, *shape),
            max_shape=(largest, *shape),
            dtype=dtypes[name],
            name=name,
            shared_dims={0: "batch"},
        )
        for name, shape in shapes.items()
    ]
    program = traced(model, precision, largest, device="cuda")
    plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=inputs,
        require_full_compilation=True,
        disable_tf32=precision == "fp32",
        **({"timing_cache_path": str(cache / "torch-tensorrt.timings")} if cache else {}),
    )
    return bytes(plan), record


def traced(model: DualTokenViT, precision: Precision, largest: int, *, device: str) -> torch.export.ExportedProgram:
    """Returns the backbone in `precision` as an exported program of torch. Its inputs share one dynamic batch axis.

    largest: maximum batch size.
    """
    config = model.config
    pixels = torch.zeros(TRACE_BATCH, config.image_size, config.image_size, 3, dtype=torch.uint8, device=device)
    tokens = torch.zeros(TRACE_BATCH, config.width, device=device)
    axis = torch.export.Dim("batch", min=1, max=largest)
    backbone = copy.deepcopy(CompiledBackbone(model, precision))  # the model stays on its device
    return torch.export.export(
        backbone.eval().to(device),
        (pixels, tokens),
        dynamic_shapes={"pixels": {0: axis}, "cls_token": {0: axis}},
    )

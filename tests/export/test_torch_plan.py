import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.graph import Backbone
from export.torch_plan import build_torch_plan, traced
from tureen.errors import EngineError
from tureen.tokens import mix_rows


def test_torch_tensorrt_without_its_driver_names_the_requirement(checkpoint, capsys):
    with pytest.raises((ExportError, EngineError), match=r"extra \[torch-tensorrt\], an NVIDIA GPU and its driver"):
        build_torch_plan(checkpoint.model, precision="fp16", backbone_sha256="0" * 64)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_program_that_torch_tensorrt_compiles_is_the_backbone_at_any_batch(checkpoint, precision):
    model = checkpoint.model
    program = traced(model, precision, 128, device="cpu")
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    assert names == ["pixels", "cls_token"]  # and so are the plan's inputs
    for rows in (1, 3, 128):
        pixels = checkpoint.test.pixels[:rows]
        tokens = mix_rows(*(model.soup(b).numpy(force=True) for b in (0, 1)), np.linspace(0, 1, rows))
        inputs = torch.from_numpy(pixels), torch.from_numpy(tokens)
        with torch.no_grad():
            logits, wanted = program.module()(*inputs), Backbone(model).eval()(*inputs)
        assert logits.dtype == torch.float32
        # Logits near 12, a few roundings of half a unit in the last place each.
        tolerance = {"fp32": 1e-4, "fp16": 4 * 2**-11 * 12, "bf16": 4 * 2**-8 * 12}[precision]
        np.testing.assert_allclose(logits.numpy(), wanted.numpy(), atol=tolerance)

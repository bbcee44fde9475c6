"""Changes every parameter of a model, so that a weight that is lost or swapped shows in its logits."""

from __future__ import annotations

from typing import TypeVar

import torch

Model = TypeVar("Model", bound=torch.nn.Module)


def randomised(model: Model) -> Model:
    """Return the model in eval mode with every parameter changed: no bias is 0, no LayerNorm the identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()

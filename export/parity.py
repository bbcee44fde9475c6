"""How far an engine's logits are from PyTorch's, on real images at several β and batch sizes, and if near enough.

Every image in every batch has its own β, so that a batch which mixes them up cannot pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from export.errors import ParityError
from export.graph import Backbone
from training.model import DualTokenViT
from tureen.bundle import ParityRow
from tureen.engines.base import Engine
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix_rows

BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH_SIZES = (1, 2, 3, 7, 64)
ROWS_PER_BATCH_SIZE = 64
MAX_IMAGES = 512


class ParityLimits(BaseModel):
    """How far an engine may be from PyTorch before the export fails."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fp32_max_abs_diff: float = Field(default=1e-4, gt=0, description="largest logit difference in fp32")
    bf16_max_abs_diff: float = Field(default=0.5, gt=0, description="largest logit difference in bf16")
    top1_agreement: float = Field(default=0.995, ge=0, le=1, description="least share of equal labels at any β")


@dataclass(frozen=True)
class Reference:
    """PyTorch's logits for every image at every β: pixels uint8 (n, H, W, 3), logits float32 (T, n, K)."""

    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    clean: NDArray[np.float32]
    robust: NDArray[np.float32]


def reference(model: DualTokenViT, pixels: NDArray[np.uint8], betas: Sequence[float] = BETAS) -> Reference:
    """Run PyTorch in fp32 on up to 512 of the images, uint8 (n, H, W, 3), at each β."""
    pixels = pixels[:MAX_IMAGES]
    clean, robust = (model.soup(beta).numpy(force=True) for beta in (CLEAN_BETA, ROBUST_BETA))
    backbone = Backbone(model).eval()
    logits = []
    with torch.no_grad():
        for beta in betas:
            tokens = torch.from_numpy(mix_rows(clean, robust, [beta] * len(pixels)))
            parts = zip(torch.from_numpy(pixels).split(64), tokens.split(64), strict=True)
            logits.append(torch.cat([backbone(part, token) for part, token in parts]).numpy())
    return Reference(pixels, np.stack(logits), clean, robust)


def measure_parity(engine: Engine, expected: Reference) -> ParityRow:
    """Run the engine on every (image, β) pair, shuffled, in batches of 64, and on some in every other batch size.

    A label counts as equal only if it is at every batch size. Raises ParityError for logits that are not finite.
    """
    pairs = [(t, i) for t in range(len(BETAS)) for i in range(len(expected.pixels))]
    order = np.random.default_rng(0).permutation(len(pairs))
    betas, images = np.array(pairs)[order].T
    is_same = np.ones(expected.logits.shape[:2], dtype=bool)  # at every batch size in which the pair was run
    differences: list[NDArray[np.float32]] = []
    for size in BATCH_SIZES:
        rows = len(pairs) if size == max(BATCH_SIZES) else min(len(pairs), ROWS_PER_BATCH_SIZE)
        for start in range(0, rows, size):
            t, i = betas[start : start + size], images[start : start + size]
            wanted = expected.logits[t, i]
            found = engine.run(expected.pixels[i], mix_rows(expected.clean, expected.robust, np.array(BETAS)[t]))
            if found.shape != wanted.shape or not np.isfinite(found).all():
                raise ParityError(f"{engine.name} {engine.precision}: logits that are no numbers at batch {len(t)}")
            is_same[t, i] &= found.argmax(-1) == wanted.argmax(-1)
            differences.append(np.abs(found - wanted).ravel())
    difference = np.concatenate(differences)
    return ParityRow(
        engine=engine.name,
        precision=engine.precision,
        engine_version=engine.version,
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        top1_agreement=float(is_same.mean(axis=1).min()),
        n=len(expected.pixels),
        betas=list(BETAS),
        batch_sizes=list(BATCH_SIZES),
    )


def check_parity(row: ParityRow, limits: ParityLimits) -> None:
    """Raise ParityError where the row is beyond the limits."""
    name = f"{row.engine} {row.precision}"
    allowed = limits.fp32_max_abs_diff if row.precision == "fp32" else limits.bf16_max_abs_diff
    if row.max_abs_diff > allowed:
        raise ParityError(
            f"{name}: largest logit difference {row.max_abs_diff:.3g} from PyTorch, allowed {allowed:.3g}"
        )
    if row.top1_agreement < limits.top1_agreement:
        raise ParityError(
            f"{name}: {100 * row.top1_agreement:.2f} % of labels equal PyTorch's at the worst β, "
            f"asked {100 * limits.top1_agreement:.2f} %"
        )

"""Measures how far the logits of an engine are from those of PyTorch, at several β and batch sizes.

Rejects an engine whose differences exceed the limits. Every image of a batch has its own β, so an engine that mixes up
the rows of a batch is rejected. The limits depend on the precision. In fp32 the logits must be nearly equal. In bf16
and fp16 the labels and the accuracy must be nearly equal too, and in int8 only the accuracy. Accuracy is compared on
clean and on attacked images.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from export.errors import ParityError
from tureen.bundle.manifest import BACKBONE, FileName, ParityRow, ServedAccuracy
from tureen.engines.base import Engine
from tureen.tokens import mix_rows

if TYPE_CHECKING:
    from export.reference import AttackedReference, Reference, ReferenceLogits

BATCH_SIZES = (1, 2, 3, 7, 64)
ROWS_PER_BATCH_SIZE = 64
MAX_IMAGES = 512  # for the comparison of engines


class ParityLimits(BaseModel):
    """The largest allowed differences between an engine and PyTorch in fp32.

    A difference in accuracy of one image is always allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fp32_max_abs_diff: float = Field(default=1e-4, gt=0, description="largest logit difference in fp32")
    half_max_abs_diff: float = Field(default=0.5, gt=0, description="largest logit difference in bf16 and fp16")
    top1_agreement: float = Field(
        default=0.995, ge=0, le=1, description="lowest share of equal labels at any β, except in int8"
    )
    half_accuracy_points: float = Field(
        default=0.2, ge=0, le=100, description="largest difference in accuracy, clean or attacked, in bf16 and fp16"
    )
    int8_accuracy_points: float = Field(
        default=0.5, ge=0, le=100, description="largest difference in accuracy, clean or attacked, in int8"
    )


def measure_parity(engine: Engine, expected: Reference, artefact: FileName = BACKBONE) -> ParityRow:
    """Returns the measured differences between the engine and PyTorch, as a row of the manifest.

    expected: the images with their PyTorch logits. artefact: the file that the engine runs.

    Runs every pair of image and β in batches of 64, and 64 of the pairs in batches of each smaller size in BATCH_SIZES.
    A label counts as equal only if it is equal in every batch size. If `expected` has attacked images, measures the
    accuracy on clean and attacked images. Raises ParityError if the runtime fails, or if the logits are not finite or
    have a wrong shape.
    """
    images = expected.images
    shape = images.logits.shape[:2]
    pairs = np.random.default_rng(0).permutation(list(np.ndindex(shape)))
    is_same = np.ones(shape, dtype=bool)  # equal label at every batch size of the pair
    labels = np.empty(shape, dtype=np.int64)
    differences: list[NDArray[np.float32]] = []
    for size in BATCH_SIZES:
        rows = len(pairs) if size == max(BATCH_SIZES) else min(len(pairs), ROWS_PER_BATCH_SIZE)
        for start in range(0, rows, size):
            t, i = np.moveaxis(pairs[start : min(start + size, rows)], -1, 0)
            found = _run(engine, expected, images, t, i)
            labels[t, i] = found.argmax(-1)
            is_same[t, i] &= labels[t, i] == images.logits[t, i].argmax(-1)
            differences.append(np.abs(found - images.logits[t, i]).ravel())
    difference = np.concatenate(differences)
    return ParityRow(
        engine=engine.name,
        precision=engine.precision,
        artefact=artefact,
        engine_version=engine.version,
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        top1_agreement=float(is_same.mean(axis=1).min()),
        n=shape[1],
        betas=list(expected.betas),
        batch_sizes=list(BATCH_SIZES),
        accuracy=[] if expected.attacked is None else _accuracy(engine, expected, expected.attacked, labels),
    )


def check_parity(row: ParityRow, limits: ParityLimits) -> None:
    """Raises ParityError if the differences in the row exceed the limits of its precision.

    Compares logits and labels in fp32; logits, labels and accuracy in bf16 and fp16; and only accuracy in int8.
    """
    name = f"{row.engine} {row.precision}"
    largest = {"fp32": limits.fp32_max_abs_diff, "int8": float("inf")}.get(row.precision, limits.half_max_abs_diff)
    if row.max_abs_diff > largest:
        raise ParityError(
            f"{name}: largest logit difference {row.max_abs_diff:.3g} from PyTorch, allowed {largest:.3g}"
        )
    if row.precision != "int8" and row.top1_agreement < limits.top1_agreement:
        raise ParityError(
            f"{name}: {100 * row.top1_agreement:.2f} % of labels equal those of PyTorch at the worst β, "
            f"required {100 * limits.top1_agreement:.2f} %"
        )
    if row.precision != "fp32":
        _check_accuracy(row, limits)


def _check_accuracy(row: ParityRow, limits: ParityLimits) -> None:
    """Raises ParityError if the clean or the attacked accuracy at any β differs too much from that of PyTorch in fp32.

    The limit is in percentage points. A difference of one image is always allowed. Raises ParityError if the accuracy
    was measured on fewer than 80 / limit images, because one image would then be more than 1.25 times the limit. Raises
    ParityError for int8 if the row has no accuracy.
    """
    name = f"{row.engine} {row.precision}"
    points = limits.int8_accuracy_points if row.precision == "int8" else limits.half_accuracy_points
    needed = math.ceil(80 / points) if points else 0  # one image always exceeds a limit of zero
    if row.accuracy and row.accuracy[0].n < needed:
        raise ParityError(
            f"{name}: its accuracy was measured on {row.accuracy[0].n} images, and {needed} are needed for a "
            f"limit of {points:g} points: give more with --data and --images"
        )
    if row.precision == "int8" and not row.accuracy:
        raise ParityError(f"{name}: its accuracy could not be measured: give labelled images with --data")
    for at in row.accuracy:
        for kind, found, expected in (
            ("clean", at.clean, at.clean_fp32),
            (f"{at.attack}, transferred", at.transferred, at.transferred_fp32),
        ):
            if round(abs(found - expected) * at.n) > max(1, points / 100 * at.n):
                raise ParityError(
                    f"{name}: accuracy at β = {at.beta:g} ({kind}) is {100 * found:.2f} %, in fp32 "
                    f"{100 * expected:.2f} %: {100 * abs(found - expected):.2f} points apart, allowed {points:g}"
                )


def _accuracy(
    engine: Engine, expected: Reference, attacked: AttackedReference, labels: NDArray[np.int64]
) -> list[ServedAccuracy]:
    """Runs the engine on the attacked images. Returns the accuracy of the engine and of PyTorch at each β.

    labels: the labels that the engine predicted for the clean images, int64, a row for each β, a column for each image.
    Only the first of these images were attacked.
    """
    n = len(attacked.labels)
    rows = []
    for t, beta in enumerate(expected.betas):
        found = np.empty(n, dtype=np.int64)
        for start in range(0, n, max(BATCH_SIZES)):
            i = np.arange(start, min(start + max(BATCH_SIZES), n))
            found[i] = _run(engine, expected, attacked.sample, np.full_like(i, t), i).argmax(-1)
        # As in the manifest, an image counts as robust only if it is also classified correctly without the attack.
        clean, clean_fp32 = (a[:n] == attacked.labels for a in (labels[t], expected.images.logits[t].argmax(-1)))
        robust = clean & (found == attacked.labels)
        robust_fp32 = clean_fp32 & (attacked.sample.logits[t].argmax(-1) == attacked.labels)
        rows.append(
            ServedAccuracy(
                beta=beta,
                n=n,
                clean=float(clean.mean()),
                clean_fp32=float(clean_fp32.mean()),
                transferred=float(robust.mean()),
                transferred_fp32=float(robust_fp32.mean()),
                attack=attacked.attack,
                epsilon_255=attacked.epsilon_255,
            )
        )
    return rows


def _run(
    engine: Engine, expected: Reference, sample: ReferenceLogits, t: NDArray[np.int64], i: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the logits of the engine for B images of `sample`, float32 (B, K) for K classes.

    t, i: indices of β and of images, int64 (B,). Row b of the result has the logits of image i[b] at the β with the
    index t[b]. Raises ParityError if the runtime fails, or if the logits are not finite or have the wrong shape.
    """
    tokens = mix_rows(expected.clean_token, expected.robust_token, np.array(expected.betas)[t])
    try:
        found = engine.run(sample.pixels[t, i], tokens)
    except Exception as error:  # the exceptions of the runtimes have no common base class
        raise ParityError(f"{engine.name} {engine.precision}: the runtime failed at batch {len(t)}") from error
    if found.shape != sample.logits[t, i].shape or not np.isfinite(found).all():
        raise ParityError(f"{engine.name} {engine.precision}: logits not finite or of wrong shape at batch {len(t)}")
    return found

"""Writes the model card of a bundle: README.md, which describes the model, its accuracy and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tureen.bundle.manifest import NOTE, AccuracyRow, AttackCheck, Evaluation, Manifest
from tureen.commands.report import (
    NORM_SYMBOLS,
    accuracy_table,
    calibration_images,
    check_results,
    class_table,
    doubt_text,
    ensemble_table,
    epsilon_table,
    matrix_table,
    radius_text,
    shift_table,
    single_token_accuracy,
    strength_table,
)


def model_card(manifest: Manifest) -> str:
    """Returns the model card as Markdown: the model, its accuracy at each β, and the limits of its robust mode.

    The note in the provenance, if there is one, stands before the engines.
    """
    description = _cotrained(manifest) if manifest.is_cotrained else _single_token(manifest)
    parity = "\n".join(
        f"| {row.engine} {row.engine_version} | {row.precision} | {row.max_abs_diff:.1e} "
        f"| {100 * row.top1_agreement:.2f} % |"
        for row in manifest.parity
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in manifest.provenance.items() if key != NOTE)
    note = f"\n{str(manifest.provenance[NOTE]).strip()}\n" if NOTE in manifest.provenance else ""
    return f"""---
library_name: tureen
pipeline_tag: image-classification
---
# {manifest.name} {manifest.version}

{description}{note}
## Engines

| engine | precision | largest logit difference from PyTorch | same label, worst β |
|---|---|---|---|
{parity}

## Provenance

{facts}
"""


def _cotrained(manifest: Manifest) -> str:
    first = manifest.accuracy[0]
    rows = "\n".join(_accuracy_row(row, manifest.evaluation.checks) for row in manifest.accuracy)
    return f"""\
A dual-token Vision Transformer: one backbone, a clean and a robust class token, and every soup of the two,
`token(β) = (1 − β)·clean + β·robust` (Rebuffi, Croce & Gowal, ICLR 2023). Serve it with `tureen serve`.

- input: RGB, {manifest.preprocess.image_size} × {manifest.preprocess.image_size} after preprocessing
- labels: {len(manifest.labels)}
- default β, if a request has none: {manifest.default_beta:g}

## Accuracy

Per cent of {first.n} held-out images, with 95 % intervals. Robust: {first.attack},
{radius_text(first)}, white-box, on the soup of the same row.

| β | clean | robust |
|---|---|---|
{rows}
{_measured(manifest)}{_strength(manifest)}{_calibration(manifest)}
## Limits of the robust mode

The robust accuracy above is empirical: the share of these images that one attack, with one norm and radius, did not
break. A stronger attack may break more, and no single image has a guarantee. The intervals cover the choice of images,
not the weakness of the attack or the seed of the training. The model was not trained against larger
radii, other norms (l2, l1, patches), rotations, distribution shifts, or poisoned training data, and
not measured under {_unmeasured(manifest.evaluation)}.

A random or secret β is no defence, because one adversarial image can fool many β, and a client may repeat a request
until it gets a weak one. If clients choose β, an attacker chooses it too, and may choose 0.
"""


def _accuracy_row(row: AccuracyRow, checks: Sequence[AttackCheck]) -> str:
    clean, robust = (f"{100 * a.value:.1f} ({100 * a.low:.1f}–{100 * a.high:.1f})" for a in (row.clean, row.robust))
    doubt = doubt_text(row.beta, checks)
    return f"| {row.beta:g} | {clean} | {robust}{doubt and f' **{doubt}**'} |"


def _strength(manifest: Manifest) -> str:
    """Returns the Markdown section with the β at five strengths, or a section that says that none was measured."""
    curve = manifest.strength
    if not curve.n:
        return "\n## Strength\n\nNot measured: the strength of a request is its β.\n"
    rows = "\n".join(f"| {strength:g} | {curve.beta_at(strength):.2f} |" for strength in (0, 0.25, 0.5, 0.75, 1))
    return f"""
## Strength

A request may give `strength` in place of β. Equal steps of strength move the logits equally far from the clean to the
robust mode. Measured on {curve.n} images, without labels and attack.

| strength | β |
|---|---|
{rows}
"""


def _calibration(manifest: Manifest) -> str:
    """Returns the Markdown section with temperatures and calibration errors; empty if they were not measured."""
    if not manifest.calibration:
        return ""
    first = manifest.calibration[0]
    measured, fitted = calibration_images(first)
    rows = "\n".join(
        f"| {row.beta:g} | {row.temperature:.2f} | {row.error_before:.3f} | {row.error:.3f} |"
        for row in manifest.calibration
    )
    return f"""
## Calibration

Expected calibration error (15 bins) on {first.n} {measured}, without and with a temperature for each β.
{first.n_fitted} {fitted} fitted the temperatures. The served probabilities are the softmax of the logits divided by the
temperature of their β, linear between the rows. `tureen serve --no-calibration` serves the softmax of the logits.

| β | temperature | error without | error with |
|---|---|---|---|
{rows}
"""


def _single_token(manifest: Manifest) -> str:
    size = manifest.preprocess.image_size
    if manifest.has_two_tokens:
        beta = "Both tokens of this bundle are equal: a request may name any β, which has no effect."
    else:
        beta = "A request that names a β is rejected."
    trained_on = (
        "The model may have been trained on these images. The strength of the attack was not checked.\n\n"
        if manifest.accuracy
        else ""
    )
    return f"""\
A Vision Transformer with one class token, not co-trained: its logits are those of the original model. {beta}
Serve it with `tureen serve`; `tureen train finetune --init` gives it a clean and a robust token.

- input: RGB, {size} × {size} after preprocessing
- labels: {len(manifest.labels)}

## Accuracy

{single_token_accuracy(manifest.accuracy)}

{trained_on}## Limits

The model has no robust mode, and its training is unknown: assume that any attacker can fool it. An accuracy under
attack above is empirical: the share of the images that one attack, with one norm and radius, did not break. A stronger
attack may break more, and no single image has a guarantee.
"""


def _measured(manifest: Manifest) -> str:
    """Returns a Markdown section for each optional measurement in `manifest.evaluation`; empty if there is none."""
    evaluation = manifest.evaluation
    sections: list[tuple[str, str]] = []
    if evaluation.strengths:
        sections.append(("Accuracy by strength", strength_table(evaluation.strengths, evaluation.checks)))
    if evaluation.classes:
        sections.append(("Accuracy by class", class_table(evaluation.classes, manifest.labels, evaluation.checks)))
    if evaluation.checks:
        sections.append(("Checks of the attack", check_results(evaluation.checks)))
    if evaluation.other_norms:
        tables = [
            accuracy_table(list(rows), evaluation.checks)
            for _, rows in groupby(evaluation.other_norms, lambda row: NORM_SYMBOLS[row.norm])
        ]
        sections.append(("Other norms", "\n\n".join(tables)))
    if evaluation.matrix:
        sections.append(("Attacks on another β", matrix_table(evaluation.matrix)))
    if evaluation.epsilon_curve:
        sections.append(("Other radii", epsilon_table(evaluation.epsilon_curve, evaluation.checks)))
    if evaluation.shifts:
        sections.append(("Corruptions and shifts", shift_table(evaluation.shifts)))
    if evaluation.ensembles:
        sections.append(
            ("Comparison with ensembles", ensemble_table(evaluation.ensembles, manifest.accuracy, evaluation.checks))
        )
    return "".join(f"\n### {heading}\n\n```\n{text}\n```\n" for heading, text in sections)


def _unmeasured(evaluation: Evaluation) -> str:
    missing = ["poisoned training data"]
    if not evaluation.other_norms:
        missing.insert(0, "other norms")
    if not evaluation.epsilon_curve:
        missing.append("larger radii")
    if not evaluation.shifts:
        missing.append("rotations or other distribution shifts")
    return ", ".join(missing)

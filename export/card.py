"""The model card that travels in the bundle."""

from __future__ import annotations

from tureen.bundle.manifest import Evaluation, Manifest
from tureen.commands.report import (
    check_results,
    ensemble_table,
    epsilon_table,
    matrix_table,
    shift_table,
    single_token_accuracy,
)


def model_card(manifest: Manifest) -> str:
    """Markdown: what the model is, what it scores at each β, and what its robust mode does not defend against."""
    what_it_is = _cotrained(manifest) if manifest.is_cotrained else _single_token(manifest)
    parity = "\n".join(
        f"| {row.engine} {row.engine_version} | {row.precision} | {row.max_abs_diff:.1e} "
        f"| {100 * row.top1_agreement:.2f} % |"
        for row in manifest.parity
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in manifest.provenance.items())
    return f"""---
library_name: tureen
pipeline_tag: image-classification
---
# {manifest.name} {manifest.version}

{what_it_is}
## Engines

| engine | precision | largest logit difference from PyTorch | same label, worst β |
|---|---|---|---|
{parity}

## Provenance

{facts}
"""


def _cotrained(manifest: Manifest) -> str:
    first = manifest.accuracy[0]
    rows = "\n".join(
        f"| {row.beta:g} | {100 * row.clean.value:.1f} ({100 * row.clean.low:.1f}–{100 * row.clean.high:.1f}) "
        f"| {100 * row.robust.value:.1f} ({100 * row.robust.low:.1f}–{100 * row.robust.high:.1f}) |"
        for row in manifest.accuracy
    )
    return f"""\
A dual-token Vision Transformer: one backbone, a clean and a robust class token, and every soup of the two,
`token(β) = (1 − β)·clean + β·robust` (Rebuffi, Croce & Gowal, ICLR 2023). Serve it with `tureen serve`.

- input: RGB, {manifest.preprocess.image_size} × {manifest.preprocess.image_size} after preprocessing
- labels: {len(manifest.labels)}
- β where a request names none: {manifest.default_beta:g}

## Accuracy

Per cent of {first.n} held-out images, with 95 % intervals. Robust: {first.attack} under l∞,
ε = {first.epsilon_255:g}/255, white-box, computed on the very soup of the row.

| β | clean | robust |
|---|---|---|
{rows}
{_measured(manifest)}
## What robust mode does not do

The robust accuracy above is empirical: what one attack, within one norm and radius, on these images, could not
break. A stronger attack may break more, and nothing is guaranteed for any single image. The model was not trained
against larger radii, other norms (l2, l1, patches), rotations, shifts in distribution, or poisoned training data, and
not measured under {_unmeasured(manifest.evaluation)}. Whoever may choose β may choose 0.
"""


def _single_token(manifest: Manifest) -> str:
    size = manifest.preprocess.image_size
    if manifest.has_two_tokens:
        beta = "Both tokens of this bundle are that one: a request may name any β, and it changes nothing."
    else:
        beta = "So there is no β to choose, and a request that names one is refused."
    trained_on = "Whether the model was trained on these images is not known here.\n\n" if manifest.accuracy else ""
    return f"""\
A Vision Transformer with one class token, not co-trained: it classifies as it did where it comes from. {beta}
Serve it with `tureen serve`; `tureen train finetune --init` gives it a clean and a robust token.

- input: RGB, {size} × {size} after preprocessing
- labels: {len(manifest.labels)}

## Accuracy

{single_token_accuracy(manifest.accuracy)}

{trained_on}## What it does not defend against

It has no robust mode, and how it was trained is not known here: take it to be fooled by whoever wants to fool it.
Where accuracy under an attack stands above, it is empirical: what one attack, within one norm and radius, could not
break. A stronger one may break more, and nothing is guaranteed for any single image.
"""


def _measured(manifest: Manifest) -> str:
    """A section for each thing that was measured beyond the accuracy at each β."""
    evaluation = manifest.evaluation
    sections: list[tuple[str, str]] = []
    if evaluation.checks:
        sections.append(("Whether to believe the attack", check_results(evaluation.checks)))
    if evaluation.matrix:
        sections.append(("Attacks made for another β", matrix_table(evaluation.matrix)))
    if evaluation.epsilon_curve:
        sections.append(("Other radii", epsilon_table(evaluation.epsilon_curve)))
    if evaluation.shifts:
        sections.append(("Corruptions and shifts", shift_table(evaluation.shifts)))
    if evaluation.ensembles:
        sections.append(("Beside ensembles", ensemble_table(evaluation.ensembles, manifest.accuracy)))
    return "".join(f"\n### {heading}\n\n```\n{text}\n```\n" for heading, text in sections)


def _unmeasured(evaluation: Evaluation) -> str:
    missing = ["other norms", "poisoned training data"]
    if not evaluation.epsilon_curve:
        missing.append("larger radii")
    if not evaluation.shifts:
        missing.append("rotations or other shifts in distribution")
    return ", ".join(missing)

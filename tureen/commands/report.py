"""Formats the measurements in a manifest as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import mean

from tureen.bundle.manifest import (
    SHIFT,
    Accuracy,
    AccuracyRow,
    AttackCheck,
    CalibrationRow,
    ClassCounts,
    Manifest,
    Norm,
    ParityRow,
    PlanRecord,
    ServedAccuracy,
    ShiftRow,
    StrengthRow,
    SuspectCell,
    TransferMatrix,
    failed_checks,
)
from tureen.errors import printable
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

MAX_CLASSES_SHOWN = 50
NORM_SYMBOLS: Mapping[Norm, str] = {"linf": "l∞", "l2": "l2", "l1": "l1"}


def accuracy_summary(manifest: Manifest) -> str:
    """Returns the accuracy of a model as text. For a co-trained model, this is the table of `accuracy_table`.

    For any other model, the text is a sentence about the tokens, and the line of `single_token_accuracy`.
    """
    if manifest.is_cotrained:
        return accuracy_table(manifest.accuracy, manifest.evaluation.checks)
    return f"{tokens_sentence(manifest)}\n{single_token_accuracy(manifest.accuracy)}"


def tokens_sentence(manifest: Manifest) -> str:
    """Returns a sentence about the tokens of a model: how many there are, and whether β changes the result."""
    if manifest.is_cotrained:
        return "two co-trained tokens: β = 0 is the clean one, β = 1 the robust one"
    if manifest.has_two_tokens:
        return "two equal tokens, not co-trained: any β gives the same result"
    return "one token, not co-trained: there is no β to choose"


def single_token_accuracy(rows: Sequence[AccuracyRow]) -> str:
    """Returns one line with the accuracy of a model that has the same accuracy at every β.

    rows: the accuracy comes from the first row. Without a row, returns "accuracy: not measured".
    """
    if not rows:
        return "accuracy: not measured"
    row = rows[0]
    clean, robust = accuracy_text(row.clean), accuracy_text(row.robust)
    attacked = f"; under {row.attack}, white-box, {radius_text(row)}: {robust}" if row.epsilon_255 else ""
    return f"accuracy on {row.n} images, % (95 % interval): {clean}{attacked}"


def strength_summary(manifest: Manifest) -> str:
    """Returns one line with the β of the strengths 0, ¼, ½, ¾ and 1.

    If the curve from strength to β was not measured, the line says that strength equals β.
    """
    curve = manifest.strength
    if not curve.n:
        return "strength: not measured, so it equals β"
    betas = ", ".join(f"{curve.beta_at(strength):.2f}" for strength in (0, 0.25, 0.5, 0.75, 1))
    return f"strength 0, ¼, ½, ¾, 1 is β {betas}; measured on {curve.n} images"


def calibration_summary(manifest: Manifest) -> str:
    """Returns one line with the largest calibration error over all β, without and with the fitted temperatures."""
    rows = manifest.calibration
    if not rows:
        return "calibration error: not measured"
    before, after = max(row.error_before for row in rows), max(row.error for row in rows)
    measured, fitted = calibration_images(rows[0])
    return (
        f"calibration error, worst β: {before:.3f}; with a temperature for each β: {after:.3f}; "
        f"on {rows[0].n} {measured}, fitted on {rows[0].n_fitted} {fitted}"
    )


def calibration_images(row: CalibrationRow) -> tuple[str, str]:
    """Returns the names of two sets of images, such as "test images" and "validation images".

    The calibration errors were measured on the first set. The temperatures were fitted on the second set.
    """
    if row.images == "random halves":
        return "images", "other images"
    return "test images", "validation images"


def accuracy_table(rows: Sequence[AccuracyRow], checks: Sequence[AttackCheck] = (), images: str = "test images") -> str:
    """Returns the table of the clean and the robust accuracy by β, in per cent with the 95 % intervals.

    checks: the checks of the attack. If one failed at a β, the row of this β has a warning with the name of the check.
    images: the name of the set of images, for the heading.
    """
    first = rows[0]
    lines = [
        f"accuracy on {first.n} {images}, % (95 % interval); robust: {first.attack}, "
        f"{radius_text(first)}, on each soup itself",
        f"{'β':>6}  {'clean':>20}  {'robust':>20}",
    ]
    for row in rows:
        cells = [_with_interval(accuracy) for accuracy in (row.clean, row.robust)]
        doubt = doubt_text(row.beta, checks, norm=row.norm)
        lines.append(f"{row.beta:6.2f}{_extension_mark(row.beta)} {cells[0]:>20}  {cells[1]:>20}{_beside(doubt)}")
    return "\n".join([*lines, *_footnote(row.beta for row in rows)])


def radius_text(row: AccuracyRow) -> str:
    """Returns the norm and the radius of the attack as text, such as "l∞ ε = 8/255"."""
    return f"{NORM_SYMBOLS[row.norm]} ε = {row.epsilon_255:g}/255"


def doubt_text(beta: float, checks: Iterable[AttackCheck], *, norm: Norm = "linf") -> str:
    """Returns the warning to print beside the robust accuracy at `beta`; empty if no check of the attack failed.

    norm: only checks of the attack under this norm count.
    """
    failed = failed_checks(checks, beta, norm=norm)
    return f"! too high: check failed ({'; '.join(failed)})" if failed else ""


def clean_table(betas: Sequence[float], accuracies: Sequence[Accuracy], n: int) -> str:
    """Returns the table of the accuracy without an attack by β, in per cent with the 95 % intervals.

    accuracies: one for each of `betas`. n: the number of images.
    """
    lines = [f"accuracy on {n} images, % (95 % interval)", f"{'β':>6}  {'clean':>20}"]
    lines += [f"{beta:6.2f}  {_with_interval(a):>20}" for beta, a in zip(betas, accuracies, strict=True)]
    return "\n".join(lines)


def ensemble_table(
    ensembles: Sequence[AccuracyRow], soups: Sequence[AccuracyRow], checks: Sequence[AttackCheck] = ()
) -> str:
    """Returns the table that compares ensembles with soups: accuracy in per cent and forward passes, two rows per β.

    A soup mixes the tokens. An ensemble mixes the probabilities of both modes, and takes two forward passes. soups: the
    table omits those that were measured with another attack, radius or number of images than the first ensemble.
    checks: of the attack on the soups. If one failed at a β, both rows of this β have a warning.
    """
    first = ensembles[0]
    by_beta = {row.beta: row for row in soups if _measurement_key(row) == _measurement_key(first)}
    lines = [
        f"soups beside ensembles of both modes' probabilities, mixed by β; accuracy on {first.n} images, %; "
        f"robust: {first.attack}, l∞ ε = {first.epsilon_255:g}/255, on each itself",
        f"{'β':>6}  {'':>9}  {'forward passes':>14}  {'clean':>20}  {'robust':>20}",
    ]
    for ensemble in ensembles:
        soup = by_beta.get(ensemble.beta)
        for name, passes, row in (("soup", 1, soup), ("ensemble", 2, ensemble)):
            if row is not None:
                lines.append(
                    f"{row.beta:6.2f}  {name:<9}  {f'{passes}.0 ×':>14}  {_with_interval(row.clean):>20}  "
                    f"{_with_interval(row.robust):>20}{_beside(doubt_text(row.beta, checks))}"
                )
    return "\n".join(lines)


def matrix_table(matrix: TransferMatrix) -> str:
    """Returns the table of robust accuracy with one row per attacked β and one column per served β, in per cent.

    Further rows have the accuracy under the attack on all β together, and under the worst attack for each image. A "!"
    marks a cell that shows that an attack was too weak. A sentence below the table explains the cell.
    """

    def line(name: str, shares: Sequence[float], suspected: Collection[float] = ()) -> str:
        cells = zip(matrix.betas, shares, strict=True)
        return f"{name:>16}{''.join(f'{100 * share:7.1f}{_suspect_mark(beta in suspected)}' for beta, share in cells)}"

    def suspected(attacked: float | None) -> set[float]:
        return {suspect.served for suspect in matrix.suspects if suspect.attacked == attacked}

    lines = [
        f"robust accuracy on {matrix.n} images, %; {matrix.attack}, l∞ ε = {matrix.epsilon_255:g}/255; "
        "down: the β attacked, across: the β served",
        f"{'':>16}{''.join(f'{beta:7.2f}{_extension_mark(beta)}' for beta in matrix.betas)}",
        *(
            line(f"{beta:.2f}{_extension_mark(beta)}", shares, suspected(beta))
            for beta, shares in zip(matrix.betas, matrix.robust, strict=True)
        ),
        line("all at once", matrix.joint, suspected(None)),
        line("worst, by image", [accuracy.value for accuracy in matrix.worst]),
        line("95 % from", [accuracy.low for accuracy in matrix.worst]),
        line("to", [accuracy.high for accuracy in matrix.worst]),
        f"all at once: {matrix.joint_attack}",
        *(f"! {suspect_sentence(suspect)}" for suspect in matrix.suspects),
        *_footnote(matrix.betas),
    ]
    return "\n".join(lines)


def suspect_sentence(suspect: SuspectCell) -> str:
    """Returns a sentence that explains a suspect cell of the transfer matrix.

    The served β misclassifies more images after an attack on another β, or on all β, than after the attack on the
    served β. So the attack on the served β is too weak. The sentence names both β, the p-value and the probable cause.
    """
    attacked = "all β at once" if suspect.attacked is None else f"β = {suspect.attacked:g}"
    return (
        f"the attack on {attacked} breaks β = {suspect.served:g} better than the attack on it (p = "
        f"{suspect.p_value:.1g}): gradient masking or an unconverged attack"
    )


def epsilon_table(curve: Sequence[AccuracyRow], checks: Sequence[AttackCheck] = ()) -> str:
    """Returns the table of robust accuracy in per cent: one row per radius of the attack, one column per β.

    Lines below the table name the failed checks of the attack by β.
    """
    first = curve[0]
    betas = list(dict.fromkeys(row.beta for row in curve))
    shares = {(row.epsilon_255, row.beta): row.robust.value for row in curve}
    lines = [
        f"robust accuracy on {first.n} images by radius, %; {first.attack} under l∞, on each soup itself",
        f"{'ε · 255':>8}{''.join(f'   β = {beta:4.2f}{_extension_mark(beta)}' for beta in betas)}",
    ]
    lines += [
        f"{radius:8g}{''.join(f'{100 * shares[radius, beta]:11.1f} ' for beta in betas)}"
        for radius in dict.fromkeys(row.epsilon_255 for row in curve)
    ]
    return "\n".join([*lines, *_footnote(betas), *_doubts(betas, checks)])


def strength_table(rows: Sequence[StrengthRow], checks: Sequence[AttackCheck] = ()) -> str:
    """Returns the table of accuracy in per cent by strength: β, clean, robust, and predicted robust accuracy.

    checks: of the attack. If one failed at the β of a row, the row has a warning.
    """
    first = rows[0]
    lines = [
        f"accuracy by strength on {first.n} test images, % (95 % interval); robust: {first.attack}, "
        f"{radius_text(first)}, on each soup itself; predicted: by isotonic regression on {first.n_fitted} validation "
        "images",
        f"{'strength':>8}  {'β':>6}  {'clean':>20}  {'robust':>20}  {'predicted':>9}",
    ]
    lines += [
        f"{row.strength:8.2f}  {row.beta:6.2f}  {_with_interval(row.clean):>20}  {_with_interval(row.robust):>20}  "
        f"{100 * row.predicted_robust:9.1f}{_beside(doubt_text(row.beta, checks))}"
        for row in rows
    ]
    return "\n".join(lines)


def class_table(counts: Sequence[ClassCounts], labels: Sequence[str], checks: Sequence[AttackCheck] = ()) -> str:
    """Returns the table of clean and robust accuracy in per cent: one row per class, two columns per β.

    counts: for each β, the numbers of images and of correct classifications by class; at least one β. labels: the names
    of the classes. checks: of the attack; lines below the table name the failed ones. If there are more than
    MAX_CLASSES_SHOWN classes, the table has only that many: those with the lowest robust accuracy at the last β, the
    lowest first.
    """

    def share(count: int, images: int) -> str:
        return f"{100 * count / images:8.1f}" if images else f"{'':>8}"

    last, shown = counts[-1], list(range(len(labels)))
    heading = "accuracy by class, %; clean, and robust under the same attack"
    if len(labels) > MAX_CLASSES_SHOWN:
        order = sorted(shown, key=lambda index: last.robust[index] / (last.images[index] or math.inf))
        shown = [index for index in order if last.images[index]][:MAX_CLASSES_SHOWN]
        heading += f"; the {len(shown)} of {len(labels)} classes with the lowest robust accuracy at β = {last.beta:g}"
    betas, columns = (f"β = {row.beta:g}" for row in counts), f"  {'clean':>8}{'robust':>8}"
    lines = [
        heading,
        f"{'':>6}{''.join(f'  {beta:>16}' for beta in betas)}",
        f"{'images':>6}{columns * len(counts)}  class",
    ]
    for index in shown:
        cells = "".join(
            f"  {share(row.clean[index], row.images[index])}{share(row.robust[index], row.images[index])}"
            for row in counts
        )
        lines.append(f"{last.images[index]:6}{cells}  {printable(labels[index])}")
    return "\n".join([*lines, *_doubts((row.beta for row in counts), checks)])


def shift_table(rows: Sequence[ShiftRow]) -> str:
    """Returns the table of accuracy under corruptions and shifts, in per cent, with one column per β.

    Each corruption or shift has a row with the mean over its severities. Each family has a row with the mean over its
    members. The last row has the mean over all corruptions.
    """
    betas = list(dict.fromkeys(row.beta for row in rows))
    severities = ", ".join(map(str, rows[0].accuracy))

    def line(name: str, chosen: Sequence[ShiftRow]) -> str:
        means = (mean_accuracy([row for row in chosen if row.beta == beta]) for beta in betas)
        return f"{name:<24}{''.join(f'{100 * mean:11.1f} ' for mean in means)}"

    lines = [
        f"accuracy on {rows[0].n} images under corruptions and shifts, %, mean over severity {severities}",
        f"{'':<24}{''.join(f'   β = {beta:4.2f}{_extension_mark(beta)}' for beta in betas)}",
    ]
    for family in dict.fromkeys(row.family for row in rows):
        members = [row for row in rows if row.family == family]
        names = dict.fromkeys(row.name for row in members)
        lines += [line(f"  {name}", [row for row in members if row.name == name]) for name in names]
        lines.append(line(f"{family}, mean", members))
    corruptions = [row for row in rows if row.family != SHIFT]
    if corruptions:
        lines.append(line("all corruptions, mean", corruptions))
    return "\n".join([*lines, *_footnote(betas)])


def mean_accuracy(rows: Sequence[ShiftRow]) -> float:
    """Returns the mean accuracy of the rows in [0, 1]: the mean over the severities of each row, then over the rows."""
    return mean(mean(row.accuracy.values()) for row in rows)


def check_results(checks: Sequence[AttackCheck]) -> str:
    """Returns a text with one line for each check of the attack: the result and the measurements in per cent.

    After the line of a failed check, a second line explains the failure.
    """
    lines = [f"checks on the attack, on {' or '.join(str(n) for n in sorted({check.n for check in checks}))} images"]
    for check in checks:
        figures = ", ".join(f"{name} {100 * share:.1f} %" for name, share in check.figures.items())
        lines.append(f"  {'ok    ' if check.has_passed else 'FAILED'}  β = {check.beta:<5g} {check.name}: {figures}")
        if not check.has_passed:
            lines.append(f"          {check.sentence}")
    return "\n".join(lines)


def parity_table(rows: Sequence[ParityRow]) -> str:
    """Returns the table of the logit differences from PyTorch, one row per engine and precision.

    A table of `served_accuracy_table` follows for each row whose accuracy was measured.
    """
    names = [f"{row.engine} {row.precision}" for row in rows]
    width = max(22, *map(len, names))
    lines = [f"{'engine':<{width}} {'largest |Δ|':>12} {'mean |Δ|':>10} {'same label':>11}   against PyTorch, logits"]
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"{name:<{width}} {row.max_abs_diff:12.1e} {row.mean_abs_diff:10.1e} {100 * row.top1_agreement:10.2f}%"
            f"   {row.n} images at each of {len(row.betas)} β, {row.engine} {row.engine_version}, {row.artefact}"
        )
    served = [
        f"\n{served_accuracy_table(name, row.accuracy)}" for name, row in zip(names, rows, strict=True) if row.accuracy
    ]
    return "\n".join([*lines, *served])


def served_accuracy_table(name: str, rows: Sequence[ServedAccuracy]) -> str:
    """Returns the table of the accuracy of an engine beside that of PyTorch in fp32, in per cent, one row per β.

    name: engine and precision, for the heading.
    """
    first = rows[0]
    lines = [
        f"{name} beside PyTorch in fp32, accuracy on {first.n} images, %; transferred: {first.attack}, "
        f"l∞ ε = {first.epsilon_255:g}/255, on PyTorch's soups",
        f"{'β':>6}  {'clean':>7} {'in fp32':>8}  {'transferred':>12} {'in fp32':>8}",
    ]
    lines += [
        f"{row.beta:6.2f}  {100 * row.clean:7.1f} {100 * row.clean_fp32:8.1f}  "
        f"{100 * row.transferred:12.1f} {100 * row.transferred_fp32:8.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def plan_table(plans: Mapping[str, PlanRecord]) -> str:
    """Returns one line per plan: the engine, its version, the compute capability and the range of batch sizes.

    A plan runs only with these. plans: the records by file name.
    """
    lines = ["compiled plans, and what each needs"]
    for name, plan in plans.items():
        least, best, largest = plan.batch
        lines.append(
            f"  {name}: {plan.engine} {plan.runtime_version} {plan.precision}, compute capability "
            f"{', '.join(plan.compute_capabilities)}, built {f'on {plan.device}' if plan.device else 'without a GPU'}, "
            f"batches of {least} to {largest}, best {best}, from the graph {plan.graph_sha256[:16]}…"
        )
    return "\n".join(lines)


def accuracy_text(accuracy: Accuracy) -> str:
    """Returns an accuracy with its interval in per cent, such as "89.5 (85.1–92.6)"."""
    return f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}–{100 * accuracy.high:.1f})"


def _with_interval(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:5.1f} ({100 * accuracy.low:4.1f}–{100 * accuracy.high:5.1f})"


def _beside(doubt: str) -> str:
    return doubt and f"  {doubt}"


def _doubts(betas: Iterable[float], checks: Sequence[AttackCheck]) -> list[str]:
    """Returns a warning line for each of the β at which a check of the attack failed."""
    doubts = ((beta, doubt_text(beta, checks)) for beta in betas)
    return [f"robust accuracy at β = {beta:g}: {doubt}" for beta, doubt in doubts if doubt]


def _extension_mark(beta: float) -> str:
    return " " if CLEAN_BETA <= beta <= ROBUST_BETA else "*"


def _footnote(betas: Iterable[float]) -> list[str]:
    return (
        ["* outside [0, 1]: an extension, never served"] if any(_extension_mark(beta) == "*" for beta in betas) else []
    )


def _measurement_key(row: AccuracyRow) -> tuple[int, str, float]:
    return row.n, row.attack, row.epsilon_255


def _suspect_mark(is_suspect: bool) -> str:
    return "!" if is_suspect else " "

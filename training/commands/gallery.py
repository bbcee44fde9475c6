"""The command `tureen gallery`: draws traffic signs, attacks each drawing, and writes all pictures to a directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.checkpoint import Checkpoint, load_checkpoint
from training.commands.parsers import gallery_parser
from training.distributed import best_device, limit_threads
from training.errors import CheckpointError
from training.evaluation.picture_attack import Reading
from training.evaluation.sign_gallery import GALLERY, Gallery, make_gallery
from tureen.bundle.bundle import MANIFEST


def gallery(arguments: list[str]) -> int:
    """Runs `tureen gallery`: draws ten traffic signs, and attacks each in clean mode, and in both modes together.

    arguments: those after `tureen gallery`. Returns the exit status.
    """
    options = gallery_parser().parse_args(arguments)
    limit_threads()
    checkpoint = load_run(options.run)
    made = make_gallery(
        replace(checkpoint, model=checkpoint.model.to(best_device())),
        options.run,
        options.out,
        epsilon_255=checkpoint.recipe.epsilon_255 if options.epsilon_255 is None else options.epsilon_255,
        steps=options.steps,
        seed=options.seed,
        drawings=options.drawings,
    )
    print(made.model_dump_json(indent=2) if options.json else f"{gallery_table(made)}\n\n{options.out / GALLERY}")
    return 0


def load_run(path: Path) -> Checkpoint:
    """Returns the checkpoint in the directory `path`.

    Raises CheckpointError if the directory has no valid checkpoint. A bundle is not valid, because a gallery belongs to
    the weights of a run: `tureen export` compares their hash.
    """
    if (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} is a bundle: give the directory of the run that `tureen train` wrote (it holds checkpoint.json "
            "and model.safetensors); `tureen attack` takes a bundle"
        )
    return load_checkpoint(path)


def gallery_table(made: Gallery) -> str:
    """Returns a table of the label that each mode predicts for each sign after each attack.

    The lines below the table give the attack, and the numbers of drawings that were tried and of attacks that failed.
    """
    rows: list[tuple[str, ...]] = [
        ("sign", "drawing", "after the attack on the clean token", "", "after the attack on both", "")
    ]
    rows.append(("", "", "clean mode", "robust mode", "clean mode", "robust mode"))
    for pair in made.pairs:
        cells = [
            _cell(readings[end], pair.label)
            for readings in (pair.clean.readings, pair.both.readings)
            for end in (0, -1)
        ]
        rows.append((pair.sign, str(pair.seed), *cells))
    rows += [(one.sign, "none", "no drawing is read rightly", "", "", "") for one in made.unread]
    widths = [max(len(row[column]) for row in rows[1:]) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = made.counts
    lines += [
        "",
        f"{made.attack}, l∞, ε = {made.epsilon_255:g}/255, on the saved 8-bit files; * read rightly",
        f"drawings tried: {counts.drawings_tried}, of which a mode read {counts.drawings_read_wrongly} wrongly",
        f"attacks for the clean token: {counts.clean_attacks}, failed: {counts.clean_attacks_failed}",
        f"attacks for both tokens: {counts.both_attacks}, failed: {counts.both_attacks_failed}",
        f"clean mode wrong, robust mode right: {counts.clean_wrong_robust_right} of {counts.signs}",
    ]
    return "\n".join(lines)


def _cell(reading: Reading, label: str) -> str:
    return f"{'* ' if reading.label == label else ''}{reading.label} {100 * reading.probability:.0f} %"

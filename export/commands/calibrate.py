"""The command `tureen calibrate`: measures the strength curve and the temperatures of an existing bundle on images.

Strength is a scale from 0 (clean mode) to 1 (robust mode), on which equal steps move the logits equally far. The curve
maps strength to β. Each β has a temperature. The served probabilities are the softmax of logits / temperature.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tureen
from export.calibration import MIN_IMAGES, measure_dial
from export.card import model_card
from export.commands.parsers import calibrate_parser
from export.errors import ExportError
from training.data.sources import split_kind
from training.evaluation.measure import read_images
from tureen.bundle.bundle import MANIFEST, MODEL_CARD, read_listed_file, read_manifest, record_files, write_bundle
from tureen.bundle.manifest import SCHEMA_VERSION, Manifest
from tureen.commands.report import calibration_summary, strength_summary


def calibrate(arguments: list[str]) -> int:
    """Runs `tureen calibrate`: measures the strength curve and the temperatures, and stores them in the manifest.

    arguments: those after `tureen calibrate`. Returns the exit status.
    """
    options = calibrate_parser().parse_args(arguments)
    path = options.bundle.resolve()  # the directory behind a link is replaced, and the link stays
    manifest = measured_manifest(path, options.data, options.images)
    rewrite_manifest(path, manifest)
    print(f"{options.bundle}: {manifest.name} {manifest.version}")
    print(strength_summary(manifest))
    print(calibration_summary(manifest))
    return 0


def measured_manifest(path: Path, data: str, at_most: int) -> Manifest:
    """Returns the manifest of the bundle at `path` with a new strength curve and new temperatures.

    Computes the logits with the fastest engine on this machine. data: location of the images; `part_folders` finds the
    test and the validation folder in it. at_most: maximum number of images of each folder. Prints a message if there
    are too few images to fit temperatures. Raises ExportError if the model was not co-trained, or if the bundle has a
    file that is not in its manifest. Raises DataError if the images have other classes or cannot be decoded,
    BundleError if the bundle is damaged, and EngineError if no engine can run the bundle.
    """
    manifest = read_manifest(path)
    if not manifest.is_cotrained:
        raise ExportError(
            f"{path} has one token, so it has no strength: co-train the model with `tureen train finetune --init …`"
        )
    check_all_listed(path, manifest)
    folders = part_folders(data)
    test, *validation = (
        read_images(folder, manifest.preprocess, manifest.labels, at_most=at_most) for folder in folders
    )
    parts = [len(part) for part in (test, *validation)] if validation else [len(test) // 2]
    if min(parts) < MIN_IMAGES:
        least = f"{MIN_IMAGES} or more in each folder" if validation else f"{2 * MIN_IMAGES} or more"
        print(
            f"{sum(map(len, (test, *validation)))} images are too few to fit temperatures: give {least}",
            file=sys.stderr,
        )
    with tureen.load(path) as soup:
        measured = measure_dial(soup.logits, test, validation[0] if validation else None)
    return manifest.model_copy(update={**measured, "schema_version": SCHEMA_VERSION})


def part_folders(data: str) -> list[str]:
    """Returns the test folder in `data`, to measure errors, and the validation folder, to fit curve and temperatures.

    These are subfolders with the name of a split, such as test and val, and with one folder of images for each class.
    If `data` does not have exactly one test and one validation folder, returns only `data`.
    """
    root = Path(data)
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()] if root.is_dir() else []
    by_kind = {kind: [folder for folder in folders if split_kind(folder.name) == kind] for kind in ("test", "val")}
    parts = [found[0] for found in by_kind.values() if len(found) == 1 and any(map(Path.is_dir, found[0].iterdir()))]
    return [str(folder) for folder in parts] if len(parts) == 2 else [data]


def rewrite_manifest(path: Path, manifest: Manifest) -> None:
    """Replaces the manifest and the model card of the bundle at `path`. All other files of the bundle stay the same.

    Writes a new directory and renames it, as `write_bundle` does. Raises BundleError if a file of the bundle is
    damaged, and ExportError if the bundle has a file that the manifest does not list.
    """
    check_all_listed(path, manifest)
    files = {
        name: read_listed_file(path, name, record) for name, record in manifest.files.items() if name != MODEL_CARD
    }
    files[MODEL_CARD] = model_card(manifest).encode()
    write_bundle(path, manifest.model_copy(update={"files": record_files(files)}), files, overwrite=True)


def check_all_listed(path: Path, manifest: Manifest) -> None:
    """Raises ExportError if the bundle has a file that its manifest does not list.

    `rewrite_manifest` would remove such a file.
    """
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
    if unlisted := sorted(found - {*manifest.files, MANIFEST}):
        raise ExportError(f"{path} has files that are not in its manifest, such as {unlisted[0]}: move them elsewhere")

"""`tureen demo`: trains on handwritten digits, exports the model, serves it, and prints two requests to try.

Alternatively serves an example bundle that is a part of Tureen. In the package `tureen`, only this module calls
training, export and serve.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tureen.bundle.bundle import MANIFEST, load_bundle, read_manifest
from tureen.bundle.examples import EXAMPLES, example_names
from tureen.commands.report import accuracy_summary
from tureen.errors import BundleError, TureenError
from tureen.pictures.ship import drawn_ship
from tureen.soup import load
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint

RECIPE = "digits"
BUNDLE = "bundle"
SAMPLES = "samples"
ATTACKED = "attacked.png"
SHIP = "ship.png"
PICTURE_SCALE = 32


class PortTakenError(TureenError):
    """The demo cannot listen on the given host and port. The operator must choose another port."""


def demo(arguments: list[str]) -> int:
    """Trains a model on handwritten digits, exports it and serves it, or serves an example bundle.

    If the bundle of an earlier call exists, skips training and export. arguments: those after `tureen demo`. Returns
    the exit status: that of the server, or that of a failed training. Raises PortTakenError before the training if the
    address is not free.
    """
    parser = argparse.ArgumentParser(
        prog="tureen demo",
        description="Train a dual-token ViT on handwritten digits (two minutes on two cores), export it, serve it.",
        epilog="example: tureen demo --port 8000",
    )
    parser.add_argument(
        "--bundle",
        choices=[RECIPE, *example_names()],
        default=RECIPE,
        help="bundle to serve: digits is trained first, the others are part of Tureen (default: %(default)s)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("tureen-demo"),
        help="directory for sample images, and for the run and the bundle of digits (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        choices=range(65536),
        metavar="PORT",
        default=8000,
        help="port to listen on (default: %(default)s)",
    )
    parser.add_argument("--no-serve", action="store_true", help="stop before serving")
    options = parser.parse_args(arguments)
    if options.bundle != RECIPE:
        return _serve_example(EXAMPLES / options.bundle, options)
    if options.no_serve:
        print(f"\n{accuracy_summary(read_manifest(prepare(options.dir)))}\n")
        return 0
    _require_free_port(options.host, options.port)
    # In a separate process, so that the server does not import torch and stays small.
    command = [sys.executable, "-m", "tureen.cli", "demo", "--dir", str(options.dir), "--no-serve"]
    if status := subprocess.run(command, check=False).returncode:  # noqa: S603 - our own command
        return max(status, 1)  # negative if a signal ended it

    from serve.server import run_server
    from serve.settings import Settings

    def print_examples(port: int) -> None:
        url = f"http://{options.host}:{port}"
        image = options.dir / SAMPLES / ATTACKED
        print(f"{image} is a digit that an attack changed to fool the clean token. At β = 0, then at β = 1:\n")
        for beta in (0, 1):
            print(f"  curl --data-binary @{image} '{url}/classify?beta={beta}&top_k=1'")
        print(f"\n{image.parent} has more digits. {_links(url)}", flush=True)

    settings = Settings(bundle=options.dir / BUNDLE, host=options.host, port=options.port, log_level="warning")
    return run_server(settings, on_ready=print_examples)


def _serve_example(bundle: Path, options: argparse.Namespace) -> int:
    from serve.server import run_server
    from serve.settings import Settings

    manifest = read_manifest(bundle)
    print(f"{accuracy_summary(manifest)}\n")
    if not options.no_serve:
        _require_free_port(options.host, options.port)
    picture: Path = options.dir / SAMPLES / SHIP
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn_ship().save(picture)
    if options.no_serve:
        return 0

    def print_examples(port: int) -> None:
        url = f"http://{options.host}:{port}"
        print(f"The labels are {', '.join(manifest.labels)}. {picture} is a drawing of a ship:\n")
        print(f"  curl --data-binary @{picture} '{url}/classify?beta=0.5&top_k=3'")
        print(f"\n{_links(url)}", flush=True)

    settings = Settings(bundle=bundle, host=options.host, port=options.port, log_level="warning")
    return run_server(settings, on_ready=print_examples)


def _links(url: str) -> str:
    return f"Console: {url}/ui. API: {url}/docs. Ctrl-C stops the server."


def prepare(directory: Path) -> Path:
    """Returns the path of the demo's bundle in `directory`.

    Trains and exports the model if the bundle or its samples are missing, or if the bundle is damaged or of another
    recipe. Resumes a training that was interrupted.
    """
    from training.recipes import load_recipe

    recipe = load_recipe(RECIPE)
    fingerprint = demo_fingerprint()
    run, bundle = directory / f"run-{fingerprint}", directory / BUNDLE
    if (bundle / MANIFEST).exists():
        try:
            made_by = load_bundle(bundle).manifest.provenance.get("demo")
            if made_by == fingerprint and (directory / SAMPLES / ATTACKED).exists():
                print(f"reusing {bundle}")
                return bundle
        except BundleError as error:
            print(f"making the bundle again: {error}")

    from export.pipeline import export_bundle
    from training.checkpoint import CHECKPOINT, load_checkpoint
    from training.run import RunOptions
    from training.run import run as train

    if not (run / CHECKPOINT).exists():
        print(f"training the recipe {RECIPE} into {run}")
        train(recipe, run, RunOptions(is_resumed=True))
    checkpoint = load_checkpoint(run)
    checkpoint.provenance["demo"] = fingerprint
    export_bundle(checkpoint, bundle, overwrite=bundle.exists(), report=print)
    write_samples(directory / SAMPLES, checkpoint, bundle)
    return bundle


def demo_fingerprint() -> str:
    """Returns the first eight hexadecimal digits of the hash of the demo's recipe.

    They are in the name of the run directory and in the bundle. So `prepare` recognises the results of another recipe.
    """
    from training.recipes import load_recipe

    return load_recipe(RECIPE).fingerprint()[:8]


def write_samples(directory: Path, checkpoint: Checkpoint, bundle: Path) -> None:
    """Writes sample images from the test set as PNG files to `directory`.

    - digit-….png: for each label, the first digit that both modes classify correctly
    - digits.png: all of these digits, enlarged
    - attacked.png: a digit after PGD on the clean mode, rounded to 8 bits; only the clean mode misclassifies it
    - pair.png: that digit before and after the attack, enlarged

    The pair shows the effect of β. It does not measure robustness. The accuracy table does, because it attacks the
    model at each β. Raises TureenError if the model has no such samples.
    """
    pixels, labels = checkpoint.test.pixels, checkpoint.test.labels
    attacked = _attacked_images(checkpoint)
    with load(bundle) as soup:

        def is_correct(images: NDArray[np.uint8], beta: float) -> NDArray[np.bool_]:
            correct: NDArray[np.bool_] = soup.logits(images, [beta] * len(images)).argmax(1) == labels
            return correct

        both_correct = is_correct(pixels, CLEAN_BETA) & is_correct(pixels, ROBUST_BETA)
        fools_clean_only = both_correct & ~is_correct(attacked, CLEAN_BETA) & is_correct(attacked, ROBUST_BETA)
    chosen = [np.flatnonzero(both_correct & (labels == label)) for label in range(len(checkpoint.labels))]
    if not fools_clean_only.any() or not all(map(len, chosen)):
        raise TureenError("the demo's model has no sample for every label: remove its directory and try again")
    directory.mkdir(parents=True, exist_ok=True)
    digits = [pixels[indices[0]] for indices in chosen]
    for label, digit in zip(checkpoint.labels, digits, strict=True):
        Image.fromarray(digit).save(directory / f"digit-{label}.png")
    index = int(np.argmax(fools_clean_only))
    _enlarged(digits).save(directory / "digits.png")
    _enlarged([pixels[index], attacked[index]]).save(directory / "pair.png")
    # Written last: for `prepare` this file means that the demo is complete.
    Image.fromarray(attacked[index]).save(directory / ATTACKED)


def _attacked_images(checkpoint: Checkpoint) -> NDArray[np.uint8]:
    """Returns the test images after a PGD attack on the clean mode, uint8 (n, H, W, 3)."""
    import torch

    from training.attacks.catalogue import ATTACKS
    from training.models.vit import images_from_pixels, pixels_from_images

    recipe, model = checkpoint.recipe, checkpoint.model
    adversarial = ATTACKS["pgd"](
        lambda x: model(x, x.new_full((len(x),), CLEAN_BETA)),
        images_from_pixels(torch.from_numpy(checkpoint.test.pixels)),
        torch.from_numpy(checkpoint.test.labels),
        epsilon=recipe.epsilon_255 / 255,
        steps=recipe.evaluation_steps,
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    return pixels_from_images(adversarial)


def _enlarged(digits: list[NDArray[np.uint8]]) -> Image.Image:
    """Returns a picture of the digits side by side, enlarged by PICTURE_SCALE, with grey lines between them."""
    line = np.full((digits[0].shape[0] * PICTURE_SCALE, PICTURE_SCALE // 4, 3), 128, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for digit in digits:
        parts += [line, digit.repeat(PICTURE_SCALE, axis=0).repeat(PICTURE_SCALE, axis=1)]
    return Image.fromarray(np.concatenate(parts[1:], axis=1))


def _require_free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            raise PortTakenError(f"{host}:{port} is in use or not available: choose another --port") from None

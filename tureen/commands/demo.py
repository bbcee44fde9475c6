"""`tureen demo`: serves an example bundle that is part of Tureen, and prints the console's address and a request.

With `--train digits` it trains a model on handwritten digits, exports it and serves it. In the package `tureen`, only
this module calls training, export and serve.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tureen.arguments import one_of, port_argument
from tureen.bundle.bundle import MANIFEST, load_bundle, read_manifest
from tureen.bundle.examples import DEFAULT_EXAMPLE, EXAMPLES, example_names
from tureen.bundle.gallery import GalleryPicture
from tureen.commands.report import accuracy_summary
from tureen.commands.terminal import terminal_columns, wrapped
from tureen.errors import BundleError, TureenError
from tureen.machine import default_cache_directory
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
ADMIN_PORT = "TUREEN_ADMIN_PORT"
ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - what --host may be, not what it is
DOCUMENTATION_ADDRESS = ("192.0.2.1", 9)  # RFC 5737: no machine has it


class PortTakenError(TureenError):
    """The demo cannot listen on the given host and port. The operator must choose another port.

    reason: of the system, such as "Address already in use". is_admin: whether the port is that of the operators' page.
    This is the port of the demo plus one, or the value of ADMIN_PORT.
    """

    def __init__(self, host: str, port: int, reason: str, *, is_admin: bool = False) -> None:
        what = ", the port of the operators' page," if is_admin else ""
        is_set = is_admin and ADMIN_PORT in os.environ
        other = f"--port {port + 10 if port < 65_000 else 8000}"
        advice = f"set {ADMIN_PORT} to another port" if is_set else f"choose another port, such as {other}"
        super().__init__(
            f"cannot listen on {host} port {port}{what} ({reason}): if another demo or server uses it, stop that one, "
            f"or {advice}"
        )


def demo(arguments: list[str]) -> int:
    """Runs `tureen demo`. Returns the exit status: that of the server, or that of a failed training.

    Without --train, serves an example bundle, which is a part of Tureen. With --train, trains a model on handwritten
    digits, exports it and serves it. If the bundle of an earlier call exists, skips training and export.

    arguments: those after `tureen demo`. Raises PortTakenError before anything else if the address, or
    that of the operators' listener, is not free.
    """
    parser = argparse.ArgumentParser(
        prog="tureen demo",
        description="Serve an example bundle that is part of Tureen, or with --train a model that was trained on this "
        "machine.",
        epilog="example: tureen demo --port 8000",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--bundle",
        type=one_of(example_names()),
        choices=example_names(),
        default=DEFAULT_EXAMPLE,
        help="example to serve (default: %(default)s)",
    )
    model.add_argument(
        "--train",
        type=one_of([RECIPE]),
        choices=[RECIPE],
        help="train this recipe and serve its model: a dual-token ViT for handwritten digits, two minutes on two cores",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("tureen-demo"),
        help="directory for sample images, and for run and bundle of a training (default: %(default)s; if it cannot be "
        "written, demo in the cache directory)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=port_argument,
        metavar="PORT",
        default=8000,
        help="port to listen on (default: %(default)s)",
    )
    parser.add_argument("--no-serve", action="store_true", help="stop before serving")
    options = parser.parse_args(arguments)
    if not options.no_serve:
        _require_free_port(options.host, options.port)
        if options.port and ADMIN_PORT not in os.environ:
            _require_free_port("127.0.0.1", (options.port + 1) % 65536, is_admin=True)
    options.dir = _writable(options.dir)
    return _demonstrate_example(options) if options.train is None else _demonstrate_training(options)


def _demonstrate_example(options: argparse.Namespace) -> int:
    path = EXAMPLES / options.bundle
    what, requests = _write_example_samples(path, options.dir / SAMPLES)
    if options.no_serve:
        print(wrapped(f"{accuracy_summary(read_manifest(path))}\n\n{what}", terminal_columns()))
        return 0
    return _serve(path, options, what, *requests)


def _write_example_samples(path: Path, directory: Path) -> tuple[str, list[list[str]]]:
    """Writes the sample images of the example bundle `path`. Returns what they are, and requests as for `_serve`.

    The samples are the pictures of the bundle's gallery, or a drawing of a ship if the bundle has none.
    """
    bundle = load_bundle(path)
    directory.mkdir(parents=True, exist_ok=True)
    if bundle.gallery is None:
        ship = directory / SHIP
        drawn_ship().save(ship)
        labels = ", ".join(bundle.manifest.labels)
        what = f"{ship} is a drawing of a ship. The labels of {path.name} are {labels}."
        return what, [[f"@{ship}", "strength=0.5&top_k=3"]]
    first, *_ = [_write_picture(directory, picture) for picture in bundle.gallery.pictures]
    what = (
        f"{first} is a drawing that an attack changed to fool the clean token. {directory} has more pictures, as drawn "
        "and as attacked."
    )
    return what, [[f"@{first}", f"strength={strength}&top_k=1"] for strength in (0, 1)]


def _write_picture(directory: Path, picture: GalleryPicture) -> Path:
    """Writes a picture as drawn, TITLE.png, and after the attack on the clean token. Returns the path of the second."""
    name = picture.title.replace(" ", "-")
    (directory / f"{name}.png").write_bytes(b64decode(picture.drawn))
    attacked = directory / f"{name}-attacked.png"
    attacked.write_bytes(b64decode(picture.clean))
    return attacked


def _demonstrate_training(options: argparse.Namespace) -> int:
    if options.no_serve:
        try:
            bundle = prepare(options.dir)
        except ModuleNotFoundError as error:
            raise TureenError(f"{error.name} is not installed: install Tureen with its extra [demo]") from None
        print(wrapped(f"\n{accuracy_summary(read_manifest(bundle))}\n", terminal_columns()))
        return 0
    # In a separate process, so that the server does not import torch and stays small.
    command = [sys.executable, "-m", "tureen.cli", "demo", "--train", RECIPE, "--dir", str(options.dir), "--no-serve"]
    if status := subprocess.run(command, check=False).returncode:  # noqa: S603 - our own command
        return max(status, 1)  # negative if a signal ended it
    image = options.dir / SAMPLES / ATTACKED
    what = f"{image} is a digit that an attack changed to fool the clean token. {image.parent} has more digits."
    requests = [[f"@{image}", f"strength={strength}&top_k=1"] for strength in (0, 1)]
    return _serve(options.dir / BUNDLE, options, what, *requests)


def _serve(bundle: Path, options: argparse.Namespace, what: str, *requests: list[str]) -> int:
    """Serves a bundle until a signal stops the server. Returns the exit status.

    When the engine is ready, prints the address of the console, the text `what`, a curl command for each request, and
    the address of the operators' page. requests: pairs of the data that curl sends and the query.

    The state directory is a temporary one. So the operator's settings of another server do not apply to the demo, and
    each demo starts with the settings of the bundle. Raises PortTakenError if a port is taken.
    """
    from serve.control.state_directory import TOKEN_FILE
    from serve.errors import PortError
    from serve.server import run_server
    from serve.settings_sources import parse_settings

    with tempfile.TemporaryDirectory(prefix="tureen-demo-") as state:

        def print_examples(port: int, admin_port: int) -> None:
            url, admin_url = f"http://{_host_of_url(options.host)}:{port}", f"http://127.0.0.1:{admin_port}"
            columns = terminal_columns()
            print(f"Console: {url}/ui")
            if options.host in ALL_ADDRESSES:
                print(wrapped(f"From another machine: http://{_address_of_machine()}:{port}/ui", columns))
            print(f"\n{wrapped(what, columns)}\n")
            for data, query in requests:
                print(f"  curl --data-binary {data} '{url}/classify?{query}'")
            token = f"The token to sign in is in {Path(state) / TOKEN_FILE}."
            print(f"\n{wrapped(f'Operators: {admin_url}/ui. {token} On a terminal:', columns)}\n")
            print(f"  tureen beta get --url {admin_url} --state-dir {state}")
            print(f"\n{wrapped('That directory is for this demo alone, which removes it at its end.', columns)}")
            print(wrapped(f"API: {url}/docs. Ctrl-C stops the server.", columns), flush=True)

        given = {"host": options.host, "port": options.port, "state-dir": state, "log-level": "warning"}
        flags = [f"--{name}={value}" for name, value in given.items()]
        variables = {ADMIN_PORT: os.environ[ADMIN_PORT]} if ADMIN_PORT in os.environ else {}
        try:
            return run_server(parse_settings([str(bundle.absolute()), *flags], variables), on_ready=print_examples)
        except PortError as error:
            raise PortTakenError(error.host, error.port, error.reason, is_admin=error.is_admin) from None


def _host_of_url(host: str) -> str:
    """Returns the host of the demo's URL, as a browser on this machine opens it. host: the address to listen on."""
    if host in ALL_ADDRESSES:
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _address_of_machine() -> str:
    """Returns the IPv4 address that this machine uses towards other machines, or its name if it has no such address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(DOCUMENTATION_ADDRESS)  # sends no packet, but chooses the address
        except OSError:
            return socket.gethostname()
        address: str = probe.getsockname()[0]
        return address


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
    from training.preparation import RunOptions
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

    The digits are in the name of the run directory and in the bundle. So `prepare` recognises the results of another
    recipe.
    """
    from training.recipes import load_recipe

    return load_recipe(RECIPE).fingerprint()[:8]


def write_samples(directory: Path, checkpoint: Checkpoint, bundle: Path) -> None:
    """Writes sample images from the test set as PNG files to `directory`.

    - digit-….png: for each label, the first digit that both modes classify correctly
    - digits.png: all of these digits, enlarged
    - attacked.png: a digit after PGD on the clean mode, rounded to 8 bits; only the clean mode misclassifies it
    - pair.png: that digit before and after the attack, enlarged

    The pair shows the effect of β. It does not measure robustness. The accuracy table measures robustness, with an
    attack on the model at each β. Raises TureenError if the model has no such samples.
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
    """Returns the test images after a PGD attack on the clean mode, uint8 (B, H, W, 3)."""
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


def _writable(directory: Path) -> Path:
    """Returns `directory`, or demo/ in the cache directory if `directory` cannot be written. Creates the directory.

    Prints a sentence on standard error if it is not `directory`. Raises TureenError if neither can be written.
    """
    other = default_cache_directory() / "demo"
    reason = _why_not_writable(directory)
    if reason is None:
        return directory
    if _why_not_writable(other) is not None:
        raise TureenError(f"neither {directory} nor {other} can be written ({reason}): give another --dir")
    print(f"{directory} cannot be written ({reason}): the files of the demo are in {other}", file=sys.stderr)
    return other


def _why_not_writable(directory: Path) -> str | None:
    """Creates the directory if it is missing. Returns why it cannot be written, or None if it can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _require_free_port(host: str, port: int, *, is_admin: bool = False) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PortTakenError(host, port, reason, is_admin=is_admin) from None

"""Attacks a running server through HTTP, and compares the result with the white-box figure of the bundle.

    python -m benchmarks.black_box                                         # the example bundle, images of CIFAR-10
    python -m benchmarks.black_box tureen-demo/bundle --data digits
    python -m benchmarks.black_box BUNDLE --data DIR --queries 5000        # the number of queries in AutoAttack

The attack is Square, which needs no gradient. It uses only the probabilities in the responses, which any client
receives. A white-box attack also uses the weights, so a good white-box attack breaks at least as many images. If Square
breaks more images than the white-box attack whose result is in the manifest, the white-box attack was too weak, or
gradients are masked. Then the white-box figure is not reliable.

A strength is a number from 0 (clean mode) to 1 (robust mode). The curve in the manifest maps it to β.

Source: Andriushchenko, Croce, Flammarion & Hein, *Square attack: a query-efficient black-box adversarial attack via
random search*, ECCV 2020. The implementation is that of the package `pyautoattack`.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import fisher_exact
from torch import Tensor

from benchmarks.digits import format_accuracy
from benchmarks.load import HOST
from benchmarks.machine import describe_machine
from benchmarks.server_process import run_tureen
from benchmarks.workload import CIFAR10, SMALL_BUNDLE, extract_cifar10_test
from serve.admin.expected_accuracy import expected_accuracy
from training.attacks.autoattack import square
from training.data.datasets import Images, balanced_sample, load_digits
from training.evaluation.accuracy import wilson_interval
from training.evaluation.measure import read_images
from training.models.vit import images_from_pixels, pixels_from_images
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import Accuracy, Manifest
from tureen.preprocess import Pixels

STRENGTHS = (0.0, 0.5, 1.0)
IMAGES_PER_REQUEST = 64  # the default limit of the server
TIMEOUT_S = 120
SIGNIFICANCE = 0.05
"""Significance level of all tests together. There is one test per strength, with an equal share (Bonferroni)."""
TEST = "Fisher's exact test, 5 % over all strengths"
LEAST_PROBABILITY = 1e-300  # a probability of 0 has no logarithm


class HttpClassifier:
    """A client of `POST /classify` at one strength, over one connection. It has no access to the model."""

    def __init__(self, port: int, *, classes: int, strength: float) -> None:
        """Opens no connection yet.

        classes: number of classes, sent as `top_k`. The server refuses a number above its --max-top-k.
        """
        self._connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
        self._path = f"/classify?strength={strength!r}&top_k={classes}"
        self._classes = classes
        self.queries = 0  # images sent so far

    def close(self) -> None:
        self._connection.close()

    def classify(self, pixels: Pixels) -> list[dict[str, Any]]:
        """Sends the images as PNG files. Returns the JSON result of each image, in order.

        pixels: uint8 (B, H, W, 3). Raises RuntimeError if the server refuses a request or an image.
        """
        results: list[dict[str, Any]] = []
        for start in range(0, len(pixels), IMAGES_PER_REQUEST):
            files = [{"data": _png(image)} for image in pixels[start : start + IMAGES_PER_REQUEST]]
            self._connection.request(
                "POST", self._path, json.dumps({"images": files}), {"Content-Type": "application/json"}
            )
            response = self._connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                raise RuntimeError(f"POST {self._path}: status {response.status}: {body[:500].decode()}")
            results += json.loads(body)["results"]
        self.queries += len(pixels)
        if problems := [result["problem"] for result in results if "problem" in result]:
            raise RuntimeError(f"POST {self._path}: {len(problems)} images were not classified: {problems[0]}")
        return results

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Returns the logarithm of the probability of each class for each image, float32 (images, classes).

        images: float (B, 3, H, W) in [0, 1]; they are rounded to 8 bits before they are sent.
        """
        scores = np.zeros((len(images), self._classes))
        for row, result in zip(scores, self.classify(pixels_from_images(images)), strict=True):
            for prediction in result["predictions"]:
                row[prediction["index"]] = prediction["probability"]
        return torch.from_numpy(np.log(scores.clip(LEAST_PROBABILITY))).float()


@dataclass(frozen=True)
class BlackBoxResult:
    """The accuracy over HTTP at one strength, before and after the Square attack on the same images.

    before: share of images that are classified correctly without the attack. after: share of images that are classified
    correctly both without and under the attack.
    """

    before: Accuracy
    after: Accuracy
    n: int  # number of images
    beta: float  # β of the strength, from the responses
    queries: int  # number of images sent, in all requests together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=SMALL_BUNDLE, help="bundle (default: the example)")
    parser.add_argument(
        "--data",
        help="`digits`, or labelled images as for `tureen evaluate` (default: CIFAR-10, beside the repository)",
    )
    parser.add_argument(
        "--images", type=int, default=100, help="number of images, drawn evenly from the classes (default: %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=500, help="queries for each image (default: %(default)s)")
    parser.add_argument("--epsilon-255", type=int, help="radius in 1/255 (default: that of the manifest)")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, metavar="S")
    parser.add_argument("--flags", default="", help="additional flags for `tureen serve`, as one argument")
    options = parser.parse_args()
    if options.data is None and (options.bundle != SMALL_BUNDLE or not CIFAR10.exists()):
        parser.error(
            "no labelled images: pass --data; or `tureen demo --train digits --no-serve` creates tureen-demo/bundle, "
            "for --data digits"
        )
    manifest = load_bundle(options.bundle).manifest
    if not manifest.is_cotrained:
        parser.error(f"{options.bundle} is not co-trained, so it has no strength")
    epsilon_255 = manifest.accuracy[0].epsilon_255 if options.epsilon_255 is None else options.epsilon_255
    if epsilon_255 != int(epsilon_255):
        parser.error(f"--epsilon-255 is required: {epsilon_255:g} of the manifest is no whole number of 8-bit steps")
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        images = load_images(options.data, manifest, options.images, Path(scratch))
        print(
            f"{manifest.name}, {len(images)} images, Square with {options.queries} queries for each image through "
            f"HTTP, l∞ ε = {epsilon_255:g}/255; accuracy in % (95 % interval)"
        )
        print(f"white-box, from the manifest: {manifest.accuracy[0].attack} on {manifest.accuracy[0].n} images")
        flags = ("--max-top-k", str(len(manifest.labels)), "--state-dir", scratch, *shlex.split(options.flags))
        with run_tureen(options.bundle, *flags) as server:
            print(f"{'strength':>8}{'β':>7}  {'before':>21}  {'after Square':>21}  {'white-box':>21}")
            stronger: dict[float, bool | None] = {}
            for strength in options.strengths:
                result = attack_server(
                    server.port,
                    images,
                    manifest=manifest,
                    strength=strength,
                    epsilon_255=int(epsilon_255),
                    queries=options.queries,
                )
                stronger[strength] = report_strength(
                    manifest, strength, result, epsilon_255=epsilon_255, tests=len(options.strengths)
                )
    report_verdict(stronger)


def load_images(data: str | None, manifest: Manifest, count: int, scratch: Path) -> Images:
    """Returns at most `count` labelled images at the model's size.

    data: "digits", or a location of labelled images as for `tureen evaluate --data`; None for the test set of CIFAR-10.
    scratch: a directory for extracted files.
    """
    if data == "digits":
        return balanced_sample(load_digits().test, count)
    folder = data or str(extract_cifar10_test(scratch))
    return read_images(folder, manifest.preprocess, manifest.labels, at_most=count)


def attack_server(
    port: int, images: Images, *, manifest: Manifest, strength: float, epsilon_255: int, queries: int, seed: int = 0
) -> BlackBoxResult:
    """Attacks each image with Square through the server on `port`. Returns the accuracy before and after the attack.

    images: pixels uint8 (B, H, W, 3). strength: of every request. epsilon_255: radius under l∞, in 1/255. queries:
    number of queries that the attack may use for each image. seed: of the random search.
    """
    x, labels = images_from_pixels(torch.from_numpy(images.pixels)), torch.from_numpy(images.labels)
    with closing(HttpClassifier(port, classes=len(manifest.labels), strength=strength)) as client:
        beta = client.classify(images.pixels[:1])[0]["beta"]
        is_right = client.log_probabilities(x).argmax(1) == labels
        adversarial = square(
            client.log_probabilities,
            x,
            labels,
            epsilon=epsilon_255 / 255,
            steps=queries,
            generator=torch.Generator().manual_seed(seed),
        )
        pixels = pixels_from_images(adversarial)
        # ε is a whole number of 8-bit steps, so the rounded images stay in the ball too.
        assert np.abs(pixels.astype(int) - images.pixels).max() <= epsilon_255
        is_robust = is_right & (client.log_probabilities(adversarial).argmax(1) == labels)
        return BlackBoxResult(
            before=wilson_interval(int(is_right.sum()), len(images)),
            after=wilson_interval(int(is_robust.sum()), len(images)),
            n=len(images),
            beta=beta,
            queries=client.queries,
        )


def is_stronger(result: BlackBoxResult, white_box: float, n: int, *, tests: int) -> bool:
    """Returns whether the accuracy under Square is significantly lower than under the white-box attack.

    white_box: accuracy under the white-box attack, in [0, 1], on `n` images. tests: number of strengths that are
    tested. The test is Fisher's exact test, one-sided, at the level SIGNIFICANCE / tests.
    """
    kept, kept_white_box = round(result.after.value * result.n), round(white_box * n)
    table = [[kept, result.n - kept], [kept_white_box, n - kept_white_box]]
    return bool(fisher_exact(table, alternative="less").pvalue < SIGNIFICANCE / tests)


def report_strength(
    manifest: Manifest, strength: float, result: BlackBoxResult, *, epsilon_255: float, tests: int
) -> bool | None:
    """Prints one line with the accuracies at one strength.

    Returns whether Square is significantly stronger than the white-box attack; None if the manifest has no white-box
    accuracy at this ε. tests: number of strengths that are tested.
    """
    line = f"{strength:8.2f}{result.beta:7.2f}  {format_accuracy(result.before)}  {format_accuracy(result.after)}"
    expected = expected_accuracy(manifest, result.beta)
    if expected is None or expected["epsilon_255"] != epsilon_255:
        print(f"{line}  not measured at this ε", flush=True)
        return None
    note = ", interpolated between two β" if expected["interpolated"] else ""
    print(f"{line}  {format_accuracy(Accuracy(**expected['robust']))}{note}", flush=True)
    return is_stronger(result, expected["robust"]["value"], expected["n"], tests=tests)


def report_verdict(stronger: Mapping[float, bool | None]) -> None:
    """Prints the strengths at which Square is significantly stronger than the white-box attack.

    stronger: for each strength, the result of `report_strength`.
    """
    found = [f"{strength:g}" for strength, is_found in stronger.items() if is_found]
    if None in stronger.values():
        print("the manifest has no white-box figure at this ε")
    elif found:
        print(
            f"Square is STRONGER than the white-box attack beyond chance ({TEST}) at strength {', '.join(found)}: "
            "do not trust the white-box figure, and evaluate with a stronger attack"
        )
    else:
        print(f"Square is at no strength stronger than the white-box attack beyond chance ({TEST})")


def _png(image: Pixels) -> str:
    """Returns an image, uint8 (H, W, 3), as a PNG file in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main()

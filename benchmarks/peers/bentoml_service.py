"""Serves a bundle by BentoML. Takes the image from the form file `images`, as BentoML documents it for images."""
# No postponed annotations: BentoML reads those of the API at run time.

import os
import sys
from typing import Any

import bentoml
from PIL.Image import Image

from benchmarks.peers.classifier import Classifier, read_options

OPTIONS = read_options()
SERVICE = f"{__spec__.name}:ImageClassifier"


@bentoml.service(workers=OPTIONS["workers"], threads=OPTIONS["threads"], logging={"access": {"enabled": False}})
class ImageClassifier:
    """The service of BentoML around a Classifier."""

    def __init__(self) -> None:
        self.classifier = Classifier(OPTIONS)

    @bentoml.api(
        batchable=OPTIONS["max_batch_size"] > 1,
        max_batch_size=max(2, OPTIONS["max_batch_size"]),  # BentoML refuses 1
        max_latency_ms=OPTIONS["max_latency_ms"],
    )
    def classify(self, images: list[Image]) -> list[dict[str, Any]]:
        return self.classifier.classify([file_content(image) for image in images])


def file_content(image: Image) -> bytes:
    """Returns the bytes of the file from which Pillow opened the image. BentoML opens files, and decodes no pixels."""
    image.fp.seek(0)
    content: bytes = image.fp.read()
    return content


def main() -> None:
    address = ["--host", "127.0.0.1", "--port", str(OPTIONS["port"])]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", SERVICE, *address])


if __name__ == "__main__":
    main()

"""Classifies images in the server of a peer, with the decoder, the engine and the token of Tureen.

Runs in the virtual environment of the peer, and imports nothing of it. So all servers do the same work for an image,
and differ only in how they receive, batch and answer requests.
"""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.interface.probabilities import top_predictions
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import pixels_from_bytes
from tureen.soup import Soup

OPTIONS = "TUREEN_PEER_OPTIONS"  # environment variable: the options of a peer's server, as JSON
BETA = 0.5
TOP_K = 5


def read_options() -> dict[str, Any]:
    """Returns the options of this server: bundle, port, other_ports, engine, precision, and the peer's settings."""
    options: dict[str, Any] = json.loads(os.environ[OPTIONS])
    return options


class Classifier:
    """An open engine, and threads that decode images.

    The options `workers`, `threads` and `max_batch_size` mean the same for each peer: processes with an engine, threads
    of each, and the largest batch. If requests are not batched, each thread answers a request. Otherwise the threads
    decode the images of a batch, and one run of the engine classifies them.
    """

    def __init__(self, options: dict[str, Any], *, calls: int | None = None) -> None:
        """calls: concurrent calls of `classify`; None: one for each thread, or one if requests are batched."""
        threads, largest = options["threads"], max(1, options["max_batch_size"])
        bundle = load_bundle(Path(options["bundle"]))
        cpus = max(1, available_cpus() // max(1, options["workers"]))
        self.calls = calls or (1 if largest > 1 else threads)
        engine_options = EngineOptions(threads=cpus, streams=min(self.calls, cpus), cache=default_cache_directory())
        self.soup = Soup(bundle, open_engine(bundle, options["engine"], options["precision"], engine_options))
        self.temperature = float(self.soup.temperatures.at([BETA])[0])
        self._decoders = ThreadPoolExecutor(threads)
        self._callers = ThreadPoolExecutor(self.calls)
        size = 1
        while size <= largest:  # compiles what the engine compiles for each size
            self.soup.logits(np.zeros((size, *bundle.golden.pixels.shape[1:]), np.uint8), [BETA] * size)
            size *= 2

    def classify(self, images: list[bytes]) -> list[dict[str, Any]]:
        """Returns the body of a response for each image. images: encoded image files."""
        decode = self._decoders.map if len(images) > 1 else map
        pixels = np.stack(list(decode(self._pixels, images)))
        return [self._response(row) for row in self.soup.logits(pixels, [BETA] * len(pixels))]

    async def classify_in_thread(self, images: list[bytes]) -> list[dict[str, Any]]:
        """Returns what `classify` does, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self.classify, images)

    def _pixels(self, image: bytes) -> Any:
        return pixels_from_bytes(image, self.soup.bundle.manifest.preprocess)

    def _response(self, logits: Any) -> dict[str, Any]:
        manifest = self.soup.bundle.manifest
        predictions = top_predictions(logits, self.soup.labels, TOP_K, self.temperature)
        return {
            "model": manifest.name,
            "version": manifest.version,
            "beta": BETA,
            "predictions": [prediction.model_dump() for prediction in predictions],
        }

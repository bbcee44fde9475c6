"""Serves a bundle by LitServe with the decoder and the engine of Tureen. `litserve_comparison` starts it.

    python -m benchmarks.litserve_server --bundle DIR --port 9000 --engine openvino --precision bf16 --max-batch-size 16

Reads the image of a request from the form file `request`. LitServe accepts JSON and forms; a form file costs least.
"""
# No postponed annotations: LitServe reads those of decode_request at run time.

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import File

from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import Pixels, pixels_from_bytes
from tureen.soup import Soup, top_predictions

BETA = 0.5


class Classifier(litserve.LitAPI):
    """LitServe hooks that do the same work as POST /classify of Tureen."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(max_batch_size=options.max_batch_size, batch_timeout=options.batch_timeout)
        self.options = options

    def setup(self, device: str) -> None:
        options = self.options
        bundle = load_bundle(options.bundle)
        cpus = max(1, available_cpus() // options.workers)
        engine = open_engine(
            bundle, options.engine, options.precision, EngineOptions(threads=cpus, cache=default_cache_directory())
        )
        self.soup = Soup(bundle, engine)
        self.decoders = ThreadPoolExecutor(options.decode_threads)
        size = 1
        while size <= options.max_batch_size:
            self.predict(np.zeros((size, *bundle.golden.pixels.shape[1:]), np.uint8))
            size *= 2

    def decode_request(self, request: Annotated[bytes, File()]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> Pixels:
        return np.stack(list(self.decoders.map(self._pixels, inputs)))

    def predict(self, x: Pixels) -> Any:
        return self.soup.logits(x, [BETA] * len(x))

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        manifest = self.soup.bundle.manifest
        predictions = top_predictions(output, self.soup.labels, 5)
        return {
            "model": manifest.name,
            "version": manifest.version,
            "beta": BETA,
            "predictions": [prediction.model_dump() for prediction in predictions],
        }

    def _pixels(self, image: bytes) -> Pixels:
        return pixels_from_bytes(image, self.soup.bundle.manifest.preprocess)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--batch-timeout", type=float, default=0.002)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--decode-threads", type=int, default=1)
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true")
    options = parser.parse_args()
    server = litserve.LitServer(
        Classifier(options), accelerator="cpu", workers_per_device=options.workers, fast_queue=options.fast_queue
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=options.api_servers,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()

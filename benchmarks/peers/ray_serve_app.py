"""Serves a bundle by Ray Serve, on a cluster of this machine alone. Takes the image from the body of the request."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.peers.classifier import Classifier, read_options
from tureen.machine import available_cpus

OPTIONS = read_options()


class ImageClassifier:
    """The deployment of Ray Serve around a Classifier."""

    def __init__(self) -> None:
        self.classifier = Classifier(OPTIONS)

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method == "GET":  # whether the deployment is ready
            return JSONResponse({})
        image = await request.body()
        if OPTIONS["max_batch_size"] > 1:
            return JSONResponse(await self.classify_batch(image))
        return JSONResponse((await self.classifier.classify_in_thread([image]))[0])

    @serve.batch(max_batch_size=max(1, OPTIONS["max_batch_size"]), batch_wait_timeout_s=OPTIONS["batch_timeout"])
    async def classify_batch(self, images: list[bytes]) -> list[dict[str, Any]]:
        return await self.classifier.classify_in_thread(images)


def main() -> None:
    ray.init(num_cpus=available_cpus(), include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": OPTIONS["port"]})
    deployment = serve.deployment(
        ImageClassifier,
        num_replicas=OPTIONS["workers"],
        max_ongoing_requests=OPTIONS["max_ongoing_requests"],
        logging_config=LoggingConfig(enable_access_log=False),
    )
    stopped = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)  # after ray.init, which sets a handler
    serve.run(deployment.bind())
    stopped.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()

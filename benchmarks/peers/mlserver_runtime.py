"""Serves a bundle by MLServer. Takes the image in base64 from a request of the Open Inference Protocol."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.cli.main import root as run_mlserver
from mlserver.codecs import Base64Codec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers.classifier import Classifier, read_options


class ImageClassifier(MLModel):
    """The runtime of MLServer around a Classifier."""

    async def load(self) -> bool:
        self.classifier = Classifier(read_options())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = Base64Codec.decode_input(payload.inputs[0])
        responses = [json.dumps(response) for response in await self.classifier.classify_in_thread(images)]
        output = ResponseOutput(name="response", datatype="BYTES", shape=[len(responses), 1], data=responses)
        return InferenceResponse(model_name=self.name, outputs=[output])


def main() -> None:
    options = read_options()
    directory = tempfile.TemporaryDirectory()
    server = {
        "host": "127.0.0.1",
        "http_port": options["port"],
        "grpc_port": options["other_ports"][0],
        "metrics_port": options["other_ports"][1],
        "parallel_workers": options["workers"],
        "debug": False,  # True logs each request
        "metrics_dir": directory.name,
        "environments_dir": directory.name,
    }
    model = {
        "name": "classifier",
        "implementation": f"{__spec__.name}.ImageClassifier",
        "max_batch_size": options["max_batch_size"],
        "max_batch_time": options["batch_timeout"],
    }
    with directory:
        for name, content in (("settings", server), ("model-settings", model)):
            (Path(directory.name) / f"{name}.json").write_text(json.dumps(content))
        run_mlserver(["start", directory.name])


if __name__ == "__main__":
    main()

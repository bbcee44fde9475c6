"""Serves a bundle by LitServe. Takes the image from the form file `request`: LitServe accepts JSON and forms alone."""
# No postponed annotations: LitServe reads those of decode_request at run time.

from typing import Annotated, Any

import litserve
from fastapi import File

from benchmarks.peers.classifier import Classifier, read_options


class ImageClassifier(litserve.LitAPI):
    """The hooks of LitServe around a Classifier."""

    def setup(self, device: str) -> None:
        self.classifier = Classifier(read_options(), calls=1)

    def decode_request(self, request: Annotated[bytes, File()]) -> bytes:
        return request

    def predict(self, x: Any) -> Any:
        return self.classifier.classify(x) if isinstance(x, list) else self.classifier.classify([x])[0]

    def encode_response(self, output: Any) -> Any:
        return output


def main() -> None:
    options = read_options()
    api = ImageClassifier(max_batch_size=options["max_batch_size"], batch_timeout=options["batch_timeout"])
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options["workers"], fast_queue=options["fast_queue"]
    )
    server.run(
        host="127.0.0.1",
        port=options["port"],
        num_api_servers=options["api_servers"],
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()

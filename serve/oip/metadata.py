"""Builds the metadata, configuration, statistics and model index of the Open Inference Protocol as JSON objects.

`serve.oip.grpc_server` converts them to gRPC messages, which have the same fields.
"""

from __future__ import annotations

from typing import Any

import tureen
from serve.errors import UnknownModelError
from serve.inference.loaded_model import LoadedModel
from serve.inference.service import Service
from serve.oip.request import BETA, IMAGE, INPUT_DATATYPES, OUTPUTS, PIXELS, WEIGHTS
from serve.oip.statistics import Statistics
from serve.settings import Settings
from serve.telemetry.metrics import Metrics

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"]
CONFIG_DATATYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}


def find_model(service: Service, name: str, version: str = "") -> LoadedModel:
    """Returns the served model if it has this name and version. version: "" accepts any version.

    Raises UnknownModelError if the served model has another name or version, and NotReadyError if no model is loaded.
    """
    model = service.model
    manifest = model.bundle.manifest
    if name != manifest.name or version not in ("", manifest.version):
        requested = f"{name[:40]!r}" + (f" version {version[:40]!r}" if version else "")
        raise UnknownModelError(
            f"there is no model {requested}: this server has {manifest.name!r} version {manifest.version!r}"
        )
    return model


def server_metadata() -> dict[str, Any]:
    """Returns the server's name, its version, and the extensions of the protocol that it supports."""
    return {"name": "tureen", "version": tureen.__version__, "extensions": EXTENSIONS}


def model_metadata(model: LoadedModel) -> dict[str, Any]:
    """Returns the name and versions of the model, and the datatype and shape of each input and output.

    The size -1 in a shape stands for a dimension of any size: the batch, and the number of tokens in weights.
    """
    manifest = model.bundle.manifest
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": "tureen",
        "inputs": [
            {"name": name, "datatype": INPUT_DATATYPES[name], "shape": [-1, *dims]}
            for name, dims in _input_dims(model).items()
        ],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, len(manifest.labels)]} for name in OUTPUTS],
    }


def model_config(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    """Returns the configuration of the model in the format of Triton.

    The `dims` of a tensor exclude the batch dimension. `max_batch_size` is the largest number of images in a request.
    """
    manifest = model.bundle.manifest
    return {
        "name": manifest.name,
        "platform": "tureen",
        "backend": model.soup.engine.name,
        "max_batch_size": settings.max_images_per_request,
        # All inputs are declared as optional, because a request has either image or pixels.
        "input": [
            {"name": name, "data_type": CONFIG_DATATYPES[INPUT_DATATYPES[name]], "dims": dims, "optional": True}
            for name, dims in _input_dims(model).items()
        ],
        "output": [{"name": name, "data_type": "TYPE_FP32", "dims": [len(manifest.labels)]} for name in OUTPUTS],
        "dynamic_batching": {"preferred_batch_size": [settings.max_batch], "max_queue_delay_microseconds": 0},
    }


def model_statistics(model: LoadedModel, statistics: Statistics, metrics: Metrics) -> dict[str, Any]:
    """Returns the counters of the served model in the format of the statistics extension."""
    manifest = model.bundle.manifest
    batches = metrics.registry.get_sample_value("tureen_batch_images_count") or 0
    return {"model_stats": [{"name": manifest.name, "version": manifest.version, **statistics.as_dict(round(batches))}]}


def repository_index(model: LoadedModel, *, is_ready: bool) -> list[dict[str, str]]:
    """Returns the list of models: the served model with its state, READY or UNAVAILABLE."""
    manifest = model.bundle.manifest
    state = {"state": "READY"} if is_ready else {"state": "UNAVAILABLE", "reason": "the server is shutting down"}
    return [{"name": manifest.name, "version": manifest.version, **state}]


def _input_dims(model: LoadedModel) -> dict[str, list[int]]:
    """Returns the dimensions of each input by name, without the batch dimension.

    A model with one token has no input beta.
    """
    manifest = model.bundle.manifest
    size = manifest.preprocess.image_size
    dims = {IMAGE: [1], PIXELS: [size, size, 3]}
    return {**dims, **({BETA: [1]} if manifest.has_two_tokens else {}), WEIGHTS: [-1]}

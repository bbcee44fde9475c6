"""The protocol's descriptions of the server and its model, which become messages of gRPC as they are."""

from dataclasses import dataclass

import pytest
from google.protobuf.json_format import ParseDict

import tureen
from serve.errors import NotReadyError, UnknownModelError
from serve.oip.metadata import (
    find_model,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from serve.oip.proto import inference_pb2 as pb
from serve.oip.statistics import Statistics
from serve.settings import Settings
from serve.telemetry.metrics import Metrics


class Service:
    """A service with this model, or one that is not ready."""

    def __init__(self, model=None):
        self._model = model

    @property
    def model(self):
        if self._model is None:
            raise NotReadyError
        return self._model


@dataclass
class Engine:
    name: str = "onnxruntime"


@dataclass
class Model:
    """A model that is also its soup."""

    bundle: object
    engine: Engine

    @property
    def soup(self):
        return self


@pytest.fixture
def model(bundle):
    return Model(bundle, Engine())


def test_a_model_is_found_by_its_name_and_its_version_or_none(model):
    version = model.bundle.manifest.version
    for arguments in (("cifar10",), ("cifar10", ""), ("cifar10", version)):
        assert find_model(Service(model), *arguments) is model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("other",), "there is no model 'other': this server has 'cifar10'"),
        (("cifar10", "9"), "there is no model 'cifar10' version '9'"),
        (("",), "there is no model ''"),
        (("x" * 100,), f"'{'x' * 40}':"),
    ],
)
def test_another_model_or_version_is_an_error_that_names_the_one_of_the_server(model, arguments, words):
    with pytest.raises(UnknownModelError, match=words):
        find_model(Service(model), *arguments)


def test_no_model_is_found_before_the_service_is_ready():
    with pytest.raises(NotReadyError):
        find_model(Service(), "cifar10")


def test_the_server_names_its_extensions():
    assert server_metadata()["version"] == tureen.__version__
    assert "binary_tensor_data" in server_metadata()["extensions"]


def test_a_model_of_one_token_has_no_input_beta(model):
    names = [each["name"] for each in model_metadata(model)["inputs"]]
    assert names == ["image", "pixels", "beta", "weights"]

    class OneToken:
        def __getattr__(self, name):
            return False if name == "has_two_tokens" else getattr(manifest, name)

    manifest = model.bundle.manifest

    @dataclass
    class Bundle:
        manifest: object

    single = Model(Bundle(OneToken()), Engine())
    assert [each["name"] for each in model_metadata(single)["inputs"]] == ["image", "pixels", "weights"]
    assert [each["name"] for each in model_config(single, Settings(bundle="x"))["input"]] == [
        "image",
        "pixels",
        "weights",
    ]


def test_the_configuration_has_the_limits_of_the_settings(model):
    config = model_config(model, Settings(bundle="x", max_images_per_request=7, max_batch=3))
    assert (config["max_batch_size"], config["backend"]) == (7, "onnxruntime")
    assert config["dynamic_batching"]["preferred_batch_size"] == [3]


@pytest.mark.parametrize(("is_ready", "state"), [(True, "READY"), (False, "UNAVAILABLE")])
def test_the_index_has_the_state_of_the_model(model, is_ready, state):
    (entry,) = repository_index(model, is_ready=is_ready)
    assert (entry["name"], entry["state"], "reason" in entry) == ("cifar10", state, not is_ready)


def test_every_description_is_a_message_of_grpc(model):
    ParseDict(server_metadata(), pb.ServerMetadataResponse())
    ParseDict(model_metadata(model), pb.ModelMetadataResponse())
    ParseDict({"config": model_config(model, Settings(bundle="x"))}, pb.ModelConfigResponse())
    ParseDict(model_statistics(model, Statistics(), Metrics()), pb.ModelStatisticsResponse())
    for is_ready in (True, False):
        ParseDict({"models": repository_index(model, is_ready=is_ready)}, pb.RepositoryIndexResponse())

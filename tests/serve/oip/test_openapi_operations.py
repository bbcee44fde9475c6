"""The OpenAPI objects of the protocol agree with what the server parses."""

import jsonschema
import pytest

from serve.oip.codec import HEADER_LENGTH
from serve.oip.openapi_operations import infer_body, infer_parameters, infer_response, path_parameters
from serve.oip.request import INPUT_DATATYPES, MAX_ID_CHARACTERS, OUTPUTS

IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}


def validate(instance, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(instance)


def json_schema(content):
    return content["content"]["application/json"]["schema"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/models/{name}/infer", ["name"]),
        ("/models/{name}/versions/{version}/infer", ["name", "version"]),
        ("/health/ready", []),
    ],
)
def test_the_parameters_of_a_path_are_required_strings(path, names):
    parameters = path_parameters(path)
    assert [parameter["name"] for parameter in parameters] == names
    for parameter in parameters:
        assert (parameter["in"], parameter["required"], parameter["schema"]) == ("path", True, {"type": "string"})


def test_the_query_takes_a_beta_or_a_strength_and_the_head_the_length_of_the_json():
    beta, strength, length = infer_parameters()
    assert (beta["name"], beta["in"]) == ("beta", "query")
    assert (strength["name"], strength["in"]) == ("strength", "query")
    assert (length["name"], length["in"]) == (HEADER_LENGTH, "header")
    for value in (0, 0.5, 1, "clean", "robust"):
        validate(value, beta["schema"])
    for value in (-0.1, 1.1, "strong", None, True):
        with pytest.raises(jsonschema.ValidationError):
            validate(value, beta["schema"])
    for value in (0, 0.5, 1):
        validate(value, strength["schema"])
    for value in (-0.1, 1.1, "robust", None, True):
        with pytest.raises(jsonschema.ValidationError):
            validate(value, strength["schema"])
    with pytest.raises(jsonschema.ValidationError):
        validate(-1, length["schema"])


@pytest.mark.parametrize("name", INPUT_DATATYPES)
def test_a_request_of_each_input_and_output_is_valid(name):
    tensor = {"name": name, "datatype": INPUT_DATATYPES[name], "shape": [1, 1]}
    outputs = [{"name": output, "parameters": {"classification": 2}} for output in OUTPUTS]
    request = {"id": "x" * MAX_ID_CHARACTERS, "inputs": [tensor], "outputs": outputs, "parameters": {"beta": 0.5}}
    validate(request, json_schema(infer_body()))


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"inputs": [{**IMAGE, "name": "picture"}]},
        {"inputs": [{**IMAGE, "datatype": "INT64"}]},
        {"inputs": [{**IMAGE, "shape": [-1]}]},
        {"inputs": [{key: value for key, value in IMAGE.items() if key != "shape"}]},
        {"inputs": [IMAGE], "id": "x" * (MAX_ID_CHARACTERS + 1)},
        {"inputs": [IMAGE], "outputs": [{"name": "labels"}]},
        {"inputs": [IMAGE], "outputs": [{}]},
    ],
)
def test_a_request_that_the_server_refuses_is_not_valid(request_body):
    validate({"inputs": [IMAGE]}, json_schema(infer_body()))
    with pytest.raises(jsonschema.ValidationError):
        validate(request_body, json_schema(infer_body()))


def test_a_response_names_its_model_and_its_outputs():
    response = {
        "model_name": "digits",
        "model_version": "1",
        "parameters": {"beta": 0.5, "beta_source": "request", "revision": 0},
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.9]}],
    }
    validate(response, json_schema(infer_response()))
    for missing in ("model_name", "outputs"):
        with pytest.raises(jsonschema.ValidationError):
            validate({key: value for key, value in response.items() if key != missing}, json_schema(infer_response()))


def test_a_body_of_binary_data_is_documented_in_both_directions():
    assert infer_body()["required"]
    for content in (infer_body(), infer_response()):
        assert content["content"]["application/octet-stream"]["schema"] == {"type": "string", "format": "binary"}

"""The requests of the clients, as the server parses them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from serve.api.images import parse_images
from serve.api.query import classify_parameters, sweep_parameters
from serve.limits import BodyLimits
from serve.settings import Settings
from tureen.bundle.examples import EXAMPLES
from tureen.client.api_request import ImageChoice, SharedOptions, classify_request, sweep_request
from tureen.errors import ArgumentError, ArgumentTypeError
from tureen.tokens import Mix, Strength, TokenChoice

LIMITS = BodyLimits(max_image_bytes=1000, max_request_bytes=10_000, max_images=64)
SETTINGS = Settings(bundle=EXAMPLES / "cifar10")
ALL_DEFAULT = SharedOptions()
CHOICES = [
    (ImageChoice(beta=0.7), 0.7),
    (ImageChoice(beta="robust"), 1.0),
    (ImageChoice(beta=1e-7), 1e-7),
    (ImageChoice(strength=0.5), Strength(0.5)),
    (ImageChoice(token="fog"), TokenChoice("fog")),
    (ImageChoice(token="fog", beta=0.25), TokenChoice("fog", 0.25)),
    (ImageChoice(token="fog", strength=0.5), TokenChoice("fog", Strength(0.5))),
    (ImageChoice(mix={"fog": 3, "robust": 1}), Mix((("fog", 0.75), ("robust", 0.25)))),
    (ImageChoice(mix="fog:3,robust:1"), Mix((("fog", 0.75), ("robust", 0.25)))),
    (ImageChoice(), None),
]


def query_of(request):
    return classify_parameters(QueryParams(request.parameters), SETTINGS)


def images_of(request):
    return parse_images(request.content, request.content_type or "", LIMITS)


@pytest.mark.parametrize(("choice", "parsed"), CHOICES)
def test_a_single_image_is_the_body_and_its_choice_is_in_the_query(choice, parsed):
    request = classify_request([b"image"], [choice], SharedOptions(top_k=3))
    assert (request.path, request.content, request.headers()) == ("/classify", b"image", {})
    assert (query_of(request).choice, query_of(request).top_k) == (parsed, 3)


def test_the_other_options_are_in_the_query():
    assert query_of(classify_request([b"a"], [ImageChoice()], SharedOptions(policy="uploads"))).policy == "uploads"
    mix = ImageChoice(mix={"fog": 3, "robust": 1})
    given = query_of(classify_request([b"a"], [mix], SharedOptions(normalize=False))).choice
    assert given == Mix((("fog", 3.0), ("robust", 1.0)))


def test_several_images_with_one_choice_are_a_form_and_the_choice_is_in_the_query():
    request = classify_request([b"a", b"b"], [ImageChoice(token="fog", beta=0.5)] * 2, ALL_DEFAULT)
    assert request.content_type.startswith("multipart/form-data; boundary=")
    assert (images_of(request).images, images_of(request).choices) == ([b"a", b"b"], [None, None])
    assert query_of(request).choice == TokenChoice("fog", 0.5)


@given(st.lists(st.tuples(st.binary(max_size=100), st.sampled_from(CHOICES)), min_size=2, max_size=20))
def test_the_server_parses_the_images_and_choices_that_were_given(pairs):
    request = classify_request([data for data, _ in pairs], [choice for _, (choice, _) in pairs], ALL_DEFAULT)
    images, shared = images_of(request), query_of(request).choice
    assert list(images.images) == [data for data, _ in pairs]
    assert images.is_list
    expected = [parsed for _, (_, parsed) in pairs]
    assert [shared if choice is None else choice for choice in images.choices] == expected


def test_different_mixes_exclude_normalize():
    choices = [ImageChoice(mix="fog:1"), ImageChoice(mix="robust:1")]
    with pytest.raises(ArgumentError, match="normalize holds for one mix"):
        classify_request([b"a", b"b"], choices, SharedOptions(normalize=False))


@pytest.mark.parametrize(
    ("betas", "strengths", "parsed"),
    [
        ("0:1:0.5", None, [0.0, 0.5, 1.0]),
        ([0.25, "robust"], None, [0.25, 1.0]),
        (None, [0, 0.5], [Strength(0.0), Strength(0.5)]),
    ],
)
def test_a_sweep_has_its_betas_or_strengths_in_the_query(betas, strengths, parsed):
    request = sweep_request(b"image", betas, strengths, SharedOptions(top_k=2))
    parameters = sweep_parameters(QueryParams(request.parameters), SETTINGS)
    assert (request.path, parameters.betas, parameters.top_k) == ("/sweep", parsed, 2)


def test_a_value_that_is_no_number_is_refused_before_it_is_sent():
    with pytest.raises(ArgumentTypeError, match="NoneType is no β"):
        sweep_request(b"image", [None], None, ALL_DEFAULT)

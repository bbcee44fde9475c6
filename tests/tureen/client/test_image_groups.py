import io
import json

import pytest

from tureen.client.api_request import ImageChoice, SharedOptions
from tureen.client.api_response import ImageProblem
from tureen.client.client_errors import RefusedError
from tureen.client.image_groups import (
    MAX_GROUP_BYTES,
    ChosenImage,
    check_group_arguments,
    chosen_images,
    group_sizes,
    group_steps,
    read_images,
)
from tureen.errors import ArgumentError, ArgumentTypeError

MODEL = {"model": "digits", "version": "0123", "revision": 2, "calibrated": True}


def result(beta=0.5):
    return {"beta": beta, "strength": beta, "beta_source": "request", "predictions": []}


def too_large():
    return RefusedError("too large", code="request_too_large", status=413)


def group(count):
    return [ChosenImage(b"image %d" % index, ImageChoice(beta=index / 10)) for index in range(count)]


def several(*betas):
    return json.dumps({**MODEL, "results": [result(beta) for beta in betas]}).encode()


def test_one_value_holds_for_all_images_and_an_iterable_has_one_per_image():
    found = list(chosen_images(iter([b"a", b"b"]), beta=iter([0.1, None]), token="fog"))
    assert [one.choice for one in found] == [ImageChoice(beta=0.1, token="fog"), ImageChoice(token="fog")]
    found = list(chosen_images([b"a", b"b"], mix=[{"fog": 1.0}, "robust:1"]))
    assert [one.choice.mix for one in found] == [{"fog": 1.0}, "robust:1"]
    assert [one.choice.mix for one in chosen_images([b"a"], mix={"fog": 1.0})] == [{"fog": 1.0}]


@pytest.mark.parametrize(("images", "text"), [([b"a", b"b"], "more images"), ([], "fewer images")])
def test_another_number_of_values_is_refused(images, text):
    with pytest.raises(ArgumentError, match=text):
        list(chosen_images(images, beta=[0.1]))


@pytest.mark.parametrize("images", [b"image", "photo.jpg", io.BytesIO(b"image"), 7])
def test_one_image_in_place_of_several_is_refused(images):
    with pytest.raises(ArgumentTypeError, match="give a list of images"):
        chosen_images(images)


def test_a_request_of_several_images_has_a_limited_number_of_bytes():
    half = MAX_GROUP_BYTES // 2
    assert group_sizes([]) == []
    assert group_sizes([1, 2, 3]) == [3]
    assert group_sizes([half, half, 1, 3 * half, 1]) == [2, 1, 1, 1]


def test_an_image_that_cannot_be_read_is_not_sent_and_keeps_its_place(tmp_path):
    images = [ChosenImage(tmp_path / "missing.jpg", ImageChoice()), *group(2)]
    contents = read_images(images)
    steps = group_steps(images, contents, SharedOptions())
    assert next(steps).content.count(b"image ") == 2
    with pytest.raises(StopIteration) as end:
        steps.send(several(0.0, 0.1))
    missing, *classified = end.value.value
    assert (missing.code, missing.status) == ("unreadable_image", None)
    assert [one.beta for one in classified] == [0.0, 0.1]


def test_a_request_that_is_too_large_is_divided_until_it_is_accepted():
    images = group(3)
    steps = group_steps(images, read_images(images), SharedOptions())
    next(steps)
    first = steps.throw(too_large())
    assert (first.content, first.parameters) == (b"image 0", {"beta": "0.0"})
    second = steps.send(json.dumps({**MODEL, **result(0.0)}).encode())
    assert second.content.count(b"image ") == 2
    with pytest.raises(StopIteration) as end:
        steps.send(several(0.1, 0.2))
    assert [one.beta for one in end.value.value] == [0.0, 0.1, 0.2]


def test_a_single_image_that_is_too_large_has_a_problem():
    steps = group_steps(group(1), [b"image"], SharedOptions())
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.throw(too_large())
    assert end.value.value == [ImageProblem(code="request_too_large", status=413, detail="too large")]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_that_no_image_causes_is_raised(count):
    images = group(count)
    steps = group_steps(images, read_images(images), SharedOptions())
    next(steps)
    with pytest.raises(RefusedError, match="unknown_api_key"):
        steps.throw(RefusedError("refused", code="unknown_api_key", status=401))


def test_a_group_without_a_readable_image_sends_nothing(tmp_path):
    images = [ChosenImage(tmp_path / "missing.jpg", ImageChoice())]
    with pytest.raises(StopIteration) as end:
        next(group_steps(images, read_images(images), SharedOptions()))
    assert len(end.value.value) == 1


@pytest.mark.parametrize(("concurrency", "images_per_request"), [(0, 8), (4, 0)])
def test_the_numbers_of_requests_and_images_are_positive(concurrency, images_per_request):
    with pytest.raises(ArgumentError, match="is 0: give 1 or more"):
        check_group_arguments(concurrency, images_per_request)

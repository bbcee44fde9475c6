"""The images of a request body, without a server: raw bytes, forms and JSON."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.images import (
    FORM_TYPE,
    JSON_TYPE,
    RequestImages,
    max_body_bytes,
    parse_images,
    parse_media_type,
)
from serve.errors import InvalidParameterError, MalformedFormError
from serve.limits import BodyLimits
from tureen.errors import (
    ImageTooLargeError,
    InvalidBetaError,
    InvalidMixError,
    InvalidStrengthError,
    TureenError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.tokens import Mix, Strength, TokenChoice

LIMITS = BodyLimits(max_image_bytes=100, max_request_bytes=1000, max_images=3)
BOUNDARY = "boundary"
END = f"--{BOUNDARY}--\r\n".encode()
forms = st.lists(st.tuples(st.sampled_from(["image", "beta", "mix"]), st.binary())).map(lambda parts: form(*parts))


def form(*parts, end=END):
    """A multipart body of (name, data) parts, as a browser sends them."""
    head = '--{}\r\nContent-Disposition: form-data; name="{}"; filename="a.png"\r\n\r\n'
    return b"".join(head.format(BOUNDARY, name).encode() + data + b"\r\n" for name, data in parts) + end


def parse_form(*parts, **options):
    return parse_images(form(*parts, **options), f"{FORM_TYPE}; boundary={BOUNDARY}", LIMITS)


def parse_json(value):
    return parse_images(json.dumps(value).encode(), JSON_TYPE, LIMITS)


def entry(image, **fields):
    return {"data": base64.b64encode(image).decode(), **fields}


@pytest.mark.parametrize(
    ("content_type", "media_type"),
    [
        ("image/png", "image/png"),
        ("IMAGE/JPEG", "image/jpeg"),
        ("image/webp; q=1", "image/webp"),
        ("", ""),
        ("application/octet-stream", "application/octet-stream"),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded"),
        ('multipart/form-data; boundary="a b"', FORM_TYPE),
        ("application/json; charset=utf-8", JSON_TYPE),
    ],
)
def test_a_supported_content_type_gives_its_media_type(content_type, media_type):
    assert parse_media_type(content_type) == media_type


@pytest.mark.parametrize("content_type", ["text/plain", "image/gif", "image/svg+xml", "multipart/mixed", "png", "*/*"])
def test_another_content_type_is_refused_and_the_supported_ones_are_named(content_type):
    with pytest.raises(UnsupportedImageTypeError, match="image/jpeg, image/png, image/webp, multipart/form-data"):
        parse_media_type(content_type)


@pytest.mark.parametrize(("media_type", "limit"), [("image/png", 100), ("", 100), (FORM_TYPE, 1000), (JSON_TYPE, 1000)])
def test_a_form_and_json_may_be_larger_than_a_raw_image(media_type, limit):
    assert max_body_bytes(media_type, LIMITS) == limit


@pytest.mark.parametrize("content_type", ["", "image/png", "application/x-www-form-urlencoded"])
def test_any_raw_body_is_one_image(content_type):
    assert parse_images(b"\x89PNG", content_type, LIMITS) == RequestImages([b"\x89PNG"], [None], is_list=False)


@pytest.mark.parametrize(
    ("parts", "images", "betas"),
    [
        ([("image", b"a")], [b"a"], [None]),
        ([("image", b"a"), ("beta", b"0.5")], [b"a"], [0.5]),
        ([("beta", b"robust"), ("image", b"a")], [b"a"], [1.0]),
        (
            [("image", b"a"), ("token", b"fog"), ("image", b"b"), ("mix", b"fog:1,night:1")],
            [b"a", b"b"],
            [TokenChoice("fog"), Mix((("fog", 0.5), ("night", 0.5)))],
        ),
        ([("image", b"a"), ("image", b"b")], [b"a", b"b"], [None, None]),
        (
            [("image", b"a"), ("beta", b"0"), ("image", b"b"), ("beta", b"1")],
            [b"a", b"b"],
            [0.0, 1.0],
        ),
        ([("image", b"a"), ("strength", b"0.5")], [b"a"], [Strength(0.5)]),
        (
            [("image", b"a"), ("strength", b"1"), ("image", b"b"), ("beta", b"1")],
            [b"a", b"b"],
            [Strength(1), 1.0],
        ),
        ([("image", b"--boundary"), ("image", b"\r\n--")], [b"--boundary", b"\r\n--"], [None, None]),
        ([("image", b"")], [b""], [None]),
    ],
)
def test_a_form_gives_its_images_with_their_betas(parts, images, betas):
    assert parse_form(*parts) == RequestImages(images, betas, is_list=len(images) > 1)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("file", b"a")], "'file'"),
        ([("image", b"a"), ("top_k", b"1")], "'top_k'"),
        ([("beta", b"1")], "no field 'image'"),
        ([("image", b"a"), ("image", b"b"), ("beta", b"1")], "2 images and 1 of beta, strength, token, mix"),
        (
            [("image", b"a"), ("beta", b"1"), ("strength", b"1")],
            "beta, strength, token, mix exclude each other for an image",
        ),
        (
            [("image", b"a"), ("image", b"b")] + [("beta", b"1"), ("strength", b"1")] * 2,
            "exclude each other for an image",
        ),
        ([("image", b"a")] * 4, "more than 3 images"),
        ([("image", b"a"), *[("beta", b"1")] * 6], "more than 3 images"),
    ],
)
def test_a_wrong_form_is_refused(parts, words):
    with pytest.raises(InvalidParameterError, match=words):
        parse_form(*parts)


@pytest.mark.parametrize("mix", ["fog", "fog:-1", {"fog": None}, {"fog": -1}, {}, {f"t{i}": 1 for i in range(9)}])
def test_a_wrong_mix_is_refused(mix):
    with pytest.raises(InvalidMixError):
        parse_json({"images": [entry(b"a", mix=mix)]})


@pytest.mark.parametrize("beta", [b"2", b"x", b"", b"\xff"])
def test_a_wrong_beta_in_a_form_is_refused(beta):
    with pytest.raises(InvalidBetaError):
        parse_form(("image", b"a"), ("beta", beta))


@pytest.mark.parametrize("strength", [b"2", b"clean", b"", b"\xff"])
def test_a_wrong_strength_in_a_form_is_refused(strength):
    with pytest.raises(InvalidStrengthError):
        parse_form(("image", b"a"), ("strength", strength))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(("image", b"a"), end=b""), f"{FORM_TYPE}; boundary={BOUNDARY}"),
        (form(("image", b"a"), end=b"--boundary\r\nContent-Disp"), f"{FORM_TYPE}; boundary={BOUNDARY}"),
        (form(("image", b"a")), f"{FORM_TYPE}; boundary=other"),
        (form(("image", b"a")), FORM_TYPE),
        (form(("image", b"a")), f"{FORM_TYPE}; boundary="),
        (b"", f"{FORM_TYPE}; boundary={BOUNDARY}"),
    ],
)
def test_a_form_that_cannot_be_parsed_is_refused(body, content_type):
    with pytest.raises(MalformedFormError, match="check its boundary"):
        parse_images(body, content_type, LIMITS)


def test_the_only_image_of_a_form_has_the_limit_of_an_image():
    assert parse_form(("image", bytes(100))).single() == bytes(100)
    with pytest.raises(ImageTooLargeError, match="100 bytes"):
        parse_form(("image", bytes(101)))


@pytest.mark.parametrize(
    ("images", "betas"),
    [
        ([entry(b"a")], [None]),
        ([entry(b"a", strength=0.5), entry(b"b", beta=1, strength=None)], [Strength(0.5), 1.0]),
        (
            [entry(b"a", token="fog"), entry(b"b", token="fog", beta=0.5), entry(b"c", token="fog", strength=0.5)],
            [TokenChoice("fog"), TokenChoice("fog", 0.5), TokenChoice("fog", Strength(0.5))],
        ),
        (
            [entry(b"a", mix="fog:1"), entry(b"b", mix={"fog": 3, "robust": 1}), entry(b"c", mix={"clean": 1})],
            [Mix((("fog", 1.0),)), Mix((("fog", 0.75), ("robust", 0.25))), 0.0],
        ),
        ([entry(b"a", beta=0.3), entry(b"b", beta="clean"), entry(b"c", beta=None)], [0.3, 0.0, None]),
        ([{"data": "data:image/png;base64,YQ"}], [None]),
    ],
)
def test_json_gives_a_list_of_images_with_their_betas(images, betas):
    parsed = parse_json({"images": images})
    assert (parsed.choices, parsed.is_list) == (betas, True)
    assert parsed.readable() == [b"a", b"b", b"c"][: len(images)]


def test_an_image_of_json_that_is_not_base64_is_an_error_in_its_place():
    parsed = parse_json({"images": [entry(b"a"), {"data": "%%%", "beta": 1}, entry(b"c")]})
    assert parsed.readable() == [b"a", b"c"]
    assert parsed.choices == [None, 1.0, None]
    assert isinstance(parsed.images[1], UndecodableImageError)
    with pytest.raises(UndecodableImageError, match="base64"):
        parse_json({"images": [{"data": "%%%"}]}).single()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "another form"),
        ({}, "another form"),
        ({"images": {}}, "another form"),
        ({"images": [entry(b"a")], "top_k": 3}, "another form"),
        ({"images": []}, "empty: send 1 to 3"),
        ({"images": [entry(b"a")] * 4}, "more than 3 images"),
        ({"images": [entry(b"a"), 1]}, "image 1 has another form"),
        ({"images": [{"beta": 1}]}, "image 0 has another form"),
        ({"images": [{"data": 7}]}, "image 0 has another form"),
        ({"images": [entry(b"a", betta=1)]}, "image 0 has another form"),
        ({"images": [entry(b"a", beta="0.5")]}, "beta of image 0 is a string"),
        ({"images": [entry(b"a", strength="0.5")]}, "strength of image 0 is a string"),
        ({"images": [entry(b"a", token=7)]}, "the token of image 0 is not a string"),
        ({"images": [entry(b"a", mix=["fog"])]}, "image 0 has a mix of another form"),
        ({"images": [entry(b"a", mix="fog:1", beta=1)]}, "or beside another choice"),
        ({"images": [entry(b"a", beta=1, strength=1)]}, "image 0 has a beta and a strength: give one of them"),
        ({"images": [{"data": [[[[]]]]}]}, "nested"),
    ],
)
def test_wrong_json_is_refused(value, words):
    with pytest.raises(InvalidParameterError, match=words):
        parse_json(value)


@given(
    body=st.binary(max_size=200) | forms,
    content_type=st.sampled_from([f"{FORM_TYPE}; boundary={BOUNDARY}", JSON_TYPE, "image/png"]),
)
def test_any_body_gives_as_many_betas_as_images_or_a_documented_error(body, content_type):
    try:
        parsed = parse_images(body, content_type, LIMITS)
    except TureenError:
        return
    assert 1 <= len(parsed.images) == len(parsed.choices) <= LIMITS.max_images

"""Several images in one request, and one image at many β. Each result is that of a separate request."""

import base64
import json

import pytest

from tests.serve.api.test_app import is_problem, serving
from tureen.bundle.bundle import read_manifest


@pytest.fixture(scope="module")
def client(bundle_path):
    with serving(bundle_path) as client:
        yield client


def as_json(*images):
    """Returns the JSON body of pairs of an image and its β or None."""
    return {
        "images": [
            {"data": base64.b64encode(image).decode(), **({} if beta is None else {"beta": beta})}
            for image, beta in images
        ]
    }


def close_to(predictions):
    """Returns predictions to compare with. Another batch size sums float32 in another order."""
    return [{**p, "probability": pytest.approx(p["probability"], abs=1e-5)} for p in predictions]


def test_each_image_has_a_beta_and_the_result_of_a_single_request(client, digit_png):
    betas = [0, 0.3, "robust", None]
    answer = client.post("/classify?beta=0.9", json=as_json(*((digit_png(i), b) for i, b in enumerate(betas)))).json()
    assert set(answer) == {"model", "version", "revision", "calibrated", "results"}
    for index, (beta, result) in enumerate(zip([0, 0.3, 1, 0.9], answer["results"], strict=True)):
        alone = client.post(f"/classify?beta={beta}", content=digit_png(index)).json()
        assert (result["beta"], result["beta_source"]) == (beta, "request")
        assert result["predictions"] == close_to(alone["predictions"])


def test_a_form_of_several_images_gets_the_response_of_their_json(client, digit_png):
    parts = [("image", digit_png(0)), ("beta", (None, b"0.25")), ("image", digit_png(1)), ("beta", (None, b"clean"))]
    formed = client.post("/classify", files=parts)
    listed = client.post("/classify", json=as_json((digit_png(0), 0.25), (digit_png(1), 0)))
    for one, other in zip(formed.json()["results"], listed.json()["results"], strict=True):
        assert {**one, "predictions": None} == {**other, "predictions": None}
        assert one["predictions"] == close_to(other["predictions"])


def test_the_beta_of_a_single_image_may_stand_in_its_form(client, digit_png):
    answer = client.post("/classify", files=[("image", digit_png(0)), ("beta", (None, b"0.75"))]).json()
    assert (answer["beta"], answer["beta_source"]) == (0.75, "request")


def test_a_strength_has_the_result_of_its_beta_and_the_response_has_both(client, bundle_path, digit_png):
    beta = read_manifest(bundle_path).strength.beta_at(0.5)
    answer = client.post("/classify?strength=0.5", content=digit_png(0)).json()
    assert (answer["strength"], answer["beta"], answer["beta_source"]) == (0.5, beta, "request")
    assert answer["predictions"] == client.post(f"/classify?beta={beta}", content=digit_png(0)).json()["predictions"]
    body = as_json((digit_png(0), None), (digit_png(1), 1))
    body["images"][0]["strength"] = 0.25
    results = client.post("/classify?strength=0.5", json=body).json()["results"]
    assert [result["strength"] for result in results] == [0.25, 1]
    sweep = client.post("/sweep?strengths=0:1:0.5", content=digit_png(0)).json()
    assert (sweep["strengths"], sweep["betas"]) == ([0, 0.5, 1], [0, beta, 1])
    is_problem(client.post("/classify?strength=2", content=digit_png(0)), 422, "invalid_strength")
    is_problem(client.post("/classify?strength=0.5&beta=0.5", content=digit_png(0)), 422, "invalid_parameter")


def test_a_bad_image_is_a_problem_at_its_index_and_affects_no_other(client, digit_png):
    response = client.post("/classify", json=as_json((digit_png(0), 1), (b"GIF89a", 0), (digit_png(2)[:50], None)))
    assert response.status_code == 200
    sound, unsupported, cut = response.json()["results"]
    assert sound["predictions"][0]["probability"] > 0
    assert (unsupported["problem"]["code"], unsupported["problem"]["status"]) == ("unsupported_image_type", 415)
    assert cut["problem"]["code"] == "undecodable_image"


def test_unreadable_text_is_a_problem_at_its_index_and_affects_no_other(client, digit_png):
    body = as_json((digit_png(0), None), (digit_png(1), None))
    body["images"][1:1] = [{"data": "%%%"}, {"data": "data:image/png,raw", "beta": 1}, {"data": ""}]
    response = client.post("/classify", json=body)
    assert response.status_code == 200
    first, *problems, last = response.json()["results"]
    codes = [each["problem"]["code"] for each in problems]
    assert codes == ["undecodable_image", "undecodable_image", "empty_image"]
    assert "base64" in problems[0]["problem"]["detail"]
    for index, result in ((0, first), (1, last)):
        alone = client.post("/classify", content=digit_png(index)).json()
        assert result["predictions"] == close_to(alone["predictions"])
    alone = client.post("/classify", json={"images": [{"data": "%%%"}]})
    assert alone.json()["results"][0]["problem"]["code"] == "undecodable_image"
    is_problem(client.post("/sweep", json={"images": [{"data": "%%%"}]}), 400, "undecodable_image")


def test_base64_is_read_as_browsers_and_mail_tools_write_it(client, digit_png):
    data = base64.b64encode(digit_png(0)).decode()
    forms = [
        data,
        f"data:image/png;base64,{data}",
        base64.encodebytes(digit_png(0)).decode(),
        base64.urlsafe_b64encode(digit_png(0)).decode().rstrip("="),
    ]
    results = client.post("/classify", json={"images": [{"data": form} for form in forms]}).json()["results"]
    assert [result["predictions"] for result in results] == [close_to(results[0]["predictions"])] * 4


def test_an_image_of_too_many_bytes_is_a_problem_in_its_place(bundle_path, digit_png):
    with serving(bundle_path, max_image_bytes=1000) as client:
        large = digit_png(0) + bytes(1000)
        for body in (
            {"json": as_json((large, None), (digit_png(1), None))},
            {"files": [("image", large), ("image", digit_png(1))]},
        ):
            response = client.post("/classify", **body)
            assert response.status_code == 200
            refused, answered = response.json()["results"]
            assert (refused["problem"]["code"], refused["problem"]["status"]) == ("image_too_large", 413)
            assert answered["predictions"]
        is_problem(client.post("/classify", files=[("image", large)]), 413, "image_too_large")


def test_json_with_a_byte_order_mark_is_read(client, digit_png):
    body = json.dumps(as_json((digit_png(0), 1))).encode("utf-8-sig")
    response = client.post("/classify", content=body, headers={"content-type": "application/json"})
    assert response.json()["results"][0]["beta"] == 1


def test_an_empty_list_of_images_is_refused_by_name(client):
    assert (
        "list of images is empty"
        in is_problem(client.post("/classify", json={"images": []}), 422, "invalid_parameter")["detail"]
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"images": []},
        {"images": {}},
        {"images": [1]},
        {"images": [{}]},
        {"images": [{"data": 7}]},
        {"images": [{"data": "aaaa", "betta": 1}]},
        {"images": [{"data": "aaaa", "beta": "0.5"}]},
        {"images": [{"data": "aaaa"}], "top_k": 3},
    ],
)
def test_invalid_json_of_images_is_refused(client, body):
    is_problem(client.post("/classify", json=body), 422, "invalid_parameter")


@pytest.mark.parametrize("beta", [2, -0.1, True, [], {}])
def test_an_invalid_beta_in_json_is_refused(client, digit_png, beta):
    is_problem(client.post("/classify", json=as_json((digit_png(0), beta))), 422, "invalid_beta")


def test_how_many_images_and_bytes_a_request_holds_are_settings(bundle_path, digit_png):
    with serving(bundle_path, max_images_per_request=2, max_request_bytes=2000) as client:
        images = [(digit_png(0), None)] * 3
        assert client.post("/classify", json=as_json(*images[:2])).status_code == 200
        is_problem(client.post("/classify", json=as_json(*images)), 422, "invalid_parameter")
        is_problem(client.post("/classify", files=[("image", digit_png(0))] * 3), 422, "invalid_parameter")
        is_problem(client.post("/classify", json=as_json((bytes(2000), None))), 413, "request_too_large")


def test_a_sweep_has_the_result_at_each_beta(client, digit_png):
    answer = client.post("/sweep?betas=0:1:0.25&top_k=3", content=digit_png(0)).json()
    assert answer["betas"] == [0, 0.25, 0.5, 0.75, 1]
    assert len(answer["curves"]) == 3
    for index, beta in enumerate(answer["betas"]):
        alone = client.post(f"/classify?beta={beta}&top_k=10", content=digit_png(0)).json()["predictions"]
        assert answer["answers"][index] == alone[0]["label"]
        for curve in answer["curves"]:
            (one,) = [p for p in alone if p["index"] == curve["index"]]
            assert curve["probabilities"][index] == pytest.approx(one["probability"], abs=1e-5)
    changes = [
        (lower, upper)
        for lower, upper, one, other in zip(
            answer["betas"], answer["betas"][1:], answer["answers"], answer["answers"][1:], strict=False
        )
        if one != other
    ]
    assert [(change["after_beta"], change["before_beta"]) for change in answer["changes"]] == changes


def test_a_sweep_finds_the_beta_at_which_the_label_changes(client, encode, photograph):
    noisy = photograph.convert("L").resize((8, 8))
    answers = [
        client.post("/sweep?betas=0:1:0.05", content=encode(noisy.rotate(angle), "PNG")).json()
        for angle in range(0, 360, 20)
    ]
    changed = [answer for answer in answers if answer["changes"]]
    assert changed  # the picture is not a digit, so the tokens rarely agree at every angle
    for answer in changed:
        (first, *_) = answer["changes"]
        assert first["from_label"] == answer["answers"][0] != first["to_label"]


@pytest.mark.parametrize("betas", ["0:1", "0:1:0", "1:0:0.1", "0:2:0.5", "x", "", "0:1:0.001", "nan", "0,2"])
def test_an_invalid_sweep_is_refused(client, digit_png, betas):
    response = client.post("/sweep", params={"betas": betas}, content=digit_png(0))
    assert (response.status_code, response.json()["code"]) in ((422, "invalid_beta"), (422, "invalid_parameter"))


def test_a_sweep_is_of_one_image(client, digit_png):
    for body in ({"files": [("image", digit_png(0))] * 2}, {"json": as_json((digit_png(0), 0.5))}):
        is_problem(client.post("/sweep", **body), 422, "invalid_parameter")
    is_problem(client.post("/sweep?beta=1", content=digit_png(0)), 422, "invalid_parameter")

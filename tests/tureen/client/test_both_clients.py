"""What both clients do against a real server, and against one that fails."""

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port
from tests.tureen.client.scripted_server import (
    SUCCESS,
    ScriptedServer,
    a_byte_at_a_time,
    half_a_response,
    problem,
    response,
    wait_for_release,
)
from tureen.client import (
    ConnectionLostError,
    DeadlineError,
    ImageProblem,
    NotReadyError,
    OverloadedError,
    RefusedError,
    ServedClassification,
    ServerError,
    UnreachableError,
)
from tureen.errors import ArgumentError, ArgumentTypeError, UnreadableImageError


@pytest.fixture
def url(start_server):
    server = start_server()
    server.wait_until_ready()
    return f"http://127.0.0.1:{server.port}"


def test_a_real_server_classifies_sweeps_and_keeps_the_order_of_many_images(open_client, url, pngs, tmp_path):
    (path := tmp_path / "photo.png").write_bytes(pngs[0])
    with open_client(url, timeout_s=DEADLINE_S) as client:
        one = client.classify(path, 0.7, top_k=3)
        assert (one.beta, one.beta_source, len(one.predictions)) == (0.7, "request", 3)
        assert client.classify(pngs[0], "robust").beta == 1
        with path.open("rb") as file:
            assert client.classify(file, strength=0.5).strength == 0.5
        assert client.classify(path, token="clean", beta=0.25).beta == 0.25
        assert client.classify(path, mix={"clean": 1, "robust": 3}).beta == 0.75

        sweep = client.sweep(path, "0:1:0.25", top_k=2)
        assert (sweep.betas, len(sweep.answers)) == ([0, 0.25, 0.5, 0.75, 1], 5)
        assert client.sweep(path, strengths=[0, 1]).strengths == [0, 1]

        images = [pngs[index % len(pngs)] for index in range(64)]
        betas = [index / 63 for index in range(64)]
        results = list(client.classify_many(images, betas, concurrency=5, images_per_request=7))
        assert [result.beta for result in results] == betas
        alone = client.classify(images[40], betas[40])
        assert results[40].predictions[0].probability == pytest.approx(alone.predictions[0].probability, abs=1e-4)
        assert results[40].predictions[0].label == alone.predictions[0].label


def test_a_real_server_refuses_by_code_and_one_bad_image_leaves_the_others(open_client, url, pngs, tmp_path):
    with open_client(url, timeout_s=DEADLINE_S) as client:
        for arguments, code in [
            ({"beta": 7}, "invalid_beta"),
            ({"beta": 0.5, "strength": 0.5}, "invalid_parameter"),
            ({"token": "fog"}, "unknown_token"),
            ({"policy": "uploads"}, "unknown_policy"),
            ({"top_k": 10**6}, "invalid_parameter"),
        ]:
            with pytest.raises(RefusedError) as raised:
                client.classify(pngs[0], **arguments, timeout_s=5)
            assert (raised.value.code, raised.value.status) == (code, 422)
            assert raised.value.request_id
        with pytest.raises(RefusedError) as raised:
            client.classify(b"no image")
        assert raised.value.code == "unsupported_image_type"

        missing = tmp_path / "missing.png"
        images = [pngs[0], b"no image", missing, pngs[1], b""]
        for per_request in (1, 8):
            results = list(client.classify_many(images, [0, 0.5, 0.5, None, 1], images_per_request=per_request))
            kinds = [type(result) for result in results]
            assert kinds == [ServedClassification, ImageProblem, ImageProblem, ServedClassification, ImageProblem]
            assert [one.code for one in (results[1], results[2], results[4])] == [
                "unsupported_image_type",
                "unreadable_image",
                "empty_image",
            ]
        with pytest.raises(UnreadableImageError):
            client.classify(missing)


def test_a_deadline_above_the_limit_of_a_real_server_is_left_out(open_client, start_server, pngs):
    server = start_server("--timeout-ms", 2000)
    server.wait_until_ready()
    with open_client(f"http://127.0.0.1:{server.port}") as client:
        for _ in range(2):
            assert client.classify(pngs[0], 0.5, timeout_s=9).beta == 0.5
    assert [line["status"] for line in server.log("request") if line["route"] == "/classify"] == [422, 200, 200]


def test_an_api_key_reaches_the_server(open_client):
    keys = []

    def note_key(server, handler):
        keys.append(handler.headers["X-API-Key"])
        handler.wfile.write(SUCCESS)

    with ScriptedServer(note_key) as server, open_client(server.url, api_key="secret") as client:
        client.classify(b"image")
        assert keys == ["secret"]
        assert "secret" not in repr(client)


def test_a_refused_request_is_sent_again_until_it_succeeds(open_client):
    failures = [
        problem(429, "overloaded", Retry_After=0),
        problem(503, "not_ready", Retry_After=0),
        problem(503, "shutting_down"),
    ]
    with ScriptedServer(*failures, SUCCESS) as server, open_client(server.url) as client:
        assert client.classify(b"image").predictions[0].label == "7"
        assert len(server.queries) == 4


def test_a_retry_after_beyond_the_deadline_is_not_awaited(open_client):
    with ScriptedServer(problem(429, "overloaded", Retry_After=3600)) as server, open_client(server.url) as client:
        with pytest.raises(OverloadedError) as raised:
            client.classify(b"image")
        assert (raised.value.code, raised.value.retry_after_s, len(server.queries)) == ("overloaded", 3600, 1)


def test_retry_after_is_waited_for(open_client):
    """Each attempt sends the time that is left, so the two differ by the wait."""
    with (
        ScriptedServer(problem(429, "overloaded", Retry_After=1), SUCCESS) as server,
        open_client(server.url, timeout_s=9) as client,
    ):
        client.classify(b"image")
        first, second = (int(query["timeout_ms"]) for query in server.queries)
        assert first - second >= 999


def test_the_number_of_retries_is_bounded(open_client):
    with (
        ScriptedServer(problem(503, "not_ready", Retry_After=0)) as server,
        open_client(server.url, max_retries=2) as client,
    ):
        with pytest.raises(NotReadyError):
            client.classify(b"image")
        assert len(server.queries) == 3


@pytest.mark.parametrize(
    ("answer", "expected", "code"),
    [
        (problem(500, "inference_failed"), ServerError, "inference_failed"),
        (problem(504, "deadline_exceeded"), DeadlineError, "deadline_exceeded"),
        (problem(401, "unknown_api_key"), RefusedError, "unknown_api_key"),
        (response(502, "bad gateway"), ServerError, "unexpected_response"),
        (response(200, {"another": "service"}), ServerError, "unexpected_response"),
        (half_a_response, ConnectionLostError, "connection_lost"),
        (b"", ConnectionLostError, "connection_lost"),
        (b"no HTTP\r\n\r\n", ConnectionLostError, "connection_lost"),
    ],
)
def test_any_other_failure_is_raised_and_the_request_is_sent_once(open_client, answer, expected, code):
    with ScriptedServer(answer) as server, open_client(server.url) as client:
        with pytest.raises(expected) as raised:
            client.classify(b"image")
        assert (raised.value.code, len(server.queries)) == (code, 1)


@pytest.mark.parametrize("behaviour", [wait_for_release, a_byte_at_a_time])
def test_a_response_that_does_not_end_is_left_at_the_deadline(open_client, behaviour):
    with ScriptedServer(behaviour) as server, open_client(server.url) as client:
        with pytest.raises(DeadlineError):
            client.classify(b"image", timeout_s=0.3)
        assert int(server.queries[0]["timeout_ms"]) <= 300


def test_a_server_that_is_not_there_is_unreachable(open_client):
    with open_client(f"http://127.0.0.1:{free_port()}", max_retries=1) as client:
        with pytest.raises(UnreachableError) as raised:
            client.classify(b"image")
        assert (raised.value.code, raised.value.status) == ("unreachable", None)


def test_an_error_of_a_request_ends_the_results_of_many_images(open_client):
    with ScriptedServer(problem(401, "unknown_api_key")) as server, open_client(server.url) as client:
        with pytest.raises(RefusedError, match="unknown_api_key"):
            list(client.classify_many([b"image"] * 20, images_per_request=2))
        assert len(server.queries) <= 5


def test_wrong_arguments_are_refused_before_anything_is_sent(open_client):
    with ScriptedServer(SUCCESS) as server, open_client(server.url) as client:
        with pytest.raises(ArgumentError, match="timeout_s"):
            client.classify(b"image", timeout_s=0)
        with pytest.raises(ArgumentTypeError, match="type int is no image"):
            client.classify(7)
        with pytest.raises(ArgumentTypeError, match="give a list of images"):
            client.classify_many(b"image")
        with pytest.raises(ArgumentError, match="concurrency is 0"):
            client.classify_many([b"image"], concurrency=0)
        assert server.queries == []

"""Ten thousand malformed images, sent to a real server. Each gets its error, and affects no other request."""

import contextlib
import http.client
import json
import re

import pytest

from serve.http.problems import MEDIA_TYPE, PROBLEM_TYPES
from tests.malformed_images import COUNT, ENORMOUS, malformed_images
from tests.patience import DEADLINE_S

EVERY = 20  # malformed images between two valid ones
LEAKS = re.compile(r"0x[0-9a-f]{6}|PIL|Traceback|\.py|site-packages|object at|/home|/tmp|/usr")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [200, pytest.param(COUNT, marks=pytest.mark.slow)])
def test_each_is_refused_or_read_and_no_neighbour_is_harmed(start_server, pictures, count):
    server = start_server("--log-level", "warning")
    server.wait_until_ready()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)) as connection:

        def post(image):
            connection.request("POST", "/classify?beta=0.5", image)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read().decode()

        _, _, expected = post(pictures[0])
        codes = {kind.code: kind.status for kind in PROBLEM_TYPES.values() if kind.status < 500}
        statuses: dict[int, int] = {}
        for number, (name, image) in enumerate(malformed_images(pictures, count)):
            status, media_type, body = post(image)  # fails after DEADLINE_S without a response
            statuses[status] = statuses.get(status, 0) + 1
            if status != 200:
                problem = json.loads(body)
                assert media_type == MEDIA_TYPE, name
                assert codes[problem["code"]] == status == problem["status"], (name, body)
                assert not LEAKS.search(body), (name, body)
            if number % EVERY == 0:
                assert post(pictures[0])[2] == expected, name
        print(f"{sum(statuses.values())} images: {statuses}")
        assert sum(statuses.values()) == count
        assert statuses[400] > count / 3
        assert server.process.poll() is None


def test_the_enormous_are_refused_by_their_heads_or_decoded_as_the_small_images_they_are(start_server):
    server = start_server()
    server.wait_until_ready()
    expected = {
        "nothing": 400,
        "40,000 × 40,000": 413,
        "2³¹ − 1 wide": 413,
        "a thousand scans": 413,
        "thirty scans": 200,
        "a hundred thousand chunks": 413,
        "a hundred thousand comments": 413,
        "a film of ten thousand frames": 200,
    }
    for name, status in expected.items():
        assert server.ask("POST", "/classify", ENORMOUS[name])[0] == status, name

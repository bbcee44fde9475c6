"""An inference request is refused on its method and path when the service refuses requests; every other one passes."""

import pytest

from serve.api.admission_check import make_admission_check
from serve.errors import OverloadedError


class Service:
    """A service that refuses every request with an error, or none."""

    def __init__(self, error):
        self.error = error

    def refusal(self):
        return self.error


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (b"/classify", "/classify"),
        (b"/sweep", "/sweep"),
        (b"/v2/models/digits/infer", "/v2/models/{name}/infer"),
        (b"/v2/models/digits/versions/1/infer", "/v2/models/{name}/versions/{version}/infer"),
    ],
)
def test_an_inference_request_is_refused_on_its_head_when_the_service_refuses_requests(path, route):
    error = OverloadedError(3)
    assert make_admission_check(Service(error))(b"POST", path) == (route, error)
    assert make_admission_check(Service(None))(b"POST", path) == (route, None)


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/metrics", b"/docs", b"/v2/health/ready", b"/classify/"])
def test_every_other_request_passes_under_load(path):
    check_admission = make_admission_check(Service(OverloadedError()))
    assert check_admission(b"GET", path) is None
    assert check_admission(b"POST", path) is None

import pytest

from serve.api.admission_gate import admission_gate
from serve.errors import OverloadedError


class Service:
    """One that takes nothing, or everything."""

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
def test_work_is_refused_on_its_head_when_the_service_would_not_take_it(path, route):
    error = OverloadedError(3)
    assert admission_gate(Service(error))(b"POST", path) == (route, error)
    assert admission_gate(Service(None))(b"POST", path) == (route, None)


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/metrics", b"/docs", b"/v2/health/ready", b"/classify/"])
def test_everything_else_passes_all_the_while(path):
    gate = admission_gate(Service(OverloadedError()))
    assert gate(b"GET", path) is None
    assert gate(b"POST", path) is None

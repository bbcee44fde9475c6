"""Recognises an inference request by method and path.

Asks `serve.inference.service` whether to refuse it before its body is read.
"""

from __future__ import annotations

import re

from serve.connection.http_connection import AdmissionCheck
from serve.inference.service import Service
from tureen.errors import TureenError

# Patterns of the path as the client sent it. A path in another spelling matches none: its route asks the service again.
_INFERENCE_ROUTES = {
    re.compile(rb"/classify"): "/classify",
    re.compile(rb"/sweep"): "/sweep",
    re.compile(rb"/v2/models/[^/]+/infer"): "/v2/models/{name}/infer",
    re.compile(rb"/v2/models/[^/]+/versions/[^/]+/infer"): "/v2/models/{name}/versions/{version}/infer",
}


def make_admission_check(service: Service) -> AdmissionCheck:
    """Returns a function of a method and a path, for the connection to call when the head is complete.

    It returns the route of an inference request and the error to refuse it with. The error is None when the service
    accepts requests. For every other request it returns None, so that health and metrics respond under load.
    """

    def check_admission(method: bytes, path: bytes) -> tuple[str, TureenError | None] | None:
        if method != b"POST":
            return None
        route = next((route for pattern, route in _INFERENCE_ROUTES.items() if pattern.fullmatch(path)), None)
        return None if route is None else (route, service.refusal())

    return check_admission

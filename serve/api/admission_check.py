"""Decides whether to refuse an inference request before its body is read.

Recognises an inference request by its method and path. `serve.inference.service` decides whether the request can be
admitted.
"""

from __future__ import annotations

import re

from serve.connection.http_connection import AdmissionCheck
from serve.inference.service import Service
from tureen.errors import TureenError

# Patterns of the path as the client sent it. A path with escapes such as %63 matches none; its route checks again.
_INFERENCE_ROUTES = {
    re.compile(rb"/classify"): "/classify",
    re.compile(rb"/sweep"): "/sweep",
    re.compile(rb"/v2/models/[^/]+/infer"): "/v2/models/{name}/infer",
    re.compile(rb"/v2/models/[^/]+/versions/[^/]+/infer"): "/v2/models/{name}/versions/{version}/infer",
}


def make_admission_check(service: Service) -> AdmissionCheck:
    """Returns the function that the connection calls with method and path when the head of a request is complete.

    For an inference request, the function returns the route and an error for the client. The error is None if the
    service can admit the request. For any other request the function returns None, so that health and metrics respond
    under load.
    """

    def check_admission(method: bytes, path: bytes) -> tuple[str, TureenError | None] | None:
        if method != b"POST":
            return None
        route = next((route for pattern, route in _INFERENCE_ROUTES.items() if pattern.fullmatch(path)), None)
        return None if route is None else (route, service.refusal())

    return check_admission

"""Which requests are refused on their head alone: those for work that the service would not take."""

from __future__ import annotations

import re

from serve.connection.http_connection import AdmissionCheck
from serve.inference.service import Service
from tureen.errors import TureenError

# By the path as it was sent. Another spelling only passes the gate: the routes ask the service again.
_WORK = {
    re.compile(rb"/classify"): "/classify",
    re.compile(rb"/sweep"): "/sweep",
    re.compile(rb"/v2/models/[^/]+/infer"): "/v2/models/{name}/infer",
    re.compile(rb"/v2/models/[^/]+/versions/[^/]+/infer"): "/v2/models/{name}/versions/{version}/infer",
}


def admission_gate(service: Service) -> AdmissionCheck:
    """The gate before a service; everything but work passes it, health and metrics all the while."""

    def gate(method: bytes, path: bytes) -> tuple[str, TureenError | None] | None:
        if method != b"POST":
            return None
        route = next((route for pattern, route in _WORK.items() if pattern.fullmatch(path)), None)
        return None if route is None else (route, service.refusal())

    return gate

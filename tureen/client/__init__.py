"""Clients of a Tureen server: `Client` blocks, `AsyncClient` runs under asyncio. Needs the extra `client`.

`api_request` and `api_response` are the requests and responses of the HTTP API as pure functions. `attempts` decides
whether a failed request is sent again, and when. `sync_client` and `async_client` add only the input and output. None
of them imports NumPy, Pillow or a package of the server.

from tureen.client import Client
with Client("http://127.0.0.1:8000") as client:
    print(client.classify("photo.jpg", strength=0.7).predictions[0].label)
"""

from tureen.client.api_response import ImageProblem, ServedClassification, ServedSweep
from tureen.client.async_client import AsyncClient
from tureen.client.client_errors import (
    ClientError,
    ConnectionLostError,
    DeadlineError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    ServerError,
    UnreachableError,
)
from tureen.client.sync_client import Client
from tureen.interface.sweeps import Curve, SweepChange

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionLostError",
    "Curve",
    "DeadlineError",
    "ImageProblem",
    "NotReadyError",
    "OverloadedError",
    "RefusedError",
    "ServedClassification",
    "ServedSweep",
    "ServerError",
    "SweepChange",
    "UnreachableError",
]

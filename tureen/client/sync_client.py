"""The blocking client. Sends the requests of `api_request`, and waits as `attempts` decides."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Self

import httpx2

from tureen.client.api_request import (
    ApiRequest,
    BetaValue,
    ImageChoice,
    MixValue,
    SharedOptions,
    classify_request,
    sweep_request,
)
from tureen.client.api_response import (
    ImageResult,
    ServedClassification,
    ServedSweep,
    check_status,
    parse_classification,
    parse_sweep,
)
from tureen.client.attempts import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT_S, Attempts, RetryPolicy, ServerTimeout
from tureen.client.client_errors import ClientError
from tureen.client.image_groups import (
    DEFAULT_CONCURRENCY,
    DEFAULT_IMAGES_PER_REQUEST,
    ChosenImage,
    check_group_arguments,
    chosen_images,
    group_steps,
    image_bytes,
    read_images,
)
from tureen.client.transport import PhaseTimeouts, http_options, transport_error
from tureen.interface.image_bytes import EncodedSource


class Client:
    """A client that blocks until the response. Several threads may use it. Closes its connections at `close`.

    `tureen.client.client_errors` draws the errors of all methods. A method raises UnreadableImageError for a file that
    cannot be read, and ArgumentError or ArgumentTypeError for a wrong argument.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_MAX_RETRIES,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """url: of the server, such as "http://127.0.0.1:8000".

        timeout_s: of each call, with its retries; a call may give another. max_retries: of each request. headers: of
        each request, in addition. ssl_context: for https; None: the certificates of the system.
        """
        self._http = httpx2.Client(**http_options(url, api_key, headers, ssl_context))
        self._timeout_s = timeout_s
        self._policy = RetryPolicy(max_retries)
        self._server_timeout = ServerTimeout()

    def classify(
        self,
        image: EncodedSource,
        beta: BetaValue | None = None,
        *,
        strength: float | None = None,
        token: str | None = None,
        mix: MixValue | None = None,
        normalize: bool | None = None,
        policy: str | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> ServedClassification:
        """Returns the most probable labels of one image.

        image: a path, encoded bytes, or a file opened in binary mode. beta: a number in [0, 1], "clean" or "robust".
        strength: a number in [0, 1]. token: the name of a token, alone or with beta or strength. mix: weights of tokens
        by name. policy: a name that the operator defined. The server chooses what is None. timeout_s: for the whole
        call with its retries; None: that of the client. The server receives it too, as the parameter `timeout_ms`.
        """
        options = SharedOptions(policy, normalize, top_k)
        choice = ImageChoice(beta, strength, token, mix)
        request = classify_request([image_bytes(image)], [choice], options)
        return parse_classification(self._send(request, timeout_s))

    def sweep(
        self,
        image: EncodedSource,
        betas: str | Iterable[BetaValue] | None = None,
        *,
        strengths: str | Iterable[float] | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> ServedSweep:
        """Returns the labels of one image at many β.

        betas, strengths: one of them; a grid such as "0:1:0.25", or the values. None: the default grid of the server.
        """
        request = sweep_request(image_bytes(image), betas, strengths, SharedOptions(top_k=top_k))
        return parse_sweep(self._send(request, timeout_s))

    def classify_many(
        self,
        images: Iterable[EncodedSource],
        beta: BetaValue | Iterable[BetaValue | None] | None = None,
        *,
        strength: float | Iterable[float | None] | None = None,
        token: str | Iterable[str | None] | None = None,
        mix: MixValue | Iterable[MixValue | None] | None = None,
        normalize: bool | None = None,
        policy: str | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        images_per_request: int = DEFAULT_IMAGES_PER_REQUEST,
    ) -> Iterator[ImageResult]:
        """Yields the result of each image in the order of the images: its classification, or its problem.

        Takes images from the iterable only as fast as results are taken. beta, strength, token, mix: one value for all
        images, or an iterable of one per image. timeout_s: of each request. concurrency: requests at the same time.
        images_per_request: at most `--max-images-per-request` of the server. An error that concerns more than one image
        ends the iterator. If the caller leaves the loop, the requests that were sent are awaited.
        """
        check_group_arguments(concurrency, images_per_request)
        chosen = chosen_images(images, beta=beta, strength=strength, token=token, mix=mix)
        options = SharedOptions(policy, normalize, top_k)
        return self._results(chosen, options, timeout_s, concurrency, images_per_request)

    def _results(
        self,
        chosen: Iterator[ChosenImage],
        options: SharedOptions,
        timeout_s: float | None,
        concurrency: int,
        images_per_request: int,
    ) -> Iterator[ImageResult]:
        pending: deque[Future[list[ImageResult]]] = deque()
        executor = ThreadPoolExecutor(concurrency, thread_name_prefix="tureen-client")
        try:
            while True:
                while len(pending) < concurrency and (group := list(islice(chosen, images_per_request))):
                    pending.append(executor.submit(self._classify_group, group, options, timeout_s))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)

    def _classify_group(
        self, group: Sequence[ChosenImage], options: SharedOptions, timeout_s: float | None
    ) -> list[ImageResult]:
        steps = group_steps(group, read_images(group), options)
        try:
            request = next(steps)
            while True:
                try:
                    body = self._send(request, timeout_s)
                except ClientError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(body)
        except StopIteration as end:
            results: list[ImageResult] = end.value
            return results

    def _send(self, request: ApiRequest, timeout_s: float | None) -> bytes:
        """Returns the body of the response with status 200. Sends the request again if `Attempts` allows it."""
        attempts = Attempts(self._timeout_s if timeout_s is None else timeout_s, self._policy, self._server_timeout)
        while True:
            parameters = {**request.parameters, **attempts.parameters()}
            try:
                body = self._post(request, parameters, attempts)
            except ClientError as error:
                time.sleep(attempts.wait_s(error))
            else:
                attempts.succeeded()
                return body

    def _post(self, request: ApiRequest, parameters: Mapping[str, str], attempts: Attempts) -> bytes:
        """Sends the request once. Checks the deadline at each part of the body that arrives."""
        parts = []
        try:
            with self._http.stream(
                "POST",
                request.path,
                params=parameters,
                content=request.content,
                headers=request.headers(),
                extensions={"timeout": PhaseTimeouts(attempts)},
            ) as response:
                for part in response.iter_bytes():
                    attempts.check_deadline()
                    parts.append(part)
        except httpx2.RequestError as error:
            raise transport_error(error) from error
        body = b"".join(parts)
        check_status(response.status_code, response.headers, body)
        return body

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""The client for asyncio. Sends the requests of `api_request`, and waits as `attempts` decides."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
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
from tureen.client.attempts import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_S,
    Attempts,
    RetryPolicy,
    ServerTimeout,
    deadline_error,
)
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


class AsyncClient:
    """A client whose methods are coroutines of asyncio. Its arguments, results and errors are those of `Client`.

    A cancelled call closes its connection, and the server drops the request. Files are read on threads.
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
        """The arguments are those of `Client`."""
        self._http = httpx2.AsyncClient(**http_options(url, api_key, headers, ssl_context))
        self._timeout_s = timeout_s
        self._policy = RetryPolicy(max_retries)
        self._server_timeout = ServerTimeout()

    async def classify(
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
        """Returns the most probable labels of one image, as `Client.classify` does."""
        options = SharedOptions(policy, normalize, top_k)
        choice = ImageChoice(beta, strength, token, mix)
        request = classify_request([await asyncio.to_thread(image_bytes, image)], [choice], options)
        return parse_classification(await self._send(request, timeout_s))

    async def sweep(
        self,
        image: EncodedSource,
        betas: str | Iterable[BetaValue] | None = None,
        *,
        strengths: str | Iterable[float] | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> ServedSweep:
        """Returns the labels of one image at many β, as `Client.sweep` does."""
        content = await asyncio.to_thread(image_bytes, image)
        request = sweep_request(content, betas, strengths, SharedOptions(top_k=top_k))
        return parse_sweep(await self._send(request, timeout_s))

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
    ) -> AsyncIterator[ImageResult]:
        """Yields the result of each image in the order of the images, as `Client.classify_many` does.

        Cancels the requests that were sent if the iterator is closed, for example by `contextlib.aclosing`.
        """
        check_group_arguments(concurrency, images_per_request)
        chosen = chosen_images(images, beta=beta, strength=strength, token=token, mix=mix)
        options = SharedOptions(policy, normalize, top_k)
        return self._results(chosen, options, timeout_s, concurrency, images_per_request)

    async def _results(
        self,
        chosen: Iterator[ChosenImage],
        options: SharedOptions,
        timeout_s: float | None,
        concurrency: int,
        images_per_request: int,
    ) -> AsyncIterator[ImageResult]:
        pending: deque[asyncio.Task[list[ImageResult]]] = deque()
        try:
            while True:
                while len(pending) < concurrency and (group := list(islice(chosen, images_per_request))):
                    pending.append(asyncio.create_task(self._classify_group(group, options, timeout_s)))
                if not pending:
                    return
                results = await pending[0]
                pending.popleft()
                for result in results:
                    yield result
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _classify_group(
        self, group: Sequence[ChosenImage], options: SharedOptions, timeout_s: float | None
    ) -> list[ImageResult]:
        steps = group_steps(group, await asyncio.to_thread(read_images, group), options)
        try:
            request = next(steps)
            while True:
                try:
                    body = await self._send(request, timeout_s)
                except ClientError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(body)
        except StopIteration as end:
            results: list[ImageResult] = end.value
            return results

    async def _send(self, request: ApiRequest, timeout_s: float | None) -> bytes:
        """Returns the body of the response with status 200. Sends the request again if `Attempts` allows it."""
        attempts = Attempts(self._timeout_s if timeout_s is None else timeout_s, self._policy, self._server_timeout)
        while True:
            parameters = {**request.parameters, **attempts.parameters()}
            try:
                body = await self._post(request, parameters, attempts)
            except ClientError as error:
                await asyncio.sleep(attempts.wait_s(error))
            else:
                attempts.succeeded()
                return body

    async def _post(self, request: ApiRequest, parameters: Mapping[str, str], attempts: Attempts) -> bytes:
        """Sends the request once, until the deadline at the latest."""
        try:
            async with asyncio.timeout(attempts.remaining_s):
                response = await self._http.post(
                    request.path,
                    params=parameters,
                    content=request.content,
                    headers=request.headers(),
                    extensions={"timeout": PhaseTimeouts(attempts)},
                )
        except TimeoutError:
            raise deadline_error() from None
        except httpx2.RequestError as error:
            raise transport_error(error) from error
        check_status(response.status_code, response.headers, response.content)
        return response.content

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

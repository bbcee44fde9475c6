"""Fixtures of both clients, and of a server for them."""

import asyncio
import functools
import inspect

import pytest

from tests.serve.conftest import start_server  # noqa: F401 - a fixture
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.client import AsyncClient, Client


class BlockingAsyncClient:
    """An AsyncClient with the methods of Client, each run to its end in one event loop."""

    def __init__(self, *arguments, **options):
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __getattr__(self, name):
        method = getattr(self._client, name)

        @functools.wraps(method)
        def run(*arguments, **options):
            async def result():
                found = method(*arguments, **options)
                return await found if inspect.isawaitable(found) else [one async for one in found]

            return self._runner.run(result())

        return run

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        self._runner.close()


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def open_client(request):
    """Each of the two clients; both have the methods of Client."""
    return request.param


@pytest.fixture(scope="session")
def pngs(encode):
    """The golden images of the example bundle as PNG files."""
    from PIL import Image

    return [encode(Image.fromarray(pixels)) for pixels in load_bundle(EXAMPLES / "cifar10").golden.pixels]

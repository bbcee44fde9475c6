"""Cancellation of calls of the client for asyncio."""

import asyncio
import contextlib

import pytest

from tests.patience import DEADLINE_S
from tests.tureen.client.scripted_server import ScriptedServer, wait_for_the_client_to_leave
from tureen.client import AsyncClient


def test_a_cancelled_call_closes_its_connection():
    async def cancel(server):
        async with AsyncClient(server.url) as client:
            call = asyncio.create_task(client.classify(b"image"))
            assert await asyncio.to_thread(server.received.wait, DEADLINE_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(server.closed_by_client.wait, DEADLINE_S)

    with ScriptedServer(wait_for_the_client_to_leave) as server:
        asyncio.run(cancel(server))


def test_cancelling_a_loop_over_many_images_cancels_its_requests():
    async def cancel(server):
        async with AsyncClient(server.url) as client:

            async def consume():
                async with contextlib.aclosing(client.classify_many([b"image"] * 100, concurrency=3)) as results:
                    async for _ in results:
                        pass

            loop = asyncio.create_task(consume())
            assert await asyncio.to_thread(server.received.wait, DEADLINE_S)
            loop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loop
            assert await asyncio.to_thread(server.closed_by_client.wait, DEADLINE_S)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with ScriptedServer(wait_for_the_client_to_leave) as server:
        asyncio.run(cancel(server))
    assert len(server.queries) <= 3

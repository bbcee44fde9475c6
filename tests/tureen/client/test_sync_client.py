"""The client without NumPy and Pillow, and the images that it takes from an iterable."""

import subprocess
import sys
from pathlib import Path

from tests.tureen.client.scripted_server import SUCCESS, ScriptedServer
from tureen.client import Client

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
for name in ("numpy", "PIL", "fastapi", "starlette", "torch", "onnxruntime", "openvino"):
    sys.modules[name] = None  # an import of it raises ImportError
from tureen.client import AsyncClient, Client

with Client(sys.argv[1]) as client:
    print(client.classify(b"image", beta=0.5).predictions[0].label)

async def classify():
    async with AsyncClient(sys.argv[1]) as client:
        return await client.classify(b"image")

print(asyncio.run(classify()).predictions[0].label)
assert not {name for name in sys.modules if name.partition(".")[0] in ("serve", "training", "export")}
"""


def test_the_clients_work_without_numpy_pillow_and_the_server():
    with ScriptedServer(SUCCESS) as server:
        shown = subprocess.check_output([sys.executable, "-c", PROGRAM, server.url], cwd=ROOT, text=True)
    assert shown.split() == ["7", "7"]


def test_images_are_taken_from_the_iterable_only_as_far_as_requests_may_run():
    taken = []

    def images():
        for index in range(100):
            taken.append(index)
            yield b"image"

    with ScriptedServer(SUCCESS) as server, Client(server.url) as client:
        results = client.classify_many(images(), concurrency=2, images_per_request=1)
        next(results)
        results.close()
        assert len(taken) <= 3
        assert len(server.queries) <= 3

"""Writers and readers of a real server whose workers are killed: one history, and no reader sees less than there is."""

import contextlib
import http.client
import io
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.patience import DEADLINE_S
from tests.serve.control.linearizability import Read, Write, violations
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

WORKERS, WRITERS, READERS = 4, 3, 8


def write(operator, seed, is_over):
    """Changes by compare-and-set, a third of them on a revision that may be old."""
    draw, seen, writes = random.Random(seed), [0], []
    while not is_over.is_set():
        if draw.random() < 0.7:
            seen.append(operator.ask("GET", "/admin/beta")[2]["revision"])
        expected = draw.choice(seen[-3:])
        change = {"default_beta": round(draw.random(), 3), "reason": f"writer {seed}"}
        began = time.monotonic()
        status, _, state = operator.ask("PUT", "/admin/beta", change, revision=expected)
        assert status in (200, 412), state
        writes.append(Write(began, time.monotonic(), expected, state["revision"] if status == 200 else None))
        time.sleep(0.001)
    return writes


def read(server, name, image, is_over):
    """Images over connections that a killed worker ends; each reader is one, whichever worker it meets."""
    reads = []
    while not is_over.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            while not is_over.is_set():
                began = time.monotonic()
                connection.request("POST", "/classify?top_k=1", image)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                if answer.status == 200:
                    reads.append(Read(began, time.monotonic(), name, content["revision"]))
    return reads


@pytest.mark.timeout(600)
@pytest.mark.parametrize("operations", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_update_is_lost_and_no_reader_goes_back_while_workers_die(start_operated, operations):
    server, operator = start_operated("--workers", WORKERS, "--log-level", "info", processes=WORKERS)
    buffer = io.BytesIO()
    Image.fromarray(load_bundle(EXAMPLES / "cifar10").golden.pixels[0]).save(buffer, "png")
    is_over, draw = threading.Event(), random.Random(0)
    killed = 0
    with ThreadPoolExecutor(WRITERS + READERS) as pool:
        writing = [pool.submit(write, operator, seed, is_over) for seed in range(WRITERS)]
        reading = [pool.submit(read, server, f"reader {n}", buffer.getvalue(), is_over) for n in range(READERS)]
        try:
            while operator.ask("GET", "/admin/beta")[2]["revision"] < operations // 10:
                time.sleep(draw.random() + 0.5)
                ready = [one for one in operator.ask("GET", "/admin/beta")[2]["workers"] if one["is_ready"]]
                if len(ready) > 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(draw.choice(ready)["pid"], signal.SIGKILL)
                        killed += 1
                enough = sum(future.done() for future in writing)
                assert not enough, [future.exception() for future in writing]
        finally:
            is_over.set()
        writes = [one for future in writing for one in future.result()]
        reads = [one for future in reading for one in future.result()]
    assert violations(writes, reads) == []
    made = [one.created for one in writes if one.created is not None]
    assert sorted(made) == list(range(1, len(made) + 1))
    assert operator.ask("GET", "/admin/beta/history/verify")[2] == {"verified": len(made)}
    assert killed > 0
    print(f"{len(writes)} writes, {len(made)} of them made, {len(reads)} reads, {killed} workers killed")

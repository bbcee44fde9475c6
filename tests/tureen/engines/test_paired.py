import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.patience import DEADLINE_S
from tureen.engines.paired import PairedEngine


class Engine:
    name, precision, version = "onnxruntime", "fp32", "1"

    def __init__(self, gate=None):
        self.sizes, self.is_closed = [], False
        self.gate, self.entered = gate, threading.Event()

    def run(self, pixels, tokens):
        self.sizes.append(len(pixels))
        self.entered.set()
        assert self.gate is None or self.gate.wait(DEADLINE_S)
        return np.zeros((len(pixels), 3), np.float32)

    def close(self):
        self.is_closed = True


def ask(engine, size):
    return engine.run(np.zeros((size, 2, 2, 3), np.uint8), np.zeros((size, 4), np.float32))


def test_an_image_alone_has_all_threads_and_a_batch_its_share():
    alone, together = Engine(), Engine()
    engine = PairedEngine(alone, together)
    assert ask(engine, 1).shape == (1, 3)
    assert ask(engine, 2).shape == (2, 3)
    assert ask(engine, 1).shape == (1, 3)
    assert (alone.sizes, together.sizes) == ([1, 1], [2])
    engine.close()
    assert alone.is_closed
    assert together.is_closed


def test_an_image_beside_others_takes_a_share():
    gate = threading.Event()
    alone, together = Engine(gate), Engine()
    engine = PairedEngine(alone, together)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, engine, 1)
        assert alone.entered.wait(DEADLINE_S)
        ask(engine, 1)
        gate.set()
        first.result()
    assert (alone.sizes, together.sizes) == ([1], [1])


def test_after_a_failure_an_image_is_alone_again():
    class Failing(Engine):
        def run(self, pixels, tokens):
            raise RuntimeError

    alone = Engine()
    engine = PairedEngine(alone, Failing())
    for _ in range(2):
        with pytest.raises(RuntimeError):
            ask(engine, 2)
    ask(engine, 1)
    assert alone.sizes == [1]

"""Combines two engines of one backbone: one for a single image, the other for several batches at the same time.

The first engine runs an image on all threads, for the lowest latency. The second engine runs each batch on a share of
the threads, for the highest throughput. All threads that share a batch wait for the slowest thread, and a thread is
slow while its core decodes an image. Two engines need the memory of the backbone twice.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.manifest import Precision
from tureen.engines.base import Engine

CPU_ENGINES = frozenset({"onnxruntime", "openvino"})  # a GPU has no threads to divide


class PairedEngine:
    """Runs a single image on the engine `alone` if no other run is active, and all other batches on `together`.

    Owns both engines. `close` closes both.
    """

    def __init__(self, alone: Engine, together: Engine) -> None:
        self.name: str = together.name
        self.precision: Precision = together.precision
        self.version: str = together.version
        self._alone = alone
        self._together = together
        self._lock = threading.Lock()
        self._running = 0

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        with self._lock:
            engine = self._alone if len(pixels) == 1 and not self._running else self._together
            self._running += 1
        try:
            return engine.run(pixels, tokens)
        finally:
            with self._lock:
                self._running -= 1

    def close(self) -> None:
        """Closes both engines and frees their memory."""
        self._alone.close()
        self._together.close()

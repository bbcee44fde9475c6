"""Two engines of one backbone: one runs a single image on all threads, the other runs several batches on a share each.

On a CPU the two goals need two engines. Threads that share a batch wait for each other, and longest for the thread
whose core the decoder uses. Batches side by side, each on its own threads, do not wait. But a single image would then
use only its share of the threads. The second engine needs the memory of the backbone again.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.manifest import Precision
from tureen.engines.base import Engine

CPU_ENGINES = frozenset({"onnxruntime", "openvino"})  # a GPU has no threads to divide


class PairedEngine:
    """Runs a batch of one on `alone` if no other run is active, and everything else on `together`. Owns both."""

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
        """Closes both engines."""
        self._alone.close()
        self._together.close()

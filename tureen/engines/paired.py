"""Two engines of one backbone: all threads for an image that comes alone, a share of them for each of several batches.

On a CPU the two aims need different engines. Threads that work on one batch together wait for each other, and for the
slowest of them where the decoder has taken its core; batches side by side, each on its share, do not. But of an image
alone only one share would work. Costs the backbone's memory a second time.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from tureen.bundle.manifest import Precision
from tureen.engines.base import Engine

CPU_ENGINES = frozenset({"onnxruntime", "openvino"})  # a GPU has nothing to share out


class PairedEngine:
    """Runs a batch of one on `alone` where nothing else runs, and everything else on `together`; closes both."""

    def __init__(self, alone: Engine, together: Engine) -> None:
        self.name: str = together.name
        self.precision: Precision = together.precision
        self.version: str = together.version
        self._alone = alone
        self._together = together
        self._lock = threading.Lock()
        self._running = 0

    def run(self, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (B, K) of pixels uint8 (B, H, W, 3) and tokens float32 (B, D)."""
        with self._lock:
            engine = self._alone if len(pixels) == 1 and not self._running else self._together
            self._running += 1
        try:
            return engine.run(pixels, tokens)
        finally:
            with self._lock:
                self._running -= 1

    def close(self) -> None:
        """Free both."""
        self._alone.close()
        self._together.close()

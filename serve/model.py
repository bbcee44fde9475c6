"""One loaded bundle with the engine that runs it. A stand-in for the core's."""

from __future__ import annotations

from dataclasses import dataclass

from tureen.bundle import Bundle
from tureen.soup import Soup


@dataclass
class Model:
    """A bundle being served."""

    bundle: Bundle
    soup: Soup

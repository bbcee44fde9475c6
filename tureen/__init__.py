"""Classifies images with a model that has a clean and a robust token.

A soup is the mix of both tokens. β is the weight of the robust token: 0 is the clean mode, 1 the robust mode.

import tureen
soup = tureen.load("cifar10")  # an example, or the directory of a bundle
soup.classify(["photo.jpg", jpeg_bytes, array], beta=[0.0, 0.7, "robust"])

NumPy and Pillow are imported at the first use of a name that needs them. So `tureen.client` works without them.
"""

from __future__ import annotations

import importlib

from tureen.version import __version__

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all others here
if TYPE_CHECKING:
    from typing import Any

    from tureen.errors import (
        ArgumentError,
        ArgumentTypeError,
        BundleError,
        ClosedError,
        EngineError,
        ImageError,
        InvalidBetaError,
        InvalidStrengthError,
        SingleTokenError,
        TureenError,
    )
    from tureen.interface.predictions import Classification, Prediction
    from tureen.interface.sweeps import Sweep
    from tureen.preprocess import ImageLimits
    from tureen.soup import Soup, load, load_torch

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BundleError",
    "Classification",
    "ClosedError",
    "EngineError",
    "ImageError",
    "ImageLimits",
    "InvalidBetaError",
    "InvalidStrengthError",
    "Prediction",
    "SingleTokenError",
    "Soup",
    "Sweep",
    "TureenError",
    "__version__",
    "load",
    "load_torch",
]

_MODULE_OF = {
    "Classification": "tureen.interface.predictions",
    "ImageLimits": "tureen.preprocess",
    "Prediction": "tureen.interface.predictions",
    "Soup": "tureen.soup",
    "Sweep": "tureen.interface.sweeps",
    "load": "tureen.soup",
    "load_torch": "tureen.soup",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Returns the public name after it has imported the module of the name. Python calls it once for each name."""
        if name == "errors":
            return importlib.import_module("tureen.errors")
        if name not in __all__:
            raise AttributeError(f"module 'tureen' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF.get(name, "tureen.errors")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Returns the names of the module, also those that are not imported yet."""
        return sorted({*globals(), *__all__})

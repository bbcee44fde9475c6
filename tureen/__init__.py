"""Classifies images with adversarial model soups: β chooses between clean accuracy (0) and robustness (1).

import tureen
soup = tureen.load("tureen-demo/bundle")
soup.classify(["photo.jpg", jpeg_bytes, array], beta=[0.0, 0.7, "robust"])
"""

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
from tureen.preprocess import ImageLimits
from tureen.soup import Classification, Prediction, Soup, load, load_torch
from tureen.version import __version__

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
    "TureenError",
    "__version__",
    "load",
    "load_torch",
]

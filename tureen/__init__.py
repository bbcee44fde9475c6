"""Classifies images with a model that has a clean and a robust token.

A soup is the mix of both tokens. β is the weight of the robust token: 0 is the clean mode, 1 the robust mode.

import tureen
soup = tureen.load("cifar10")  # an example, or the directory of a bundle
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

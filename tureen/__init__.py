"""Tureen serves adversarial model soups: one Vision Transformer, and a dial from clean accuracy to robustness.

import tureen
soup = tureen.load("tureen-demo/bundle")
soup.classify([jpeg_bytes, array], beta=[0.0, 0.7])
"""

from tureen.errors import BundleError, EngineError, ImageError, InvalidBetaError, SingleTokenError, TureenError
from tureen.soup import Classification, Prediction, Soup, load

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Classification",
    "EngineError",
    "ImageError",
    "InvalidBetaError",
    "Prediction",
    "SingleTokenError",
    "Soup",
    "TureenError",
    "load",
]

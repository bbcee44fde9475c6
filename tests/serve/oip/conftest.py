"""Fixtures with the example bundle and a few of its images, without training."""

import numpy as np
import pytest
from PIL import Image

import tureen
from tureen.bundle.bundle import load_bundle
from tureen.preprocess import pixels_from_bytes

BUNDLE = "tureen/examples/cifar10"


@pytest.fixture(scope="session")
def bundle(request):
    return load_bundle(request.config.rootpath / BUNDLE)


@pytest.fixture(scope="session")
def library(bundle):
    with tureen.load(bundle.path, engine="onnxruntime") as soup:
        yield soup


@pytest.fixture(scope="session")
def images(bundle, encode):
    """Three JPEG files whose sizes differ from the input size of the model."""
    pictures = [Image.fromarray(pixels).resize((40 + 5 * i, 50)) for i, pixels in enumerate(bundle.golden.pixels[:3])]
    return [encode(picture, "JPEG") for picture in pictures]


@pytest.fixture(scope="session")
def pixels(bundle, images):
    """The same images as pixels, uint8 (3, 32, 32, 3)."""
    return np.stack([pixels_from_bytes(image, bundle.manifest.preprocess) for image in images])

"""An admitted request: each image once at its β, errors apart from results, and the deadline."""

import time

import numpy as np
import pytest

from tests.serve.inference.opened_service import serving
from tureen.errors import UndecodableImageError


def test_an_image_is_decoded_once_and_classified_at_each_beta(bundle_path, digit_png, soup):
    async def test(service):
        with service.admit([digit_png(0)], rows=3) as admission:
            return await admission.sweep((0.0, 0.5, 1.0))

    sound = serving(bundle_path, test)
    expected = soup.logits(np.stack([sound.pixels] * 3), [0, 0.5, 1])
    assert np.abs(sound.logits - expected).max() < 1e-4  # another batch sums in another order


def test_an_image_that_cannot_be_decoded_harms_no_neighbour(bundle_path, digit_png, soup):
    async def test(service):
        with service.admit([digit_png(0), b"\xff\xd8\xff"]) as admission:
            return await admission.classify([admission.choose(0.5)] * 2)

    sound, broken = serving(bundle_path, test)
    assert np.abs(sound.logits - soup.logits(sound.pixels[None], [0.5])).max() < 1e-4
    assert isinstance(broken, UndecodableImageError)


def test_a_sweep_of_an_image_that_cannot_be_decoded_raises_its_error(bundle_path):
    async def test(service):
        with service.admit([b"\xff\xd8\xff"], rows=2) as admission, pytest.raises(UndecodableImageError):
            await admission.sweep((0.0, 1.0))

    serving(bundle_path, test)


def test_the_time_limit_counts_from_the_arrival(bundle_path, digit_png):
    async def test(service):
        with service.admit([digit_png(0)], timeout_ms=1000, arrived_s=time.monotonic() - 2) as admission:
            (result,) = await admission.classify([admission.choose(0.5)])
            assert type(result).__name__ == "DeadlineError"

    serving(bundle_path, test)

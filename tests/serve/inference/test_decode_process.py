import io
import subprocess
import threading

import numpy as np
import psutil
import pytest
from PIL import Image

from serve.inference.decode_process import ERRORS, DecodeOptions, DecodeProcess, DecodeProcessEndedError
from tests.patience import DEADLINE_S
from tureen.errors import ImageTooLargeError
from tureen.preprocess import ImageLimits, PreprocessSpec, pixels_from_bytes

DECODING = DecodeOptions(PreprocessSpec(image_size=32), ImageLimits(max_image_pixels=10_000))


@pytest.fixture
def process():
    process = DecodeProcess(nice=1)
    yield process
    process.close()
    assert not psutil.pid_exists(process.pid)


def png(size, mode="RGB"):
    with io.BytesIO() as file:
        Image.effect_noise(size, 64).convert(mode).save(file, "PNG")
        return file.getvalue()


def test_the_pixels_are_those_of_this_process(process):
    for size in ((32, 32), (90, 100)):
        image = png(size)
        expected = pixels_from_bytes(image, DECODING.preprocess, DECODING.limits)
        np.testing.assert_array_equal(process.decode(image, DECODING), expected)


def test_an_image_error_has_its_class_and_its_message_and_the_process_decodes_the_next_image(process):
    for image in (png((101, 100)), b"no image", b""):
        with pytest.raises(tuple(ERRORS.values())) as here:
            DECODING.pixels(image)
        with pytest.raises(type(here.value)) as there:
            process.decode(image, DECODING)
        assert str(there.value) == str(here.value)
    assert process.decode(png((32, 32)), DECODING).shape == (32, 32, 3)


def test_the_limits_are_those_of_the_request(process):
    larger = DecodeOptions(DECODING.preprocess, ImageLimits(max_image_pixels=20_000))
    with pytest.raises(ImageTooLargeError):
        process.decode(png((110, 110)), DECODING)
    assert process.decode(png((110, 110)), larger).shape == (32, 32, 3)


def test_a_process_that_ends_raises_for_the_image_it_decodes_and_the_next(process):
    process.decode(png((32, 32)), DECODING)
    ending = threading.Timer(0.05, process.kill)
    ending.start()
    image = png((90, 100))

    def decode_without_end():
        while True:
            process.decode(image, DECODING)

    with pytest.raises(DecodeProcessEndedError):
        decode_without_end()
    with pytest.raises(DecodeProcessEndedError):
        process.decode(png((32, 32)), DECODING)


def test_a_process_that_ends_late_is_closed_without_an_error(monkeypatch):
    late = []

    def wait(process, timeout):
        late.append(process)
        raise subprocess.TimeoutExpired(process.args, timeout)

    process = DecodeProcess(nice=1)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", wait)
        process.close()
    assert late[0].wait(DEADLINE_S) is not None

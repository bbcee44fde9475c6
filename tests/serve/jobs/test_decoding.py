"""Images read and decoded on threads and in processes, each with its pixels or its error."""

import hashlib
import json
import os
from contextlib import closing, contextmanager

import numpy as np
import pytest

from serve.errors import InputError
from serve.http.problems import PROBLEM_TYPES
from serve.inference.decode_process import DecodeOptions
from serve.jobs.decoding import ERROR_CODES, TASK_BYTES, ImageReader, decode_in_processes, decode_in_threads
from serve.jobs.image_source import InputImage
from serve.jobs.input_sources import ALL_FILES, open_source
from serve.jobs.job_output import SUCCESS_FILE
from tests.serve.jobs.photo_files import pack
from tests.serve.jobs.tables import rows_of
from tureen.preprocess import ImageLimits, PreprocessSpec

OPTIONS = DecodeOptions(PreprocessSpec(image_size=32), ImageLimits())


def test_a_file_that_is_no_image_is_a_row_with_an_error_and_the_others_are_classified(run_batch, photos, tmp_path):
    odd = {
        "empty.jpg": (b"", "empty_image"),
        "words.jpg": (b"these are words", "unsupported_image_type"),
        "half.png": (sorted(photos.rglob("*.png"))[0].read_bytes()[:90], "undecodable_image"),
        "large.jpg": (b"\xff\xd8\xff" + bytes(30_000), "image_too_large"),
    }
    for name, (content, _) in odd.items():
        (photos / name).write_bytes(content)
    os.mkfifo(photos / "pipe.jpg")
    (photos / "nowhere.jpg").symlink_to(tmp_path / "gone")
    (photos / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"x")
    arguments = ("--max-image-bytes", max(file.stat().st_size for file in photos.rglob("image*.*")))
    assert run_batch(photos, tmp_path / "out", *arguments) == 0
    codes = {row["path"]: row["error_code"] for row in rows_of(tmp_path / "out") if row["status"] == "error"}
    expected = {name: code for name, (_, code) in odd.items()}
    expected |= {
        "pipe.jpg": "unreadable_image",
        "nowhere.jpg": "unreadable_image",
        "\\xff\\xfe.jpg": "unsupported_image_type",
    }
    assert codes == expected
    summary = json.loads((tmp_path / "out" / SUCCESS_FILE).read_text())
    assert summary["images"] == 30
    assert summary["failed_rows"] == sum(summary["error_codes"].values()) == 7


def test_the_codes_are_those_of_the_server():
    for cls, code in ERROR_CODES.items():
        if cls in PROBLEM_TYPES:
            assert PROBLEM_TYPES[cls].code == code


@contextmanager
def open_pool(kind, source, given):
    if kind == "threads":
        with decode_in_threads(source, OPTIONS, 2) as pool:
            yield pool
    else:
        with decode_in_processes(str(given), ALL_FILES, source, OPTIONS, 1) as pool:
            yield pool


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("name", ["photos", "photos.tar", "photos.tar.gz"])
def test_a_pool_gives_the_results_of_the_reader_in_order(photos, tmp_path, kind, name):
    (photos / "words.jpg").write_bytes(b"these are words")
    given = photos if name == "photos" else pack(photos, tmp_path / name)
    with closing(open_source(str(given))) as source:
        images = list(source.list_images())
        expected = [ImageReader(source, OPTIONS).decode(image) for image in images]
        with open_pool(kind, source, given) as pool:
            assert pool.is_sequential == (name == "photos.tar.gz")
            tasks = [pool.submit(images[n : n + 5]) for n in range(0, len(images), 5)]
            assert [count for count, _ in tasks] == [5, 5, 5, 5, 4]
            results = [result for _, future in tasks for result in future.result(60)]
    assert [image.path for image in images][-1] == "words.jpg"
    for image, result, alone in zip(images, results, expected, strict=True):
        assert result.sha256 == alone.sha256 == hashlib.sha256((photos / image.path).read_bytes()).hexdigest()
        assert (result.error_code, result.error) == (alone.error_code, alone.error)
        if result.pixels is not None:
            np.testing.assert_array_equal(result.pixels, alone.pixels)
    assert [result.error_code for result in results] == [None] * 23 + ["unsupported_image_type"]


def test_a_task_of_a_sequential_source_has_a_limited_size(photos, tmp_path):
    for n in range(3):
        (photos / f"large {n}.jpg").write_bytes(bytes(TASK_BYTES // 2))
    with closing(open_source(str(pack(photos, tmp_path / "photos.tar.gz")))) as source:
        images = [image for image in source.list_images() if "large" in image.path]
        with decode_in_threads(source, OPTIONS, 2) as pool:
            count, future = pool.submit(images)
            assert count == len(future.result(60)) == 2


def test_an_image_that_cannot_be_read_has_an_error_and_no_hash(photos):
    with closing(open_source(str(photos))) as source:
        result = ImageReader(source, OPTIONS).decode(InputImage("x", "x", None, "gone.png"))
    assert (result.sha256, result.pixels, result.error_code) == (None, None, "unreadable_image")
    assert result.error == "No such file or directory"


def test_a_process_that_cannot_open_the_input_reports_it(photos, tmp_path):
    with closing(open_source(str(photos))) as source:
        images = list(source.list_images())
        with (
            decode_in_processes(str(tmp_path / "gone"), ALL_FILES, source, OPTIONS, 1) as pool,
            pytest.raises(InputError, match="does not exist"),
        ):
            pool.submit(images[:1])[1].result(60)

"""Images in, finished shards out: order, batches, and an engine that fails."""

from concurrent.futures import Future

import numpy as np
import pytest

import tureen
from serve.errors import JobError
from serve.jobs.decoding import DecodeResult
from serve.jobs.image_source import InputImage
from serve.jobs.pipeline import CHUNK, INFERENCE_FAILED, Pipeline, ShardInput
from serve.jobs.shard_file import Shard
from tests.serve.jobs.conftest import BUNDLE
from tests.serve.jobs.tables import rows_of
from tureen.bundle.manifest import UNCALIBRATED, Temperatures


def test_an_engine_failure_on_one_image_fails_one_row_and_on_all_images_the_job(
    run_batch, photos, tmp_path, monkeypatch
):
    broken = set()
    real = tureen.Soup.logits

    def logits(self, pixels, betas):
        if not broken or any(row.tobytes() in broken for row in pixels):
            raise RuntimeError("of a runtime")
        return real(self, pixels, betas)

    monkeypatch.setattr(tureen.Soup, "logits", logits)
    with pytest.raises(JobError, match="fails on every image"):
        run_batch(photos, tmp_path / "all")
    spec = tureen.bundle.bundle.load_bundle(BUNDLE).manifest.preprocess
    first = sorted(photos.rglob("*.png"))[0]
    broken.add(tureen.preprocess.pixels_from_bytes(first.read_bytes(), spec).tobytes())
    assert run_batch(photos, tmp_path / "one") == 0
    failed = [row for row in rows_of(tmp_path / "one") if row["status"] == "error"]
    assert [(row["path"], row["error_code"]) for row in failed] == [
        (str(first.relative_to(photos)), "inference_failed")
    ]


class InstantPool:
    """Decodes each image to pixels of its number before `submit` returns. An image at the path "bad" has an error."""

    count, is_sequential = 2, False

    def __init__(self):
        self.tasks = []

    def submit(self, images):
        self.tasks.append(len(images))
        future = Future()
        future.set_result([self.result(image) for image in images])
        return len(images), future

    @staticmethod
    def result(image):
        if image.path == "bad":
            return DecodeResult("0", None, "undecodable_image", "it is damaged")
        return DecodeResult("0", np.full((2, 2, 3), int(image.id), np.uint8))


class CountingEngine:
    """Logits (number of the image, β, 0); fails on batches that hold one of some numbers."""

    def __init__(self, broken=()):
        self.broken, self.batches = set(broken), []

    def __call__(self, pixels, betas):
        numbers = [int(one[0, 0, 0]) for one in pixels]
        self.batches.append(numbers)
        if self.broken.intersection(numbers):
            raise RuntimeError("of a runtime")
        return np.array([[number, beta, 0] for number, beta in zip(numbers, betas, strict=True)], np.float32)


def images_of(*numbers, first_row=0, width=1, beta=None):
    return [(first_row + n * width, InputImage(str(number), "good", beta, "")) for n, number in enumerate(numbers)]


def run(
    engine,
    inputs,
    betas=(0.5,),
    *,
    temperatures=UNCALIBRATED,
    batch_rows=4,
    streams=1,
    on_images=lambda done, failed: None,
):
    pipeline = Pipeline(engine, InstantPool(), betas, temperatures=temperatures, batch_rows=batch_rows, streams=streams)
    return list(pipeline.run(inputs, on_images))


def test_shards_come_in_order_and_no_batch_holds_rows_of_two():
    engine, counts = CountingEngine(), []
    inputs = [ShardInput(n, Shard(6, 3), images_of(*range(10 * n, 10 * n + 6))) for n in (1, 2)]
    finished = run(engine, inputs, on_images=lambda done, failed: counts.append((done, failed)))
    assert [one.number for one in finished] == [1, 2]
    assert engine.batches == [[10, 11, 12, 13], [14, 15], [20, 21, 22, 23], [24, 25]]
    assert [one.shard.ids for one in finished] == [[str(10 * n + m) for m in range(6)] for n in (1, 2)]
    assert counts == [(1, 0)] * 12


def test_several_streams_give_the_rows_of_one():
    shards = []
    for streams in (1, 3):
        inputs = [ShardInput(n, Shard(40, 3), images_of(*range(40))) for n in range(3)]
        shards.append([one.shard for one in run(CountingEngine(), inputs, batch_rows=3, streams=streams)])
    for one, three in zip(*shards, strict=True):
        np.testing.assert_array_equal(one.indices, three.indices)
        np.testing.assert_array_equal(one.probabilities, three.probabilities)


def test_an_image_has_a_row_for_each_beta_or_one_for_its_beta():
    shard = Shard(3, 3)
    images = [*images_of(1, width=2), *images_of(2, first_row=2, beta=0.75)]
    run(CountingEngine(), [ShardInput(0, shard, images)], betas=(0.0, 1.0))
    assert (shard.ids, shard.betas) == (["1", "1", "2"], [0.0, 1.0, 0.75])


def test_the_rows_of_one_image_have_the_temperature_of_their_beta():
    shard = Shard(2, 3)
    temperatures = Temperatures(betas=(0, 1), values=(2, 4))
    run(CountingEngine(), [ShardInput(0, shard, images_of(4))], betas=(0.0, 1.0), temperatures=temperatures)
    for share, logits, temperature in zip(shard.probabilities[:, 0], ([4, 0, 0], [4, 1, 0]), (2, 4), strict=True):
        exponentials = np.exp(np.array(logits) / temperature)
        assert share == pytest.approx(exponentials[0] / exponentials.sum())


def test_an_image_with_an_error_has_its_rows_and_no_place_in_a_batch():
    engine, shard, counts = CountingEngine(), Shard(4, 3), []
    images = [*images_of(1, width=2), (2, InputImage("x\udcff", "bad", None, ""))]
    run(engine, [ShardInput(0, shard, images)], betas=(0.0, 1.0), on_images=lambda *done: counts.append(done))
    assert engine.batches == [[1, 1]]
    assert shard.error_codes == [None, None, "undecodable_image", "undecodable_image"]
    assert shard.ids[2:] == ["x\\xff"] * 2
    assert counts == [(1, 0), (1, 1)]


def test_a_failed_batch_is_halved_until_only_the_broken_images_have_an_error():
    engine, shard = CountingEngine(broken={3, 4}), Shard(8, 3)
    run(engine, [ShardInput(0, shard, images_of(*range(8)))], batch_rows=8)
    assert shard.failed_rows == [3, 4]
    assert shard.error_codes[3] == INFERENCE_FAILED
    assert shard.indices[7, 0] == 0  # of logits (7, ½, 0)
    assert sorted(number for numbers in engine.batches if len(numbers) == 1 for number in numbers) == [2, 3, 4, 5]


def test_an_engine_that_fails_on_every_image_of_a_batch_ends_the_job():
    with pytest.raises(JobError, match="fails on every image of a batch of 4"):
        run(CountingEngine(broken=range(8)), [ShardInput(0, Shard(8, 3), images_of(*range(8)))])


def test_an_interruption_ends_the_run():
    class InterruptedTestError(Exception):
        pass

    def interrupt(done, failed):
        raise InterruptedTestError

    with pytest.raises(InterruptedTestError):
        run(CountingEngine(), [ShardInput(0, Shard(8, 3), images_of(*range(8)))], on_images=interrupt)


def test_images_are_decoded_in_chunks():
    pool = InstantPool()
    pipeline = Pipeline(CountingEngine(), pool, (0.5,), temperatures=UNCALIBRATED, batch_rows=4, streams=1)
    images = images_of(*range(2 * CHUNK + 6))
    list(pipeline.run([ShardInput(0, Shard(len(images), 3), images)], lambda done, failed: None))
    assert pool.tasks == [CHUNK, CHUNK, 6]


def test_images_that_the_pool_does_not_take_are_in_the_next_task():
    class SlowPool(InstantPool):
        def submit(self, images):
            return super().submit(images[:5])

    pool, shard = SlowPool(), Shard(13, 3)
    pipeline = Pipeline(CountingEngine(), pool, (0.5,), temperatures=UNCALIBRATED, batch_rows=4, streams=1)
    list(pipeline.run([ShardInput(0, shard, images_of(*range(13)))], lambda done, failed: None))
    assert pool.tasks == [5, 5, 3]
    assert shard.ids == [str(n) for n in range(13)]

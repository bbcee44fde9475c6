import numpy as np
import pytest
import torch
from PIL import Image

from training.data.datasets import Images, StreamedImages
from training.data.loading import BatchOrder, MemoryLoader, StreamLoader, random_resized_crop
from training.data.sources import ImageFolder
from training.errors import DataError, RecipeError
from training.recipes import load_recipe
from tureen.preprocess import PreprocessSpec

CPU = torch.device("cpu")
SPEC = PreprocessSpec(image_size=8)


def recipe(*settings):
    return load_recipe("digits", ["epochs=2", "batch_size=4", *settings])


def stream(folder, count=12):
    rng = np.random.default_rng(0)
    paths = [f"{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / path)
    return StreamedImages(
        ImageFolder(folder, paths, np.arange(count)), np.arange(count), SPEC, np.zeros((count, 16), np.uint8)
    )


def test_every_epoch_takes_every_image_once_in_a_separate_order():
    order = BatchOrder(recipe(), 14)
    keys = [key for batch in order.from_step(0) for key in batch]
    assert order.steps_per_epoch == 3
    for epoch in (0, 1):
        indices = [index for of, index in keys if of == epoch]
        assert len(set(indices)) == len(indices) == 12
    assert keys[:12] != [(0, index) for _, index in keys[12:]]


@pytest.mark.parametrize("first", range(6))
def test_an_order_can_resume_at_any_step(first):
    order = BatchOrder(recipe(), 14)
    assert list(order.from_step(first)) == list(order.from_step(0))[first:]


def test_processes_share_every_batch_among_them():
    whole = list(BatchOrder(recipe(), 14).from_step(0))
    shares = [list(BatchOrder(recipe(), 14, rank, 2).from_step(0)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(first + second)


def test_shares_are_equal_even_with_fewer_images_than_a_batch():
    shares = [list(BatchOrder(recipe(), 3, rank, 2).from_step(0)) for rank in (0, 1)]
    assert [[len(batch) for batch in share] for share in shares] == [[1, 1], [1, 1]]
    with pytest.raises(RecipeError, match="1 images are too few for 2 processes"):
        BatchOrder(recipe(), 1, 0, 2)


def test_an_image_that_vanishes_during_training_is_named(tmp_path):
    images = stream(tmp_path)
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png could be decoded at the start of the run"):
        list(StreamLoader(images, recipe("epochs=1"), CPU, 0).batches(BatchOrder(recipe("epochs=1"), 12), 0))


def test_fewer_images_than_a_batch_are_one_batch():
    assert [len(batch) for batch in BatchOrder(recipe(), 3).from_step(0)] == [3, 3]


def test_worker_processes_decode_like_one_process(tmp_path):
    """The same seed gives the same crops for any number of workers; batches have the order of BatchOrder."""
    images, settings = stream(tmp_path), recipe("augmentation.crop_scale=0.3", "epochs=1")
    order = BatchOrder(settings, len(images))
    alone, shared = (list(StreamLoader(images, settings, CPU, n).batches(order, 0)) for n in (0, 2))
    for (pixels, labels), (other_pixels, other_labels), keys in zip(alone, shared, order.from_step(0), strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(labels, other_labels)
        assert labels.tolist() == [index for _, index in keys]
        assert pixels.shape == (4, 8, 8, 3)
        assert pixels.dtype == torch.uint8


def test_a_stream_without_crops_equals_the_images_in_memory(tmp_path):
    images, settings = stream(tmp_path), recipe("epochs=1")
    from tureen.preprocess import pixels_from_image

    pixels = np.stack([pixels_from_image(images.image(i), SPEC) for i in range(len(images))])
    order = BatchOrder(settings, len(images))
    streamed = StreamLoader(images, settings, CPU, 0).batches(order, 1)
    memory = MemoryLoader(Images(pixels, images.labels), CPU).batches(order, 1)
    for (a, labels), (b, other_labels) in zip(streamed, memory, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(labels, other_labels)


def test_a_random_crop_keeps_as_much_of_the_image_as_it_should():
    """Return an image whose red is the column and whose green is the row, so that pixels show the extent of a crop."""
    y, x = np.mgrid[0:200, 0:240]
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        pixels = random_resized_crop(image, PreprocessSpec(image_size=16), 0.25, rng).astype(float)
        width, height = (pixels[..., channel].max() - pixels[..., channel].min() for channel in (0, 1))
        shares.append(width * height * (16 / 15) ** 2 / (200 * 240))
    assert 0.2 < min(shares) < 0.35
    assert 0.8 < max(shares) < 1.1


def test_a_batch_that_does_not_divide_among_the_processes_is_refused():
    with pytest.raises(RecipeError, match="batch_size 63 does not divide among 2 processes"):
        BatchOrder(load_recipe("digits", ["batch_size=63"]), 1000, rank=0, processes=2)

"""Loads batches of training images onto a device, beginning at any step. The seed determines the order of the images.

Knows nothing about models.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.data.datasets import Images, StreamedImages
from training.errors import RecipeError
from training.recipes import Recipe
from tureen.preprocess import PreprocessSpec, pixels_from_image

Batch = tuple[Tensor, Tensor]
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


class BatchOrder:
    """Determines which images each step trains on. Shuffles the images in each epoch.

    Drops the last batch of an epoch if it is incomplete. Raises RecipeError if the batch size is not a multiple of the
    number of processes, or if there are fewer images than processes.
    """

    def __init__(self, recipe: Recipe, images: int, rank: int = 0, processes: int = 1) -> None:
        if recipe.batch_size % processes:
            raise RecipeError(f"batch_size {recipe.batch_size} does not divide among {processes} processes")
        self._recipe = recipe
        self._images = images
        self._batch_size = min(recipe.batch_size, images // processes * processes)
        if not self._batch_size:
            raise RecipeError(f"{images} images are too few for {processes} processes")
        self._rank, self._processes = rank, processes
        self.steps_per_epoch = images // self._batch_size
        self.images_per_step = self._batch_size // processes  # of each process

    def from_step(self, first: int) -> Iterator[list[tuple[int, int]]]:
        """Yields for each step, from `first` to the last, the images of this process as (epoch, index) pairs."""
        for step in range(first, self._recipe.epochs * self.steps_per_epoch):
            epoch, within = divmod(step, self.steps_per_epoch)
            if step == first or not within:
                order = np.random.default_rng((self._recipe.seed, epoch)).permutation(self._images).tolist()
            batch = order[within * self._batch_size : (within + 1) * self._batch_size]
            yield [(epoch, index) for index in batch[self._rank :: self._processes]]


class Loader(Protocol):
    def batches(self, order: BatchOrder, first: int) -> Iterator[Batch]:
        """Yields the batch of each step from `first` on: pixels uint8 (B, H, W, 3) and labels int64 (B,)."""


class MemoryLoader:
    """Yields batches from the memory of the device. The constructor copies all images to the device."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self._pixels = torch.from_numpy(images.pixels).to(device)
        self._labels = torch.from_numpy(images.labels).to(device)

    def batches(self, order: BatchOrder, first: int) -> Iterator[Batch]:
        for keys in order.from_step(first):
            chosen = torch.tensor([index for _, index in keys], device=self._pixels.device)
            yield self._pixels[chosen], self._labels[chosen]


class StreamLoader:
    """Yields batches. Several worker processes decode the images of a batch before its step begins."""

    def __init__(self, stream: StreamedImages, recipe: Recipe, device: torch.device, workers: int) -> None:
        self._views = _TrainingViews(stream, recipe.augmentation.crop_scale, recipe.seed)
        self._device = device
        self._workers = workers

    def batches(self, order: BatchOrder, first: int) -> Iterator[Batch]:
        loader = DataLoader(
            self._views,
            batch_sampler=order.from_step(first),
            num_workers=self._workers,
            multiprocessing_context="spawn" if self._workers else None,  # a fork of a process with threads may hang
            worker_init_fn=_ignore_interrupt,
            pin_memory=self._device.type == "cuda",
        )
        for pixels, labels in loader:
            yield pixels.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


def _ignore_interrupt(worker: int) -> None:
    """Makes a worker process ignore SIGINT. A terminal sends this signal to all processes.

    The worker must not end, because the current step still needs its images.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _TrainingViews(TorchDataset[tuple[NDArray[np.uint8], int]]):
    """Maps (epoch, index) to the pixels, uint8 (H, W, 3), and the label of an image.

    The image is cropped at random and resized. If `crop_scale` is 1, it is preprocessed as in evaluation instead.
    """

    def __init__(self, stream: StreamedImages, crop_scale: float, seed: int) -> None:
        self._stream, self._crop_scale, self._seed = stream, crop_scale, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[NDArray[np.uint8], int]:
        epoch, index = key
        image, label = self._stream.image(index), self._stream.label(index)
        if self._crop_scale == 1:
            return pixels_from_image(image, self._stream.spec), label
        rng = np.random.default_rng((self._seed, epoch, index))
        return random_resized_crop(image, self._stream.spec, self._crop_scale, rng), label


def random_resized_crop(
    image: Image.Image, spec: PreprocessSpec, scale: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Returns a random crop of the image, resized to the input size of the model: pixels uint8 (H, W, 3).

    The crop has at least the share `scale` of the area, and a side ratio from 3:4 to 4:3 (Szegedy et al., CVPR 2015).
    If ten tries find no such crop inside the image, preprocesses the image as in evaluation.
    """
    width, height = image.size
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(scale, 1)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIOS[0]), math.log(CROP_RATIOS[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            size = (spec.image_size, spec.image_size)
            box = (left, top, left + w, top + h)
            return np.array(image.resize(size, Image.Resampling.BICUBIC, box=box))
    return pixels_from_image(image, spec)

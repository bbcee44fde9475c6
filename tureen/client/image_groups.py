"""Divides many images into requests of several, and joins their results in order. Sends nothing.

A request that the server refuses as too large is divided again. An image that cannot be read or decoded has a problem
in place of a result, and does not affect the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from tureen.client.api_request import (
    ApiRequest,
    BetaValue,
    ImageChoice,
    MixValue,
    SharedOptions,
    classify_request,
)
from tureen.client.api_response import (
    TOO_LARGE_CODES,
    ImageProblem,
    ImageResult,
    is_problem_of_image,
    parse_classification,
    parse_results,
    problem_of_image,
)
from tureen.client.client_errors import ClientError
from tureen.errors import ArgumentError, ArgumentTypeError, ImageError, ImageTooLargeError
from tureen.interface.image_bytes import EncodedSource, encoded_bytes, is_encoded_source

DEFAULT_CONCURRENCY: Final = 4
DEFAULT_IMAGES_PER_REQUEST: Final = 8
MAX_IMAGE_BYTES: Final = 256 * 2**20  # read of one file; the server has a lower limit, and refuses the image
MAX_GROUP_BYTES: Final = 16 * 2**20  # of several images in one request; the server's default limit is twice this


@dataclass(frozen=True)
class ChosenImage:
    """An image and its choice."""

    source: EncodedSource
    choice: ImageChoice


def image_bytes(source: EncodedSource) -> bytes:
    """Returns the bytes of an image.

    Raises UnreadableImageError or ArgumentTypeError as `encoded_bytes` does, and ImageTooLargeError for a file of more
    than MAX_IMAGE_BYTES.
    """
    data = encoded_bytes(source, MAX_IMAGE_BYTES)
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageTooLargeError("bytes", MAX_IMAGE_BYTES)
    return data


def read_images(images: Sequence[ChosenImage]) -> list[bytes | ImageProblem]:
    """Returns the bytes of each image, or the problem of an image that cannot be read."""
    found: list[bytes | ImageProblem] = []
    for image in images:
        try:
            found.append(image_bytes(image.source))
        except ImageError as error:
            found.append(problem_of_image(error))
    return found


def chosen_images(
    images: Iterable[EncodedSource],
    *,
    beta: BetaValue | Iterable[BetaValue | None] | None = None,
    strength: float | Iterable[float | None] | None = None,
    token: str | Iterable[str | None] | None = None,
    mix: MixValue | Iterable[MixValue | None] | None = None,
) -> Iterator[ChosenImage]:
    """Yields each image with its choice.

    Each of beta, strength, token and mix is one value for all images, or an iterable of one per image. Raises
    ArgumentTypeError if `images` is one image. The iterator raises ArgumentError if the numbers differ.
    """
    if is_encoded_source(images) or not isinstance(images, Iterable):
        raise ArgumentTypeError("images is one image or no iterable: give a list of images, such as [image]")
    columns = [
        repeat(value) if not isinstance(value, Iterable) or isinstance(value, str | Mapping) else iter(value)
        for value in (beta, strength, token, mix)
    ]
    return _chosen(iter(images), columns)


def _chosen(images: Iterator[EncodedSource], columns: list[Iterator[Any]]) -> Iterator[ChosenImage]:
    end: Any = object()
    for image in images:
        values = [next(column, end) for column in columns]
        if end in values:
            raise ArgumentError("there are more images than β, strengths, tokens or mixes: give one for each image")
        yield ChosenImage(image, ImageChoice(*values))
    if any(next(column, end) is not end for column in columns if not isinstance(column, repeat)):
        raise ArgumentError("there are fewer images than β, strengths, tokens or mixes: give one for each image")


def check_group_arguments(concurrency: int, images_per_request: int) -> None:
    """Raises ArgumentError if one of the numbers is below 1."""
    for name, value in (("concurrency", concurrency), ("images_per_request", images_per_request)):
        if value < 1:
            raise ArgumentError(f"{name} is {value}: give 1 or more")


def group_sizes(lengths: Sequence[int]) -> list[int]:
    """Returns how many images each request has, so that no request of several has more than MAX_GROUP_BYTES.

    lengths: of the images, in bytes, in their order.
    """
    sizes: list[int] = []
    total = 0
    for length in lengths:
        if not sizes or total + length > MAX_GROUP_BYTES:
            sizes.append(0)
            total = 0
        sizes[-1] += 1
        total += length
    return sizes


def group_steps(
    images: Sequence[ChosenImage], contents: Sequence[bytes | ImageProblem], options: SharedOptions
) -> Generator[ApiRequest, bytes, list[ImageResult]]:
    """Yields the requests for a group of images, one after the other, and returns the result of each image.

    The caller sends the body of each response to the generator, or throws the ClientError of the request into it. The
    generator raises an error that concerns more than one image. contents: of each image, from `read_images`.
    """
    readable = [
        (content, image.choice) for image, content in zip(images, contents, strict=True) if isinstance(content, bytes)
    ]
    parts = iter(readable)
    waiting = deque([next(parts) for _ in range(size)] for size in group_sizes([len(data) for data, _ in readable]))
    found: list[ImageResult] = []
    while waiting:
        part = waiting.popleft()
        try:
            body = yield classify_request([data for data, _ in part], [choice for _, choice in part], options)
        except ClientError as error:
            if len(part) > 1 and error.code in TOO_LARGE_CODES:
                waiting.extendleft((part[len(part) // 2 :], part[: len(part) // 2]))
                continue
            if len(part) > 1 or not is_problem_of_image(error):
                raise
            found.append(problem_of_image(error))
        else:
            found += [parse_classification(body)] if len(part) == 1 else parse_results(body, len(part))
    results = iter(found)
    return [next(results) if isinstance(content, bytes) else content for content in contents]

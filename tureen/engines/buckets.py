"""Computes the batch sizes of an engine with fixed shapes, and splits a batch into parts of these sizes.

Knows no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes of an engine, ascending: the powers of two below `max_batch`, then `max_batch`.

    max_batch: 1 or more.
    """
    powers = (1 << exponent for exponent in range((max_batch - 1).bit_length()))
    return (*powers, max_batch)


def split_batch(rows: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Splits a batch of `rows` images. Yields the slice of each part, and the batch size in which the part runs.

    sizes: the batch sizes, ascending. All parts but the last have the largest size. The last part runs in the smallest
    size that it fits into.
    """
    for start in range(0, rows, sizes[-1]):
        part = slice(start, min(start + sizes[-1], rows))
        yield part, next(size for size in sizes if size >= part.stop - part.start)

"""Computes the batch sizes of an engine with fixed shapes, and splits a batch into them.

Knows no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """Returns the powers of two below max_batch, then max_batch. max_batch is 1 or more."""
    powers = (1 << exponent for exponent in range((max_batch - 1).bit_length()))
    return (*powers, max_batch)


def split_batch(rows: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Yields the parts of a batch of `rows` rows: a slice, and the smallest of the sizes that is at least as long.

    sizes: ascending. All parts but the last have the largest size.
    """
    for start in range(0, rows, sizes[-1]):
        part = slice(start, min(start + sizes[-1], rows))
        yield part, next(size for size in sizes if size >= part.stop - part.start)

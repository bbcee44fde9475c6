"""The batch sizes that an engine of fixed shapes runs, and how a batch is cut and padded to them.

Knows no runtime: sizes in, sizes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """The powers of two below max_batch, and max_batch; ascending. max_batch is 1 or more."""
    powers = (1 << exponent for exponent in range((max_batch - 1).bit_length()))
    return (*powers, max_batch)


def split_batch(rows: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Consecutive slices that together are `rows` rows, each with the least of the ascending sizes that holds it."""
    for start in range(0, rows, sizes[-1]):
        part = slice(start, min(start + sizes[-1], rows))
        yield part, next(size for size in sizes if size >= part.stop - part.start)

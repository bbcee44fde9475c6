"""Makes the C library return large blocks as soon as they are free, so that resident memory follows the memory in use.

glibc raises its thresholds to the largest block that it has seen freed, at most 32 MiB. After one large image, it takes
blocks of that size from its heaps. A few small blocks that stay in use then keep these heaps from shrinking. With
fixed thresholds, memory stays flat.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_BYTES = 2**21  # with 1 MiB each batch of pixels would map fresh pages, which costs 2 % of the throughput


def return_large_blocks() -> None:
    """Fixes both thresholds for the lifetime of the process. Does nothing with a C library other than glibc."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)

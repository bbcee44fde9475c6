"""Makes glibc return freed large blocks to the system immediately, so that resident memory follows the memory in use.

By default glibc raises two thresholds to the size of the largest freed block, at most 32 MiB. After one large image,
glibc takes blocks of up to that size from its heaps. A heap cannot shrink while a few small blocks in it stay in use.
With fixed thresholds, resident memory does not grow.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_BYTES = 2**21  # with 1 MiB each batch of pixels would map fresh pages, which costs 2 % of the throughput


def return_large_blocks() -> None:
    """Makes glibc return freed blocks of 2 MiB and more to the system immediately, until the process ends.

    Fixes the thresholds M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)

"""Has the C library give large blocks back as soon as they are free, so that memory follows what is in use.

glibc raises its thresholds to the largest block it has ever seen freed, 32 MiB at most: after one large image, blocks
of that size come from its heaps, which a few small ones that live on keep from shrinking. Fixed, memory stays flat.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_BYTES = 2**21  # of 1 MiB, each batch of pixels would be pages anew, at 2 % of the throughput


def return_large_blocks() -> None:
    """Fix both thresholds, for the process' life; does nothing where the C library is another."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)

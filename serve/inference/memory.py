"""Sets when glibc returns freed blocks to the system, and how often Python searches for unused objects.

glibc returns large blocks immediately, so that resident memory follows the memory in use. By default it raises two
thresholds to the size of the largest freed block, at most 32 MiB. After one large image, it takes blocks of up to that
size from its heaps. A heap cannot shrink while a few small blocks in it stay in use. With fixed thresholds, resident
memory does not grow.
"""

from __future__ import annotations

import ctypes
import gc
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_BYTES = 2**21  # with 1 MiB each batch of pixels would map fresh pages, which costs 2 % of the throughput

YOUNG_OBJECTS = 10_000  # Python's default is 700, which a few requests in progress hold


def return_large_blocks() -> None:
    """Makes glibc return freed blocks of 2 MiB and more to the system immediately, until the process ends.

    Fixes the thresholds M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)


def collect_rarely() -> None:
    """Makes Python search for unused objects after every YOUNG_OBJECTS new ones, until the process ends.

    Nearly all objects of a request are freed without a search. A search visits those of the requests in progress.
    """
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])

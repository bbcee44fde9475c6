"""Resident memory after large blocks are freed, in a child process: the thresholds of malloc are process-wide."""

import gc
import platform
import subprocess
import sys

import pytest

from serve.inference.memory import YOUNG_OBJECTS

PROBE = """
import ctypes, sys
from serve.inference.memory import return_large_blocks

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "fixed":
    return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def blocks(count, size):
    made = [libc.malloc(size) for _ in range(count)]
    for block in made:
        libc.memset(block, 1, size)
    return made

for block in blocks(1, 30 << 20):
    libc.free(block)
before = rss()
large = blocks(4, 9 << 20)
last = libc.malloc(100 << 10)
for block in large:
    libc.free(block)
print((rss() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such thresholds")
def test_large_blocks_are_given_back_with_a_small_one_behind_them():
    def held_mib(thresholds):
        return int(
            subprocess.run([sys.executable, "-c", PROBE, thresholds], capture_output=True, check=True, text=True).stdout
        )

    assert held_mib("fixed") <= 1
    assert held_mib("default") >= 16  # otherwise the first assertion proves nothing


def test_the_collector_searches_less_often_than_by_default():
    code = "import gc; from serve.inference.memory import *; collect_rarely(); print(*gc.get_threshold())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(YOUNG_OBJECTS), *map(str, gc.get_threshold()[1:])]

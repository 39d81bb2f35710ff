"""Memory of a block's temporaries, kept by the process for the next block.

glibc gives arrays of more than a few MiB back to the system as soon as they are freed, and the
system clears each page anew when the next block asks for it: of a convolutional network's study a
third of the processor time. Up to `KEPT` bytes are kept instead, and torch is told to ask for
pages of 2 MiB.
"""

import ctypes
import os
import sys
from functools import cache

KEPT = 2**29  # bytes at the top of the heap
_LARGEST_ON_HEAP = 2**25  # bytes: glibc takes no more
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
# Who has set one of these has decided.
_THEIRS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by torch before its first array


@cache
def keep_freed_memory() -> bool:
    """Once in a process; whether it was done, which is under Linux with glibc's own allocator."""
    if sys.platform != "linux" or any(name in os.environ for name in _THEIRS):
        return False
    os.environ.setdefault(_HUGE_PAGES, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all(
        mallopt(name, size) == 1
        for name, size in ((_MMAP_THRESHOLD, _LARGEST_ON_HEAP), (_TRIM_THRESHOLD, KEPT))
    )

"""Keeps the memory of large buffers in the process, instead of giving it back after every step.

glibc maps each large block anew and unmaps it when it is freed, so XLA's buffers on CPU, which are
allocated and freed at every call, are zeroed and faulted in by the kernel page by page, again and
again: 3 GB/s instead of 26 where a result is written to a fresh buffer. Four settings of
mallopt(3) keep freed blocks in the heap:

- M_MMAP_MAX 0: blocks of any size come from the heap, none from a mapping of its own;
- M_TRIM_THRESHOLD -1: the top of the heap is never handed back, however large (2 GB at its greatest
  would not be enough: a step of 2.3 GB spent half of its time in page faults);
- M_TOP_PAD 64 MB: the heap grows in few large steps;
- M_ARENA_MAX 1: all threads share that heap. The heaps of other arenas are too small for large
  blocks, and each would keep its own.

Without the last one nothing is won: relative to glibc's defaults, steps took 1.04 (LSTM) and 0.99
(ResNet-20) of the time, and with all four 0.85 and 0.85.

The price: a process stays as large as it has ever been, and the threads of very short steps wait
for that heap (an MLP took 1.07 to 1.14 of the time). JAXDL_MALLOC=default turns it off.
`benchmarks/train.py` shows steps with and without.
"""

import ctypes
import os

ENVIRONMENT = "JAXDL_MALLOC"
# Of <malloc.h>: parameter and value.
SETTINGS = ((-4, 0), (-1, -1), (-2, 64 << 20), (-8, 1))


def keep_memory() -> bool:
    """Applies the settings, best before jax is imported; whether they hold now.

    False where the C library is not glibc, or where JAXDL_MALLOC=default is set. An allocator that
    was preloaded (jemalloc, tcmalloc) ignores them, and needs none.
    """
    if os.environ.get(ENVIRONMENT) == "default":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all(libc.mallopt(name, value) == 1 for name, value in SETTINGS)


class _Heap(ctypes.Structure):
    """mallinfo2 of <malloc.h>, from glibc 2.33 on."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


def kept() -> int:
    """Bytes that the process holds and does not use: the next buffers are made of them. 0 where
    that is not known."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Heap
    return libc.mallinfo2().fordblks

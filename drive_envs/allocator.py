"""What the C library does with memory that is given back: keep it, rather than return it to Linux.

Tensors of a few megabytes come and go in every step. Each time glibc maps such a block anew, the
kernel clears every page of it before it is written once; in the warp that is half of the time.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc takes no more
KEPT = 2**31 - 1  # bytes free at the end of the heap before any is returned


def keep_freed_memory() -> bool:
    """Tell this process's allocator to reuse large blocks; False where it is not glibc's."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    done = [
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD),
        libc.mallopt(M_TRIM_THRESHOLD, KEPT),
    ]
    return all(done)

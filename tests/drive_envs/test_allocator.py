import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from drive_envs.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
torch.empty(4_000_000).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(4_000_000).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_large_blocks_are_reused():
    """Blocks of 16 MB: each page that the kernel hands out anew is a fault."""
    faults = {}
    for how in ("keep", "return"):
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 0.1 * faults["return"]

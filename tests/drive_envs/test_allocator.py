import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from drive_envs.allocator import keep_freed_memory
from drive_envs.camera import wide
from drive_envs.reprojection import reproject
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
camera = wide(256, 128)
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (16, 1, 3, 128, 256), generator=generator, dtype=torch.uint8)
depths = 2 + 20 * torch.rand(16, 1, 128, 256, generator=generator)
moved = torch.eye(4).repeat(16, 1, 1, 1)
moved[..., 0, 3] = 0.5
def warp():
    for _ in range(10):
        reproject(images, depths, moved, camera)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
warp()
before = warp()
print(warp() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_the_warp_reuses_its_memory():
    """Every page that the kernel hands out anew, and clears, is a fault."""
    faults = {}
    for how in ("keep", "return"):
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 0.1 * faults["return"], faults

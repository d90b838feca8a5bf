import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

PARENT = """
import subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import getpid
from cluster.child_processes import end_with_parent, interrupt_with_parent

if __name__ == "__main__":
    if sys.argv[1] == "pool":
        pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
        print(pool.submit(getpid).result(), flush=True)
    else:
        sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
        print(subprocess.Popen(sleeping, preexec_fn=interrupt_with_parent).pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["pool", "other"])
def test_a_process_ends_with_its_parent_however_that_ends(kind, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script, kind], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        os.kill(parent.pid, signal.SIGKILL)
    for _ in range(100):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"{child} outlived its parent")

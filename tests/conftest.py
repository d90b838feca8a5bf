"""What tests of several rooms share."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# What a local cluster asks for by default. It is read as Ray is imported, so no test may be before.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Of all processes of tests: two that find none in the home would each write one of their own.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Ray's workers yield to all others, by default: beside another process of tests an actor took more
# than 30 s to be started, here 17.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_xdist_auto_num_workers(config):
    """How many processes `-n auto`, our default, means: two for all tests, none for chosen ones.

    Not one for each core: each has a Ray and models of its own, and memory would run out.
    """
    is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_chosen = config.option.keyword or config.option.markexpr != "not long"
    return min(2, len(os.sched_getaffinity(0))) if is_all and not is_chosen else 0


def load(name):
    """Import a test helper that lies beside the tests (importlib mode has no packages)."""
    path = Path(__file__).parent / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic():
    """The module that makes recordings without a simulator: `tests/drive_envs/synthetic.py`."""
    return load("drive_envs/synthetic.py")


@pytest.fixture(scope="session")
def synthetic_segment(synthetic):
    """A segment of 100 frames, 64 x 128, of a gentle curve on a textured plane, with depth."""
    return synthetic.make_segment()


HEAD = """
import sys
import ray
from drive_learner.local_cluster import local_cluster
with local_cluster(num_cpus=8, object_store_mb=1000):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def ray_head():
    """The address of a Ray cluster that is up until the last test: to start one takes seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        yield head.stdout.readline().strip()
        # The end of its input is what it waits for.


@pytest.fixture
def shared_ray(ray_head, monkeypatch):
    """Have the jobs of a test connect to the cluster that is up, where they would start one."""
    from drive_learner.local_cluster import ALONE

    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    monkeypatch.setenv(ALONE, "0")


@pytest.fixture
def nodes():
    """Return a Ray cluster without any nodes yet; all that are started are ended."""
    folder = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))
    made = load("cluster/nodes.py").Nodes(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def real():
    """The module that writes drives in the layouts of real ones: `tests/drive_envs/real.py`."""
    return load("drive_envs/real.py")

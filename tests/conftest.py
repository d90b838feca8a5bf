"""What tests of several rooms share."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


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

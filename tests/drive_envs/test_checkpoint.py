import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from drive_envs.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


def a_checkpoint(step):
    return Checkpoint(
        step=step,
        tensors={"policy": {"weight": torch.full((3, 2), float(step))}, "raw": {}},
        state={"counts": {"learnt": 3}, "generator": 2**127 + 1},
        run="name: test\n",
    )


def test_round_trip(tmp_path):
    place = write_checkpoint(tmp_path, a_checkpoint(7))
    assert place.name == "step_000007"
    read = read_checkpoint(place)
    assert (read.step, read.state, read.run) == (7, a_checkpoint(7).state, "name: test\n")
    torch.testing.assert_close(read.tensors["policy"]["weight"], torch.full((3, 2), 7.0))


def test_keeps_the_newest_and_rewrites_one(tmp_path):
    for step in (1, 2, 10, 10):
        write_checkpoint(tmp_path, a_checkpoint(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000002", "step_000010"]


@pytest.mark.parametrize("name", ["policy.safetensors", "state.json", "run.yaml"])
@pytest.mark.parametrize("fault", ["cut", "flip", "gone"])
def test_a_torn_checkpoint_is_passed_over_by_name(tmp_path, name, fault, caplog):
    write_checkpoint(tmp_path, a_checkpoint(1))
    torn = write_checkpoint(tmp_path, a_checkpoint(2)) / name
    content = torn.read_bytes()
    torn.unlink()
    if fault == "cut":
        torn.write_bytes(content[: len(content) // 2])
    elif fault == "flip":
        torn.write_bytes(b"\xff" + content[1:])
    with pytest.raises(CheckpointError, match=f"step_000002/{name}"):
        read_checkpoint(torn.parent)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert name in caplog.text


def test_a_pickle_with_the_right_digest_is_not_opened(tmp_path):
    place = write_checkpoint(tmp_path, a_checkpoint(7))
    planted = tmp_path / "planted"
    bomb = pickle.dumps(Bomb(planted))
    name = next(place.glob("*.safetensors")).name
    (place / name).write_bytes(bomb)
    state = json.loads((place / "state.json").read_text())
    state["sha256"][name] = hashlib.sha256(bomb).hexdigest()
    (place / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="no safetensors file, and nothing else is opened"):
        read_checkpoint(place)
    assert not planted.exists()
    pickle.loads(bomb)  # it would have gone off
    assert planted.exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_full_disk_is_named_and_leaves_what_was_whole(tmp_path):
    place = write_checkpoint(tmp_path, a_checkpoint(7))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match=r"step_000008\.writing"):
            write_checkpoint(tmp_path, a_checkpoint(8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [place]
    assert read_checkpoint(place).step == 7


def test_the_newest_is_the_one_of_most_steps_whatever_the_clocks_say(tmp_path):
    for step, hours in ((8, 0), (9, -30), (10, 5)):
        place = write_checkpoint(tmp_path, a_checkpoint(step))
        then = time.time() + 3600 * hours
        os.utime(place, (then, then))
    os.utime(place, (0, 0))
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 10


def test_none_without_any(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None


WRITE_FOREVER = """
import sys, pathlib, torch
from drive_envs.checkpoint import Checkpoint, write_checkpoint
for step in range(1, 10**6):
    tensors = {"policy": {"weight": torch.full((500, 500), float(step))}}
    checkpoint = Checkpoint(step=step, tensors=tensors, state={}, run="")
    write_checkpoint(pathlib.Path(sys.argv[1]), checkpoint)
"""


@pytest.mark.slow
def test_what_a_killed_removal_left_is_not_read_and_goes(tmp_path):
    torn = tmp_path / "step_000001.removing"
    torn.mkdir()
    assert checkpoints(tmp_path) == []
    write_checkpoint(tmp_path, a_checkpoint(2))
    assert [place.name for place in tmp_path.iterdir()] == ["step_000002"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_one(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path)])
    while not checkpoints(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for place in checkpoints(tmp_path):
        read = read_checkpoint(place)
        assert (read.tensors["policy"]["weight"] == read.step).all()

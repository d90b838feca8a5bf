"""What goes wrong outside is said in one line that names the thing and the mend."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.main import main
from drive_envs import metadrive_assets
from drive_envs.segments import open_dataset, write_segments


@pytest.fixture
def train(recordings, tiny, tmp_path, monkeypatch, capfd):
    """Run `drive train-policy`, tiny, in an empty directory; return exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides):
        words = (f"data={recordings}", "num_steps=1", *tiny, *overrides)
        code = main(["train-policy", *words])
        return code, capfd.readouterr().err

    return run


def sentence(result):
    """Check that an error was for the user, and return its line."""
    code, err = result
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("drive: ")]
    assert len(lines) == 1
    assert lines[0] == err.splitlines()[-1]
    return lines[0]


OFF_POLICY = ("mode=off_policy", "loss.policy_gradient=0", "loss.value=0")


def test_recordings_that_do_not_exist(train):
    said = sentence(train("data=nowhere.parquet", *OFF_POLICY))
    assert "nowhere.parquet: no such file or folder; make recordings with `drive record`" in said


def test_recordings_that_are_no_parquet(train, tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing of it")
    said = sentence(train("data=broken.parquet", *OFF_POLICY))
    assert "broken.parquet: no segment of split 'train' to read" in said
    assert "damaged file" in said


def test_recordings_that_are_damaged_inside(train, recordings, tmp_path):
    damaged = tmp_path / "damaged.parquet"
    content = bytearray(recordings.read_bytes())
    for at in range(100, len(content) // 2 * 3 // 2, 50):
        content[at] ^= 0xFF
    damaged.write_bytes(content)
    assert "damaged.parquet" in sentence(train("data=damaged.parquet", *OFF_POLICY))


def test_a_key_that_does_not_exist(train):
    said = sentence(train("optimizer.learning_rat=1"))
    assert said == (
        "drive: command line: unknown key 'optimizer.learning_rat'; did you mean 'learning_rate'?"
    )


def test_a_key_that_does_not_exist_in_a_file(train, tmp_path, capfd):
    (tmp_path / "run.yaml").write_text("optimizer:\n  learning_rat: 1\n")
    assert main(["train-policy", "run.yaml"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("drive: run.yaml: unknown key 'optimizer.learning_rat'; did you mean")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("env.width=64",), "make width and height equal"),
        (("policy.width=40", "env.width=40", "world.width=40"), "multiples of 16, got 40 x 16"),
        (
            ("policy.height=32", "env.height=32", "world.height=32"),
            "images 32 wide and 32 high do not have the camera's aspect ratio 256:128: choose a "
            "size such as 256 x 128 or 128 x 64",
        ),
    ],
)
def test_images_of_a_wrong_size(train, overrides, words):
    assert words in sentence(train(*overrides))


# What only the actors notice comes through Ray, in a process of its own as in life.


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_recordings_without_depth(recordings, tiny, tmp_path):
    flat = [
        replace(segment, depths={camera: [None] * len(segment) for camera in segment.cameras})
        for segment in open_dataset(recordings)
    ]
    write_segments(tmp_path / "flat.parquet", flat)
    said = sentence(drive(tmp_path, "train-policy", "data=flat.parquet", *tiny))
    assert "flat.parquet: segment '" in said
    assert "has no depth of camera 'narrow'; record or import it with depth" in said


def test_no_assets(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadrive_assets, "assets_folder", lambda: tmp_path / "assets")
    for words in (("evaluate-policy", "policy=straight"), ("record", "path=x.parquet")):
        said = sentence((main(words), capfd.readouterr().err))
        assert f"assets are missing at {tmp_path / 'assets'}: run cluster/setup.sh" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("evaluate-policy", "policy=straight", "num_processes=1"),
        ("record", "path=x.parquet", "num_segments=1", "num_processes=1"),
    ],
)
def test_no_opengl(tmp_path, words):
    (tmp_path / "libEGL.so.1").write_text("not a library")
    said = sentence(drive(tmp_path, *words, LD_LIBRARY_PATH=str(tmp_path)))
    assert said.startswith("drive: no OpenGL on this machine")
    assert "cluster/setup.sh" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate-policy", "policy=nowhere"), "nowhere: no policy there; policy=PATH is"),
        (("evaluate-policy", "policy=straight", "scenarios=no.yaml"), "no.yaml"),
        (("evaluate-policy", "policy=straight", "video=x"), "video=x: no such scenario"),
        (("record", "path=x.csv"), "path must end in .parquet, got x.csv"),
    ],
)
def test_what_a_job_cannot_find_or_use(tmp_path, monkeypatch, capfd, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in sentence((main(words), capfd.readouterr().err))


def drive(folder, *words, **environment):
    """Run the command in a process; return exit code and stderr."""
    script = "import sys; from cluster.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr

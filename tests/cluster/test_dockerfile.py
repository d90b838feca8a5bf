"""The image: what can be told of it without building it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.jobs import OURS

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)


def instructions():
    """Return (keyword, arguments) of each instruction, comments and line ends taken out."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not re.match(r"\s*(#|$)", line)
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(re.split(r"\s+", line, maxsplit=1)) for line in joined.splitlines()]


def the(keyword):
    return [arguments for name, arguments in instructions() if name == keyword]


def test_the_base_is_named_to_the_patch_and_can_be_pinned_to_the_byte():
    assert the("FROM") == ["${BASE}"]
    base = next(argument for argument in the("ARG") if argument.startswith("BASE="))
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)


def test_everything_of_ours_is_done_by_a_user_who_is_not_root():
    names = [name for name, _ in instructions()]
    assert the("USER") == ["1000"]
    after = instructions()[names.index("USER") :]
    assert [name for name, _ in after if name in ("COPY", "RUN")] == ["COPY", "RUN"]
    assert the("COPY") == ["--chown=1000:1000 . ."]
    before = [
        arguments for name, arguments in instructions()[: names.index("USER")] if name == "RUN"
    ]
    assert any("useradd --uid 1000 " in command for command in before)


def test_packages_come_from_the_lock_and_libraries_are_those_that_set_up_looks_for():
    text = DOCKERFILE.read_text()
    *_, command = the("RUN")
    assert command.endswith('cluster/setup.sh "--${TORCH}"')
    assert not re.search(r"pip3? install|uv (pip|sync)|curl|git clone", text)
    assert not the("ADD")
    setup = (ROOT / "cluster" / "setup.sh").read_text()
    wanted = set(re.findall(r"lib\w+[\w.-]*\.so\.\d+ (\S+?)\"?$", setup, re.MULTILINE))
    assert len(wanted) == 3
    [apt] = [command for command in the("RUN") if "apt-get install" in command]
    assert wanted | {"wget"} <= set(apt.split())


def test_no_secret_is_built_in():
    told = " ".join(the("ARG") + the("ENV"))
    assert "RAY_AUTH_MODE=token" in told
    assert not re.search("AUTH_TOKEN|SECRET|PASSWORD|KEY=", told)


def test_only_what_it_needs_goes_into_the_image():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    first, *others = [line for line in lines if line and not line.startswith("#")]
    assert first == "*"
    let_in = {line[1:] for line in others if line.startswith("!")}
    assert let_in == {*OURS, "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in let_in)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_against_it():
    assert HADOLINT is not None
    found = subprocess.run(
        [HADOLINT, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.returncode) == ("", 0)

"""How a run stands, as told by its output directory, which is the only thing that is looked at.

What a job leaves there says it (`output`, `heartbeat`, checkpoints). Directories may be torn, or
foreign, or from before there were signs of life: what cannot be read is said, and what is not known
is None.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.heartbeat import PROGRESS, is_beating
from cluster.jobs import JOBS
from drive_envs.checkpoint import NAME, checkpoints

State = Literal["running", "done", "failed", "interrupted", "killed", "elsewhere", "unknown"]
DEPTH = 4  # of folders that are searched
# What jobs leave in theirs.
NOT_RUNS = {"checkpoints", "tensorboard", "videos", "ray_train", "tune"}


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """The newest checkpoint: its gradient step, and how long ago it was written in s."""

    step: int
    age: float


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run.

    state: `killed` is a process that ended without a word, `elsewhere` one of another machine that
    cannot be seen from here. work: what is counted, `done` of `total`, `per_second`, with
    `seconds_left` and a `note` of the last figures. silent: s since the last sign of life, which
    comes only when work goes on. figures: of `result.json`. problem: what could not be read.
    """

    directory: Path
    job: str
    state: State
    work: Mapping[str, Any] | None = None
    silent: float | None = None
    checkpoint: SavedStep | None = None
    figures: Mapping[str, Any] | None = None
    problem: str | None = None


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the folder and those below that a job has made, in order of their names."""
    if (folder / "run.yaml").exists() or (folder / "result.json").exists():
        yield folder
    if depth:
        for path in sorted(folder.iterdir()):
            is_ours = path.name not in NOT_RUNS and not NAME.fullmatch(path.name)
            is_folder = path.is_dir() and not path.is_symlink()
            if is_ours and is_folder and os.access(path, os.R_OK | os.X_OK):
                yield from find_runs(path, depth - 1)


def run_state(directory: Path) -> RunState:
    """Read one directory; nothing of it is changed."""
    problems: list[str] = []
    beat = read_json(directory / PROGRESS, problems)
    result = read_json(directory / "result.json", problems)
    job = job_of(directory, problems) or result.get("job") or beat.get("job") or "unknown"
    silent = beat.get("updated") or modified(directory / "log.txt")
    return RunState(
        directory=directory,
        job=str(job),
        state=state_of(directory, beat, result),
        work=beat.get("work"),
        silent=None if silent is None else age(silent),
        checkpoint=newest_checkpoint(directory / "checkpoints"),
        figures=result.get("figures"),
        problem="; ".join(problems) or None,
    )


def state_of(directory: Path, beat: Mapping[str, Any], result: Mapping[str, Any]) -> State:
    """Conclude how a run stands from its lock, its last sign of life and its result."""
    if is_beating(directory):
        return "running"
    if beat:
        ended = beat.get("ended")
        if ended in ("done", "failed", "interrupted"):
            return ended
        return "killed" if beat.get("host") == socket.gethostname() else "elsewhere"
    return "done" if result else "unknown"


def read_json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """Read a file of ours; empty when there is none, or when it is damaged, which is said."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is damaged: {error}")
        return {}
    if not isinstance(content, Mapping):
        problems.append(f"{path.name} is not of a job")
        return {}
    return content


def job_of(directory: Path, problems: list[str]) -> str | None:
    """Return the job that the first line of `run.yaml` names."""
    try:
        with (directory / "run.yaml").open() as file:
            words = file.readline().split()
    except (OSError, ValueError) as error:
        problems.append(f"run.yaml cannot be read: {error}")
        return None
    if len(words) == 3 and words[:2] == ["#", "drive"] and words[2] in JOBS:
        return words[2]
    problems.append("run.yaml does not say of which job it is")
    return None


def newest_checkpoint(folder: Path) -> SavedStep | None:
    """Look for the newest checkpoint, whole or not, without reading it."""
    found = checkpoints(folder)
    when = modified(found[-1]) if found else None
    if when is None:
        return None
    step = int(found[-1].name.removeprefix("step_"))
    return SavedStep(step=step, age=age(when))


def age(when: float) -> float:
    """Return how long ago a Unix time was, in s."""
    return round(max(0.0, time.time() - when), 1)


def modified(path: Path) -> float | None:
    """Return when a file was last written, as a Unix time; None when it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None

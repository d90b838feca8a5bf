"""A system of `drive bench peers` as the bench holds it: a process, its answers, its memory."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[1]
PATIENCE = 600.0  # seconds for an answer
DEADLINE = 30.0  # seconds to end by itself


class PeerError(RuntimeError):
    """A system that did not answer."""


class PeerProcess:
    """A process that is asked for one thing after another; `log` gets what it says meanwhile."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        answers, theirs = os.pipe()
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [*command, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                cwd=CODE,
                start_new_session=True,  # a Ctrl-C is the bench's to handle
            )
        os.close(theirs)
        self._answers = os.fdopen(answers)

    def ask(self, what: str, given: Any = None) -> dict[str, float]:
        """Return the answer; PeerError with the end of its log when there is none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({what: given}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        ready, _, _ = select.select([self._answers], [], [], PATIENCE)
        if not ready or not (line := self._answers.readline()):
            did = "ended" if ready else f"was silent for {PATIENCE:g} s"
            said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise PeerError(
                f"{self.name} {did} when asked to {what}, see {self.log}: {' | '.join(said)}"
            )
        return json.loads(line)

    def memory_bytes(self) -> int:
        """Return what it and all its descendants have in memory, shared pages counted once."""
        return sum(proportional_bytes(each) for each in descendants(self._process.pid))

    def cpu_seconds(self) -> float:
        """Return the processor time that it and its descendants have used so far."""
        return sum(used_seconds(each) for each in descendants(self._process.pid))

    def end(self) -> None:
        """End it, and what it has left behind."""
        assert self._process.stdin is not None
        pids = descendants(self._process.pid)
        try:
            self._process.stdin.close()
            self._process.wait(DEADLINE)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._answers.close()
        for pid in pids[1:]:
            if is_orphan_of(pid, self._process.pid):
                os.kill(pid, signal.SIGKILL)


def ours_command(system: str) -> list[str]:
    """Return how a system that runs in our own environment is started."""
    return [sys.executable, "-P", "-m", "cluster.peer_process", system]


def sample_factory_command(python: Path) -> list[str]:
    """Return how Sample Factory is started."""
    return [str(python), str(CODE / "cluster" / "peer_sample_factory.py"), str(CODE)]


def descendants(pid: int) -> list[int]:
    """Return a process and all that came from it, as far as their parents live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (parent := parent_of(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def parent_of(pid: int) -> int | None:
    """Return the parent of a process, None when it is gone."""
    try:
        # the name, in brackets, may hold anything
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def used_seconds(pid: int) -> float:
    """Return the processor time of a process, in it and in the kernel; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def session_of(pid: int) -> int | None:
    """Return the session of a process, None when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def is_orphan_of(pid: int, session: int) -> bool:
    """Tell whether a process of that session has outlived it."""
    return session_of(pid) == session


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, pages shared by n counted 1/n; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0

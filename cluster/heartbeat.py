"""Signs of life of a job, in its output directory, for `drive status`.

`progress.json` says which process does the job, since when, how far it has come and how it ended.
That the process still lives is not concluded from it: the process holds a lock on the file `lock`,
which the system lets go when the process ends, however it ends. Where machines share the directory
and not its locks, the process of another machine cannot be told from a dead one.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.output import write_text
from cluster.progress import LISTENERS, Meter

log = logging.getLogger(__name__)

PROGRESS, LOCK = "progress.json", "lock"
SECONDS_BETWEEN_BEATS = 1.0


@contextmanager
def beating(directory: Path, job: str, command: Sequence[str]) -> Iterator[None]:
    """Give signs of life in a directory while the block does a job there."""
    heart = Heart(directory, job, command)
    ended = "failed"
    with (directory / LOCK).open("a") as file:
        # Shared: a second `serve-world-model` of the same run speaks to the first. What the job
        # starts does not hold it: Python's files are closed in other programs.
        fcntl.flock(file, fcntl.LOCK_SH)
        heart.beat()
        LISTENERS.append(heart.listen)
        try:
            yield
            ended = "done"
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            LISTENERS.remove(heart.listen)
            heart.beat(ended=ended)


def is_beating(directory: Path) -> bool:
    """Tell whether a process does a job in this directory. OSError when it may not be looked at."""
    try:
        with (directory / LOCK).open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class Heart:
    """Writes `progress.json`: at once when work begins or is done, else now and then."""

    def __init__(self, directory: Path, job: str, command: Sequence[str]) -> None:
        self._path = directory / PROGRESS
        self._known: dict[str, Any] = {
            "job": job,
            "command": ["drive", *command],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "began": time.time(),
        }
        self._meter: Meter | None = None
        self._next = 0.0
        self._lock = threading.Lock()  # some meters are moved by threads

    def listen(self, meter: Meter) -> None:
        """Take notice of a meter that has moved."""
        is_news = meter is not self._meter or meter.done == meter.total
        self._meter = meter
        if is_news or time.monotonic() >= self._next:
            self.beat()

    def beat(self, ended: str | None = None) -> None:
        """Write what is known; ended: how, if it has."""
        with self._lock:
            self._next = time.monotonic() + SECONDS_BETWEEN_BEATS
            beat = self._known | {"updated": time.time(), "ended": ended}
            if self._meter is not None:
                beat["work"] = describe(self._meter)
            try:
                write_text(self._path, json.dumps(beat, indent=1) + "\n")
            except OSError as error:  # the job is worth more than its signs of life
                log.warning("no sign of life could be written: %s", error)


def describe(meter: Meter) -> dict[str, Any]:
    """Say how far work has come."""
    return {
        "what": meter.description,
        "done": meter.done,
        "total": meter.total,
        "per_second": meter.rate,
        "seconds_left": meter.seconds_left,
        "note": meter.note,
    }

"""How far long work has come, on stderr: a bar in a terminal, a plain line now and then elsewhere.

Elsewhere is a pipe, a log file, a CI job: there a bar would be thousands of lines, and silence
would look like a hang. Who else wants to know how far it has come is called too (`LISTENERS`). It
does not know what the work is.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0

CONSOLE = Console(stderr=True)

LISTENERS: "list[Callable[[Meter], None]]" = []
"""Called with every meter that is made or has moved, besides what shows it."""


class Meter:
    """Counts work done and shows it. Made by `progress`."""

    def __init__(
        self, show: Callable[["Meter"], None], description: str, total: int | None, done: int
    ) -> None:
        self.description = description
        self.total = total
        self.done = self.before = done
        self.note = ""
        self.started = time.monotonic()
        self._show = show

    def advance(self, num: int = 1, note: str | None = None) -> None:
        """Count `num` more items as done; `note` is shown beside them until the next one."""
        self.update(self.done + num, note)

    def update(self, done: int, note: str | None = None) -> None:
        """Say that `done` items are done in all."""
        self.done = done
        self.note = self.note if note is None else note
        self._show(self)
        self.tell()

    def tell(self) -> None:
        """Call the listeners."""
        for listen in LISTENERS:
            listen(self)

    @property
    def seconds(self) -> float:
        """Time since the meter was made."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Items a second."""
        seconds = self.seconds
        return (self.done - self.before) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest would take at this rate; None where that is not known."""
        rate = self.rate
        if not self.total or rate <= 0:
            return None
        return (self.total - self.done) / rate

    def __str__(self) -> str:
        left = self.seconds_left
        parts = [f"{self.done}/{self.total}" if self.total else str(self.done)]
        parts += [f"{self.rate:.3g}/s", f"{clock(self.seconds)} so far"]
        if left is not None and left > 0:
            parts.append(f"{clock(left)} left")
        return f"{self.description}: {', '.join([*parts, self.note] if self.note else parts)}"


@contextmanager
def progress(description: str, total: int | None = None, *, done: int = 0) -> Iterator[Meter]:
    """Show progress while the block runs; `total` is the number of items if it is known.

    `done` of them were done before, by a run that is resumed: the rate leaves them out.
    """
    if CONSOLE.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=CONSOLE, transient=True) as bars:
            task = bars.add_task(description, total=total, completed=done, note="")

            def show(meter: Meter) -> None:
                bars.update(task, completed=meter.done, note=meter.note)

            meter = Meter(show, description, total, done)
            meter.tell()
            yield meter
    else:
        next_line = time.monotonic() + SECONDS_BETWEEN_LINES

        def log(meter: Meter) -> None:
            nonlocal next_line
            if time.monotonic() >= next_line and meter.done != meter.total:
                next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                logger.info(str(meter))

        meter = Meter(log, description, total, done)
        meter.tell()
        yield meter
    logger.info(str(meter))


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show how many are done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total) as meter:
        for item in items:
            yield item
            meter.advance()


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))

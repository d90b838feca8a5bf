"""Many small jobs over a few processes, each with a simulator of its own that may die.

A process that dies or does not answer in time is replaced and its job given to another one, once:
the second time it counts as failed, with the cause. An error that a job or the start of a process
raises itself is a mistake of its input or of ours and ends the work. It does not know what the jobs
are.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

logger = logging.getLogger(__name__)

DIED = (RayActorError, WorkerCrashedError, OutOfMemoryError)
MAX_ATTEMPTS = 2

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What became of an item whose process died at every attempt."""

    cause: str


@dataclass(frozen=True, kw_only=True)
class _Running(Generic[Item]):
    item: Item
    attempt: int
    process: Any
    deadline: float


def work(
    items: Sequence[Item],
    start: Callable[[], Any],
    submit: Callable[[Any, Item], Any],
    *,
    num_processes: int,
    timeout: float,
) -> Iterator[tuple[Item, Any]]:
    """Yield every item with its result, or with `Lost`, in the order in which they are done.

    Args:
        items: what is to be done, begun in this order.
        start: makes a process, a handle of a Ray actor.
        submit: gives an item to a process and returns the reference of its result.
        num_processes: side by side, at most; those that the cluster has no room for come later.
        timeout: seconds that one item may take.
    """
    waiting = deque((item, 1) for item in items)
    starting: dict[Any, Any] = {}  # what answers once a process is up, and the process
    idle: list[Any] = []
    running: dict[Any, _Running[Item]] = {}
    num_failed_starts, begin = 0, time.monotonic()
    try:
        while waiting or running:
            while waiting and idle:
                item, attempt = waiting.popleft()
                process, deadline = idle.pop(), time.monotonic() + timeout
                running[submit(process, item)] = _Running(
                    item=item, attempt=attempt, process=process, deadline=deadline
                )
            while len(starting) < min(len(waiting), num_processes - len(running)):
                process = start()
                starting[process.__ray_ready__.remote()] = process
                begin = time.monotonic()
            ready, _ = ray.wait([*running, *starting], num_returns=1, timeout=1.0)
            for reference in [each for each in ready if each in starting]:
                process = starting.pop(reference)
                try:
                    ray.get(reference)
                    idle.append(process)
                    num_failed_starts = 0
                except DIED as error:
                    num_failed_starts += 1
                    is_refused = isinstance(error, RayActorError) and error.actor_init_failed
                    if is_refused or num_failed_starts > MAX_ATTEMPTS * num_processes:
                        raise
                    logger.warning("a process died as it started: %s", _first_line(error))
            if not running and not idle and time.monotonic() > begin + timeout:
                logger.warning(
                    "no process is up after %g s: each waits for a free CPU of the Ray cluster, "
                    "or for its start",
                    timeout,
                )
                begin = time.monotonic()
            late = [r for r, job in running.items() if time.monotonic() > job.deadline]
            for reference in dict.fromkeys([*(r for r in ready if r in running), *late]):
                job = running.pop(reference)
                if reference in ready:
                    try:
                        result = ray.get(reference)
                        idle.append(job.process)
                        yield job.item, result
                        continue
                    except DIED as error:
                        cause = f"its process died ({_first_line(error)})"
                else:
                    cause = f"it was not done in {timeout:g} s"
                ray.kill(job.process)
                logger.warning("%s: attempt %d: %s", job.item, job.attempt, cause)
                if job.attempt < MAX_ATTEMPTS:
                    waiting.append((job.item, job.attempt + 1))
                else:
                    yield job.item, Lost(cause=cause)
    finally:
        for process in [*idle, *starting.values(), *(job.process for job in running.values())]:
            ray.kill(process)


def _first_line(error: BaseException) -> str:
    """Return the first sentence of one of Ray's long messages."""
    return str(error).strip().splitlines()[0].rstrip(".")

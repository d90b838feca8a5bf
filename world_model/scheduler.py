"""Requests of many drivers, gathered into passes of the engine.

Between two frames sessions come and go: whoever asks is taken into the next pass, which begins as
soon as it is full, every open session is waiting, or the first in it has waited for `max_wait`. One
thread works, so an opening is done between frames too. When there is no room, an opening waits for
others to close, and is refused with an error after `admission_timeout`.

It knows asyncio and the engine, and nothing of Ray.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from drive_envs.protocol import NoRoomError, OpenSession, StepSession, Views
from world_model.engine import OPEN_KINDS, Engine, check_kinds, check_step

LONGEST_SLEEP = 1.0  # s between two looks for drivers that have vanished
LOOK_AGAIN = 0.5  # s, after which a waiting opening tries again, should it have missed a closing


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How long requests wait.

    max_wait: s that a request waits for others to share its pass. admission_timeout: s that an
    opening waits for room. max_openings: that wait; more are refused at once.
    """

    max_wait: float = 0.01
    admission_timeout: float = 30.0
    max_openings: int = 256

    def __post_init__(self) -> None:
        if self.max_wait < 0 or self.admission_timeout < 0 or self.max_openings < 1:
            raise ValueError(
                f"scheduler.max_wait is {self.max_wait} s, admission_timeout "
                f"{self.admission_timeout} s and max_openings {self.max_openings}; times must not "
                "be negative, and one opening at least must be let wait"
            )


@dataclass(eq=False)
class Waiting:
    """A request for a frame, since when it waits, and where its answer goes.

    Each is itself alone: a driver that is impatient asks the same twice.
    """

    request: StepSession
    since: float
    answer: asyncio.Future[Views]


class Scheduler:
    """Answers requests concurrently; made and used within one event loop."""

    def __init__(self, engine: Engine, config: SchedulerConfig) -> None:
        self.engine, self.config = engine, config
        self._waiting: list[Waiting] = []
        self._came = asyncio.Event()
        self._room = asyncio.Condition()
        self._num_openings = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="world-model")
        self._tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self._expire())]

    async def open(self, request: OpenSession) -> Views:
        """Open a session as soon as there is room; see `Engine.open` for errors."""
        check_kinds(request, OpenSession, OPEN_KINDS)
        if self._num_openings >= self.config.max_openings:
            raise NoRoomError(
                f"{self._num_openings} sessions wait to be opened already: drive fewer scenes, "
                "raise engine.capacity or add replicas"
            )
        deadline = time.monotonic() + self.config.admission_timeout
        self._num_openings += 1
        try:
            while True:
                try:
                    return await self._work(self.engine.open, request)
                except NoRoomError:
                    if request.num_scenes > self.engine.config.capacity:
                        raise
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise
                    await self._wait_for_room(min(left, LOOK_AGAIN))
        finally:
            self._num_openings -= 1

    async def step(self, request: StepSession) -> Views:
        """Answer a request in the next pass; see `Engine.step` for errors."""
        check_step(request)
        answer: asyncio.Future[Views] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(request, time.monotonic(), answer))
        self._came.set()
        return await answer

    async def close(self, session: str) -> bool:
        """Close a session between frames; False when there is none."""
        is_closed = await self._work(self.engine.close, session)
        await self._tell_room()
        return is_closed

    async def replace_weights(self, load: Callable[[], Any]) -> None:
        """Go on with the model and tokenizer that `load` returns, from the next frame on."""
        loaded = await asyncio.to_thread(load)
        await self._work(self.engine.replace_weights, *loaded)

    async def stop(self) -> None:
        """Finish the pass under way and end; whoever waits is told so."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        for one in self._waiting:
            if not one.answer.done():
                one.answer.set_exception(ConnectionError("the world model is being stopped"))

    @property
    def is_well(self) -> bool:
        """Whether requests are still being answered."""
        return not any(task.done() for task in self._tasks)

    async def _work(self, function: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *given)

    async def _serve(self) -> None:
        while True:
            if not self._waiting:
                self._came.clear()
                await self._came.wait()
            await self._gather()
            chosen = self._choose()
            if not chosen:
                continue
            begun = time.monotonic()
            try:
                answers = await self._work(self.engine.step, [one.request for one in chosen])
            except Exception as error:  # whatever it is, it is for those who asked to know
                answers = [error] * len(chosen)
            for one, answer in zip(chosen, answers, strict=True):
                if one.answer.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    queue = {"queue": begun - one.since}
                    one.answer.set_result(replace(answer, seconds=answer.seconds | queue))

    async def _gather(self) -> None:
        """Wait until the next pass is worth beginning."""
        deadline = self._waiting[0].since + self.config.max_wait
        while (left := deadline - time.monotonic()) > 0:
            num_scenes = sum(len(one.request.scenes) for one in self._waiting)
            sessions = {one.request.session for one in self._waiting}
            if num_scenes >= self.engine.config.batch_size or sessions >= set(self.engine.sessions):
                return
            self._came.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), left)

    def _choose(self) -> list[Waiting]:
        """Take requests in the order in which they came, one a session, up to a batch."""
        chosen: list[Waiting] = []
        sessions: set[str] = set()
        num_scenes = 0
        for one in [one for one in self._waiting if not one.answer.done()]:
            size = len(one.request.scenes)
            is_full = chosen and num_scenes + size > self.engine.config.batch_size
            if one.request.session in sessions or is_full:
                continue
            chosen.append(one)
            sessions.add(one.request.session)
            num_scenes += size
        self._waiting = [
            one for one in self._waiting if not one.answer.done() and one not in chosen
        ]
        return chosen

    async def _wait_for_room(self, seconds: float) -> None:
        """Wait until something was closed, or for so long."""
        async with self._room:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), seconds)

    async def _tell_room(self) -> None:
        async with self._room:
            self._room.notify_all()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(min(self.engine.config.lease / 4, LONGEST_SLEEP))
            if await self._work(self.engine.expire):
                await self._tell_room()

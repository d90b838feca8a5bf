"""Requests share passes, wait for room, and nobody waits for the dead."""

import asyncio
import threading
from copy import copy

import numpy as np
import pytest

from drive_envs.protocol import BadRequestError, NoRoomError, SessionLostError
from tests.world_model.conftest import opening, step_of
from world_model.scheduler import Scheduler, SchedulerConfig


def with_scheduler(engine, job, **options):
    """Run `job(scheduler)` in an event loop of its own."""

    async def run():
        scheduler = Scheduler(engine, SchedulerConfig(**options))
        try:
            return await asyncio.wait_for(job(scheduler), 60)
        finally:
            await scheduler.stop()

    return asyncio.run(run())


def test_requests_of_several_sessions_share_a_pass(make_engine):
    requests = [opening(name, seed=seed) for seed, name in enumerate("abc")]

    async def job(scheduler):
        await asyncio.gather(*(scheduler.open(request) for request in requests))
        return await asyncio.gather(*(scheduler.step(step_of(r, 1)) for r in requests))

    # As soon as all three are waiting the pass begins, long before the wait is over.
    views = with_scheduler(make_engine(), job, max_wait=30.0)
    assert [one.num_batched for one in views] == [6, 6, 6]
    assert all(one.seconds["queue"] < 20 for one in views)


def test_whoever_is_slow_is_not_waited_for_long(make_engine):
    requests = [opening(name, seed=seed) for seed, name in enumerate("ab")]

    async def job(scheduler):
        await asyncio.gather(*(scheduler.open(request) for request in requests))
        return await scheduler.step(step_of(requests[0], 1))

    views = with_scheduler(make_engine(), job, max_wait=0.05)
    assert views.num_batched == 2
    assert 0.05 <= views.seconds["queue"] < 5


def test_a_batch_is_bounded(make_engine):
    requests = [opening(name, seed=seed) for seed, name in enumerate("abc")]

    async def job(scheduler):
        await asyncio.gather(*(scheduler.open(request) for request in requests))
        return await asyncio.gather(*(scheduler.step(step_of(r, 1)) for r in requests))

    views = with_scheduler(make_engine(batch_size=4), job, max_wait=0.05)
    assert sorted(one.num_batched for one in views) == [2, 4, 4]


def test_an_opening_waits_until_there_is_room(make_engine):
    first, second = opening("a", num_scenes=5), opening("b", num_scenes=5)

    async def job(scheduler):
        await scheduler.open(first)
        waiting = asyncio.create_task(scheduler.open(second))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await scheduler.close("a")
        await waiting
        return list(scheduler.engine.sessions)

    assert with_scheduler(make_engine(), job) == ["b"]


def test_an_opening_that_waited_too_long_is_an_error(make_engine):
    async def job(scheduler):
        await scheduler.open(opening("a", num_scenes=5))
        with pytest.raises(NoRoomError, match="capacity"):
            await scheduler.open(opening("b", num_scenes=5))
        with pytest.raises(NoRoomError, match="capacity"):  # which no waiting would help
            await scheduler.open(opening("c", num_scenes=50))

    with_scheduler(make_engine(), job, admission_timeout=0.1)


def test_too_many_that_wait_are_refused_at_once(make_engine):
    async def job(scheduler):
        await scheduler.open(opening("a", num_scenes=5))
        waiting = asyncio.create_task(scheduler.open(opening("b", num_scenes=5)))
        await asyncio.sleep(0)
        with pytest.raises(NoRoomError, match="1 sessions wait"):
            await scheduler.open(opening("c", num_scenes=5))
        waiting.cancel()

    with_scheduler(make_engine(), job, max_openings=1)


def test_a_client_that_vanished_gives_its_room_to_who_waits(make_engine):
    async def job(scheduler):
        await scheduler.open(opening("dead", num_scenes=5))
        await scheduler.open(opening("b", num_scenes=5))
        return scheduler.engine.counters.expired

    assert with_scheduler(make_engine(lease=0.2), job) == 1


def test_one_who_asks_twice_is_answered_twice(make_engine):
    request = opening("a")

    async def job(scheduler):
        await scheduler.open(request)
        asked = (scheduler.step(step_of(request, 1)) for _ in range(3))
        return await asyncio.gather(*asked), scheduler.engine.counters

    views, counters = with_scheduler(make_engine(), job)
    assert all(one.plan is views[0].plan for one in views)
    assert counters.frames == 2
    assert counters.repeated == 2


def test_an_error_goes_to_who_asked(make_engine):
    good = opening("a")

    async def job(scheduler):
        await scheduler.open(good)
        return await asyncio.gather(
            scheduler.step(step_of(good, 1)),
            scheduler.step(step_of(opening("nobody"), 1)),
            return_exceptions=True,
        )

    views, error = with_scheduler(make_engine(), job)
    assert views.num_batched == 2
    assert isinstance(error, SessionLostError)


def test_one_who_gives_up_is_left_out(make_engine):
    requests = [opening(name, seed=seed) for seed, name in enumerate("ab")]
    is_held = threading.Event()

    async def job(scheduler):
        await asyncio.gather(*(scheduler.open(request) for request in requests))
        blocking = asyncio.create_task(scheduler._work(is_held.wait))
        giving_up = asyncio.create_task(scheduler.step(step_of(requests[0], 1)))
        await asyncio.sleep(0.05)
        giving_up.cancel()
        is_held.set()
        await blocking
        return await scheduler.step(step_of(requests[1], 1))

    views = with_scheduler(make_engine(), job, max_wait=0.01)
    assert np.isfinite(views.plan).all()


def test_a_pass_that_fails_fails_for_those_in_it_alone(make_engine, monkeypatch):
    request, engine = opening("a"), make_engine()
    works = engine.step

    async def job(scheduler):
        await scheduler.open(request)
        monkeypatch.setattr(engine, "step", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await scheduler.step(step_of(request, 1))
        monkeypatch.setattr(engine, "step", works)
        assert scheduler.is_well
        return await scheduler.step(step_of(request, 1))

    assert with_scheduler(engine, job).num_batched == 2


def altered(request, **fields):
    """Change a message as nobody who is careful would."""
    request = copy(request)
    for name, value in fields.items():
        object.__setattr__(request, name, value)
    return request


@pytest.mark.parametrize(
    "garbage",
    [
        "garbage",
        None,
        altered(step_of(opening("a"), 1), scenes=np.zeros((1, 2), np.int64)),
        altered(step_of(opening("a"), 1), scenes=[0, 1]),
        altered(step_of(opening("a"), 1), poses=None),
        altered(step_of(opening("a"), 1), seen=3.5),
    ],
)
def test_garbage_is_an_error_and_nothing_more(make_engine, garbage):
    request = opening("a")

    async def job(scheduler):
        await scheduler.open(request)
        with pytest.raises(BadRequestError):
            await scheduler.open(garbage)
        with pytest.raises(BadRequestError):
            await scheduler.step(garbage)
        assert scheduler.is_well
        return await scheduler.step(step_of(request, 1))

    assert with_scheduler(make_engine(), job).num_batched == 2

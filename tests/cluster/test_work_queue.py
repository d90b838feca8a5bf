import os
import threading
import time
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from cluster.work_queue import Lost, work
from drive_learner.local_cluster import local_cluster


class Worker:
    """Squares numbers; some of them are the death of it, always or only the first time."""

    def __init__(self, folder):
        if not folder.is_dir():
            raise ValueError("no such folder")
        self.folder = folder

    def square(self, number):
        mark = self.folder / str(number)
        is_first = not mark.exists()
        mark.touch()
        if number == 3 or (number == 2 and is_first):
            os._exit(1)
        if number == 5 and is_first:
            time.sleep(60)
        if number == 7:
            raise ValueError("seven is not allowed")
        return number**2


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(num_cpus=2, object_store_mb=100):
        yield


def square(numbers, folder, timeout=30.0, num_processes=2):
    actor: Any = ray.remote(Worker).options(num_cpus=1)
    return dict(
        work(
            numbers,
            lambda: actor.remote(folder),
            lambda process, number: process.square.remote(number),
            num_processes=num_processes,
            timeout=timeout,
        )
    )


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_death_costs_a_second_attempt_and_two_deaths_the_item(tmp_path):
    results = square(range(5), tmp_path)
    lost = results.pop(3)
    assert results == {0: 0, 1: 1, 2: 4, 4: 16}
    assert isinstance(lost, Lost)
    assert "process died" in lost.cause


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_who_does_not_answer_in_time_is_replaced(tmp_path):
    assert square([5, 6], tmp_path, timeout=10.0) == {5: 25, 6: 36}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_work_itself_is_raised(tmp_path):
    with pytest.raises(ValueError, match="seven is not allowed"):
        square([7], tmp_path)
    with pytest.raises(RayActorError, match="no such folder"):
        square([1], tmp_path / "missing")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_processes_that_there_is_no_room_for_keep_nothing_waiting(tmp_path, caplog):
    begin = time.monotonic()
    numbers = range(10, 20)
    assert square(numbers, tmp_path, num_processes=5) == {n: n**2 for n in numbers}
    assert time.monotonic() - begin < 30
    assert "attempt" not in caplog.text
    # Nor does one that is waited for until the others end.
    other: Any = ray.remote(Worker).options(num_cpus=2).remote(tmp_path)
    ray.get(other.__ray_ready__.remote())
    timer = threading.Timer(6, lambda: ray.kill(other))
    timer.start()
    assert square([4], tmp_path, timeout=2.0) == {4: 16}
    timer.join()
    assert "no process is up after 2 s: each waits for a free CPU" in caplog.text
    assert "attempt" not in caplog.text

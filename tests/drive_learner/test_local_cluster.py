import os

import psutil
import pytest
import ray

from drive_learner.local_cluster import ALONE, local_cluster


def family():
    """Return the processes that this one has started."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def listening(pids):
    """Return the addresses at which these processes, and this one, listen."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.net_connections("inet")
        if connection.laddr
        and connection.status == psutil.CONN_LISTEN
        and connection.pid in {*pids, os.getpid()}
    }


@pytest.mark.slow
def test_nobody_outside_this_machine_can_reach_it(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = family()
    with local_cluster(num_cpus=1, object_store_mb=100):
        assert ray.get(ray.remote(lambda: 3).remote()) == 3
        assert listening(family() - before) == {"127.0.0.1"}
        assert os.environ[ALONE] == "0"
    assert ALONE not in os.environ

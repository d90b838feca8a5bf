"""Ray on this machine alone for as long as a job needs it, or the cluster that is there."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ALONE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""Is 0 in the environment of those who use a cluster that listens on 127.0.0.1 alone."""


@contextmanager
def local_cluster(
    *, num_cpus: int | None = None, object_store_mb: int = 2000, dashboard: bool = False
) -> Iterator[None]:
    """Connect to Ray for the block, and leave it whatever happens.

    With RAY_ADDRESS set, that is the cluster and the arguments say nothing. Otherwise one is
    started, bound to 127.0.0.1, with `num_cpus` (default: all cores), and stopped at the end.
    Processes that are to connect to it, too, need the environment of the block.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    is_ours = "RAY_ADDRESS" not in os.environ
    if is_ours:
        options |= {
            "address": "local",
            "num_cpus": num_cpus,
            "object_store_memory": object_store_mb * 1_000_000,
            "include_dashboard": dashboard,
            "_node_ip_address": "127.0.0.1",
        }
    with alone() if is_ours or os.environ.get(ALONE) == "0" else nullcontext():
        ray.init(**options)
        try:
            yield
        finally:
            # Serve would go on speaking to the cluster that is gone, in this process's next one.
            if is_ours and (serve := sys.modules.get("ray.serve")) is not None:
                serve.shutdown()
            ray.shutdown()


@contextmanager
def alone() -> Iterator[None]:
    """Have Ray keep to 127.0.0.1 in the block, here and in processes that are started.

    It takes that address for the machine's name in the network and listens there, unless it is told
    that there are no clusters, as on macOS; a process reads that once, as it imports Ray.
    """
    told, known = os.environ.get(ALONE), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[ALONE], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        if told is None:
            del os.environ[ALONE]
        else:
            os.environ[ALONE] = told

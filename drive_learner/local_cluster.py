"""Ray on this machine alone for as long as a job needs it, or the cluster that is there."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def local_cluster(
    *, num_cpus: int | None = None, object_store_mb: int = 2000, dashboard: bool = False
) -> Iterator[None]:
    """Connect to Ray for the block, and leave it whatever happens.

    With RAY_ADDRESS set, that is the cluster and the arguments say nothing. Otherwise one is
    started, bound to 127.0.0.1, with `num_cpus` (default: all cores), and stopped at the end.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if "RAY_ADDRESS" not in os.environ:
        options |= {
            "address": "local",
            "num_cpus": num_cpus,
            "object_store_memory": object_store_mb * 1_000_000,
            "include_dashboard": dashboard,
            "_node_ip_address": "127.0.0.1",
        }
    ray.init(**options)
    try:
        yield
    finally:
        # Serve would go on speaking to the cluster that is gone, in this process's next one.
        if "address" in options and (serve := sys.modules.get("ray.serve")) is not None:
            serve.shutdown()
        ray.shutdown()

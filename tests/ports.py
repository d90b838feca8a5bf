"""Ports for servers that tests start."""

import itertools
import os
import socket
from contextlib import suppress

# Below those that the system hands out and above those of Ray's workers, for each process of tests
# others, and each once: between the look at a port and its use nobody else takes it.
FIRST = 20_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.cycle(range(FIRST, FIRST + 2_000))


def is_free(port):
    """Tell whether nobody listens there."""
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def free_port():
    """Return a port that nobody listens on."""
    return next(filter(is_free, PORTS))

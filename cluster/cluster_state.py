"""How the Ray cluster stands that RAY_ADDRESS names: nodes, resources in use, actors by state.

It is asked as a driver is, so this machine has to be one of the cluster's, and then its dashboard,
which alone knows of actors. Neither may be there; what is not known is None.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

LIMIT = 10_000  # actors that are listed
SHOWN = ("CPU", "GPU", "memory", "object_store_memory")  # before the user's own resources


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """A node: its address, whether it lives, and what it offers."""

    address: str
    alive: bool
    resources: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """The cluster. used: of every resource, (in use, of how many). actors: by state, by class."""

    address: str
    nodes: list[NodeState]
    used: Mapping[str, tuple[float, float]]
    actors: Mapping[str, Mapping[str, int]] | None


def cluster_state(patience: float) -> ClusterState | str | None:
    """Ask the cluster, at most `patience` seconds each time; return why not when it is not there.

    None when RAY_ADDRESS names no cluster.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    if (why := unreachable(address, patience)) is not None:
        return why
    import ray  # seconds, which a status without a cluster need not spend

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        return f"{address}: {' '.join(str(error).split())}"
    try:
        total, free = ray.cluster_resources(), ray.available_resources()
        return ClusterState(
            address=address,
            nodes=[node_state(node) for node in ray.nodes()],
            used={
                name: (amount - free.get(name, 0.0), amount)
                for name, amount in sorted(total.items(), key=rank)
                if is_telling(name)
            },
            actors=actors_by_state(patience),
        )
    finally:
        ray.shutdown()


def unreachable(address: str, patience: float) -> str | None:
    """Say why nobody answers at HOST:PORT, or None. Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if place.scheme in ("http", "https"):
        return f"RAY_ADDRESS={address} is a dashboard's address: give the head's, HOST:6379"
    if place.hostname is None or place.port is None:
        return None  # `auto`: Ray knows at once
    try:
        with socket.create_connection((place.hostname, place.port), timeout=patience):
            return None
    except OSError as error:
        return f"no Ray cluster answers at {address}: {error}"


def node_state(node: Mapping[str, Any]) -> NodeState:
    """Read one of `ray.nodes()`."""
    resources = {
        name: amount
        for name, amount in sorted(node["Resources"].items(), key=rank)
        if is_telling(name)
    }
    return NodeState(
        address=node["NodeManagerAddress"], alive=bool(node["Alive"]), resources=resources
    )


def rank(resource: tuple[str, float]) -> tuple[int, str]:
    """Order resources: Ray's own as they are known, then the others."""
    name, _ = resource
    return (SHOWN.index(name) if name in SHOWN else len(SHOWN), name)


def is_telling(resource: str) -> bool:
    """Tell whether a resource says something: Ray has one for each node and for each role too."""
    return not resource.startswith("node:") and resource != "accelerator_type"


def actors_by_state(patience: float) -> dict[str, dict[str, int]] | None:
    """Count the actors of each class by their state; None without a dashboard, which knows them."""
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    seconds = max(1, round(patience))
    try:
        actors: list[Any] = list_actors(limit=LIMIT, timeout=seconds, raise_on_missing_output=False)
    except (RayStateApiException, OSError, RuntimeError, ValueError) as error:
        log.info("the dashboard tells nothing of actors: %s", " ".join(str(error).split()))
        return None
    counts: dict[str, Counter[str]] = {}
    for actor in actors:
        counts.setdefault(actor.class_name, Counter())[actor.state] += 1
    return {name: dict(counts[name]) for name in sorted(counts)}

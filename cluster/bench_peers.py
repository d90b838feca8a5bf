"""Our loop beside RLlib's IMPALA and APPO, and Sample Factory where there is one.

All drive the same environment, which sleeps (`drive_envs.sleeping`), with the same network, the
same number of scenes an actor, fragments of one length and minibatches of one size, each fragment
learnt from once. The network is small and reads a twenty-fifth of each image, so that what is
measured is what moves the data. What differs is in the others' favour: our actors send and our
learner encodes 9 frames of context a fragment, theirs none.

Each system is a process with a Ray of its own, and is opened once a point; then they take turns,
each warming up before it is measured, and medians are reported. Where their actors together are
more than `max_open`, one system is opened at a time. The processor time of a learnt step is told
beside the rates: it is what a rate comes to where all cores are busy, and hardly knows what else
they are busy with.

Target: ahead of each at every point (`least_ratio` above 1), at least 3 times RLlib at 200 KB and
0 ms (`rllib_200kb_0ms`), an actor 95 % of its time in steps of 50 ms (`utilisation_50ms`).
"""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cluster.peer import PeerError, PeerProcess, ours_command, sample_factory_command
from cluster.peer_process import policy_config
from cluster.progress import Meter, progress
from cluster.report import Table

log = logging.getLogger(__name__)

OURS, SAMPLE_FACTORY = "ours", "sample_factory"
RLLIB = ("impala", "appo")
SIZES = {
    "1 KB": (16, 16),
    "50 KB": (128, 64),
    "200 KB": (256, 128),
}  # pixels of either image
SHORT = (
    ("1 KB", 0.0, 2),
    ("50 KB", 5.0, 2),
    ("200 KB", 0.0, 2),
    ("200 KB", 50.0, 2),
)

Size = Literal["1 KB", "50 KB", "200 KB"]


@dataclass(frozen=True, kw_only=True)
class PeersBench:
    """What is compared, and how long.

    grid: `short` is four points, `full` is each of sizes, step_ms and actors with each. systems:
    beside ours. sample_factory_python: an interpreter with sample-factory, numpy below 2, torch,
    einops, jaxtyping, safetensors and scipy, null to leave it out. scenes: of an actor. fragment:
    steps. sequences: of a minibatch. seconds: of a measurement, and three gradient steps at least.
    warm_up: seconds before each. num_repeats: measurements of each. max_open: actors at once, of
    all systems.
    rllib_learners, rllib_aggregators, rllib_in_flight: RLlib's processes beside its actors, and
    what each actor is asked for at once.
    """

    grid: Literal["short", "full"] = "short"
    sizes: tuple[Size, ...] = ("1 KB", "50 KB", "200 KB")
    step_ms: tuple[float, ...] = (0.0, 5.0, 50.0)
    actors: tuple[int, ...] = (1, 4, 16, 64)
    systems: tuple[Literal["impala", "appo"], ...] = RLLIB
    sample_factory_python: Path | None = None
    scenes: int = 8
    fragment: int = 30
    sequences: int = 16
    seconds: float = 6.0
    warm_up: float = 3.0
    num_repeats: int = 3
    max_open: int = 16
    rllib_learners: int = 0
    rllib_aggregators: int = 0
    rllib_in_flight: int = 2

    def __post_init__(self) -> None:
        for name in ("scenes", "fragment", "sequences", "num_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"peers.{name} must be 1 or more, got {getattr(self, name)}")
        if not self.sizes or not self.step_ms or min(self.actors, default=0) < 1:
            raise ValueError("peers.sizes, step_ms and actors must each name something to measure")
        if self.sample_factory_python is not None and not self.sample_factory_python.exists():
            raise ValueError(
                f"peers.sample_factory_python: there is no {self.sample_factory_python}; give an "
                "interpreter with sample-factory, numpy below 2, torch, einops, jaxtyping, "
                "safetensors and scipy, or null"
            )

    @property
    def points(self) -> list[tuple[str, float, int]]:
        """Size of an observation, ms of a step, actors."""
        if self.grid == "short":
            return list(SHORT)
        return list(itertools.product(self.sizes, self.step_ms, self.actors))

    @property
    def all_systems(self) -> list[str]:
        """Ours first."""
        others = [SAMPLE_FACTORY] if self.sample_factory_python else []
        return [OURS, *self.systems, *others]


def bench_peers(config: PeersBench, output: Path) -> dict[str, Any]:
    """Measure; return the headlines and a row a point and system. `output` gets `peers.md`."""
    rows: list[dict[str, Any]] = []
    systems = config.all_systems
    total = len(config.points) * len(systems) * config.num_repeats
    with progress("peers", total) as meter:
        for place in config.points:
            point = described(config, *place)
            together = point["actors"] * len(systems) <= config.max_open
            groups = [systems] if together else [[system] for system in systems]
            found = [
                row for group in groups for row in measure(config, point, group, output, meter)
            ]
            rows += judged(found)
            (output / "peers.md").write_text(table(rows))
    return headlines(rows) | {"points": rows}


def described(config: PeersBench, size: str, step_ms: float, actors: int) -> dict[str, Any]:
    """Say to a system's process what a point is."""
    width, height = SIZES[size]
    point = {
        "size": size,
        "step_ms": step_ms,
        "actors": actors,
        "width": width,
        "height": height,
        "bytes": 2 * 3 * width * height,
        "step_seconds": step_ms / 1000,
        "scenes": config.scenes,
        "fragment": config.fragment,
        "sequences": config.sequences,
        "rllib_learners": config.rllib_learners,
        "rllib_aggregators": config.rllib_aggregators,
        "rllib_in_flight": config.rllib_in_flight,
    }
    return point | {"policy": asdict(policy_config(point))}


def measure(
    config: PeersBench, point: dict[str, Any], systems: Sequence[str], output: Path, meter: Meter
) -> list[dict[str, Any]]:
    """Open some systems at a point and let them take turns; return a row for each."""
    with opened(config, point, systems, output) as (peers, told):
        measured: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        for _ in range(config.num_repeats):
            for system, peer in peers.items():
                figures = {}
                try:
                    if system != SAMPLE_FACTORY:  # which warms up in each measurement
                        peer.ask("measure", config.warm_up)
                    used, began = peer.cpu_seconds(), time.monotonic()
                    figures = peer.ask("measure", config.seconds)
                    used, elapsed = peer.cpu_seconds() - used, time.monotonic() - began
                    figures["cpu_per_step"] = used / elapsed / figures["steps_per_second"]
                    figures["memory_bytes"] = peer.memory_bytes()
                    measured[system].append(figures)
                except PeerError as error:
                    log.warning("%s", error)
                rate = figures.get("steps_per_second", float("nan"))
                where = f"{point['size']}, {point['step_ms']:g} ms, {point['actors']} actors"
                meter.advance(note=f"{where}: {system} {rate:.0f} steps/s")
    return [row(point, system, measured[system], told.get(system, {})) for system in systems]


@contextmanager
def opened(
    config: PeersBench, point: dict[str, Any], systems: Sequence[str], output: Path
) -> Iterator[tuple[dict[str, PeerProcess], dict[str, dict[str, float]]]]:
    """Yield the systems' processes, opened at the point, and what each said of itself."""
    peers: dict[str, PeerProcess] = {}
    told: dict[str, dict[str, float]] = {}
    try:
        for system in systems:
            command = ours_command(system)
            if system == SAMPLE_FACTORY:
                assert config.sample_factory_python is not None
                command = sample_factory_command(config.sample_factory_python)
            peer = peers[system] = PeerProcess(system, command, output / f"{system}.log")
            try:
                told[system] = peer.ask("open", point)
            except PeerError as error:
                log.warning("%s", error)
                peers.pop(system).end()
        yield peers, told
    finally:
        for peer in peers.values():
            peer.end()


def row(
    point: dict[str, Any],
    system: str,
    measured: Sequence[dict[str, float]],
    told: dict[str, float],
) -> dict[str, Any]:
    """Return the medians of a system at a point; no figures where it did not run."""
    found: dict[str, Any] = {
        "size": point["size"],
        "step_ms": point["step_ms"],
        "actors": point["actors"],
        "system": system,
        "bytes": point["bytes"],
    }
    if not measured:
        return found
    figures = {name: median(each[name] for each in measured) for name in measured[0]}
    rates = [each["steps_per_second"] for each in measured]
    vector_steps = figures["driven_per_second"] / point["scenes"] / point["actors"]
    return found | {
        "steps_per_second": round(figures["steps_per_second"], 1),
        "spread": [round(min(rates), 1), round(max(rates), 1)],
        "driven_per_second": round(figures["driven_per_second"], 1),
        "dropped_per_second": round(figures["dropped_per_second"], 1),
        "learner_steps_per_second": round(figures["learner_steps_per_second"], 2),
        "mb_per_second": round(figures["steps_per_second"] * point["bytes"] / 1e6, 1),
        "memory_mb": round(figures["memory_bytes"] / 1e6),
        "cpu_ms_per_step": round(1000 * figures["cpu_per_step"], 2),
        "policy_lag": round(figures["policy_lag"], 2),
        "utilisation": round(vector_steps * point["step_seconds"], 3),
        **{name: round(value / 1e6) for name, value in copies(told).items()},
    }


def copies(told: dict[str, float]) -> dict[str, float]:
    """Name the copy bandwidths, in bytes/s, as the rows have them in MB/s."""
    return {
        name.replace("_bytes_", "_mb_"): value
        for name, value in told.items()
        if name.endswith("_bytes_per_second")
    }


def judged(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to the others' rows how many times as fast ours is."""
    ours = next(each.get("steps_per_second") for each in found if each["system"] == OURS)
    return [
        each
        if ours is None or each["system"] == OURS or "steps_per_second" not in each
        else each | {"ratio": round(ours / each["steps_per_second"], 3)}
        for each in found
    ]


def headlines(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the least of each figure that there is a target for, None where there is none."""
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    at_200 = [
        row["ratio"]
        for row in rows
        if "ratio" in row
        and (row["size"], row["step_ms"]) == ("200 KB", 0.0)
        and row["system"] in RLLIB
    ]
    at_50 = [
        row["utilisation"]
        for row in rows
        if row["system"] == OURS and row["step_ms"] == 50.0 and "utilisation" in row
    ]
    return {
        "least_ratio": min(ratios, default=None),
        "rllib_200kb_0ms": min(at_200, default=None),
        "utilisation_50ms": min(at_50, default=None),
    }


COLUMNS = {
    "size": "observation",
    "step_ms": "step ms",
    "actors": "actors",
    "system": "system",
    "steps_per_second": "env steps/s",
    "ratio": "ours is times",
    "learner_steps_per_second": "learner steps/s",
    "mb_per_second": "MB/s",
    "memory_mb": "memory MB",
    "cpu_ms_per_step": "CPU ms a step",
    "policy_lag": "policy lag",
    "utilisation": "utilisation",
    "dropped_per_second": "dropped/s",
    "store_mb_per_second": "store MB/s",
    "memory_mb_per_second": "copy MB/s",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    cells = [[row.get(name, "") for name in COLUMNS] for row in rows]
    return Table(header=list(COLUMNS.values()), rows=cells).markdown

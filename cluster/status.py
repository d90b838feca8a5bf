"""`drive status`: what the runs here are doing, and the Ray cluster, for a terminal.

Only the runs' directories are looked at, so that it tells of runs of other terminals, machines and
days as well. Tables go to stderr, and stdout gets the same as JSON.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cluster.cluster_state import ClusterState, cluster_state
from cluster.progress import CONSOLE, clock
from cluster.run_state import RunState, find_runs, run_state

STYLES = {"running": "green", "failed": "red", "killed": "red", "interrupted": "yellow"}
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StatusRun:
    """Where to look.

    folder: of runs, or of one. patience: s that the cluster may take to answer.
    """

    folder: Path = Path("runs")
    patience: float = 5.0

    def __post_init__(self) -> None:
        if self.patience <= 0:
            raise ValueError(f"patience must be positive, got {self.patience} s")


def run(config: StatusRun, output: Path) -> dict[str, Any]:
    """Look and show; return the same. `output` gets nothing."""
    if not config.folder.is_dir():
        raise ValueError(f"there is no folder {config.folder}: give folder=PATH, one of runs")
    found = [run_state(directory) for directory in find_runs(config.folder)]
    runs = [each for each in found if each.job != "status"]
    if runs:
        CONSOLE.print(table_of_runs(runs, config.folder))
    else:
        CONSOLE.print(f"no job has left anything in {config.folder}", highlight=False, markup=False)
    cluster = cluster_state(config.patience)
    if isinstance(cluster, ClusterState):
        for table in tables_of_cluster(cluster):
            CONSOLE.print(table)
    elif cluster is not None:
        CONSOLE.print(cluster, style="red", highlight=False, markup=False)
    return {
        "runs": [asdict(each) for each in runs],
        "cluster": asdict(cluster) if isinstance(cluster, ClusterState) else cluster,
    }


def table_of_runs(runs: list[RunState], folder: Path) -> Table:
    """Draw up to three lines a run, and more where its last figures need them."""
    table = Table(title=f"Runs in {folder}", show_lines=True)
    table.add_column("run", overflow="fold")
    table.add_column("done", no_wrap=True)
    table.add_column("last figures")
    for each in runs:
        name = each.directory.relative_to(folder) if each.directory != folder else each.directory
        ago = "" if each.silent is None else f", {clock(each.silent)} ago"
        table.add_row(
            escape(f"{name}\n{each.job}\n{each.state}{ago}"),
            escape("\n".join(progress_of(each))),
            escape(last_words(each)),
            style=STYLES.get(each.state),
        )
    return table


def progress_of(state: RunState) -> Iterator[str]:
    """Say how far work has come, how fast it goes on if it does, and what is saved of it."""
    work = state.work or {}
    if "done" in work:
        of = f"/{work['total']}" if work.get("total") else ""
        yield f"{work['done']}{of} {work.get('what', '')}"
    if state.state == "running" and work.get("per_second"):
        left = f", {clock(work['seconds_left'])} left" if work.get("seconds_left") else ""
        yield f"{work['per_second']:.3g}/s{left}"
    if (saved := state.checkpoint) is not None:
        yield f"step {saved.step} saved {clock(saved.age)} ago"


def last_words(state: RunState) -> str:
    """Say what went wrong, or else the score, or else the last figures."""
    if state.problem:
        return state.problem
    if state.state != "running" and state.figures and (score := score_of(state.figures)):
        return score
    return str((state.work or {}).get("note", ""))


def score_of(figures: Mapping[str, Any], label: str = "") -> str:
    """Find in a job's figures what was passed of how many, or else the plain numbers."""
    if {"passed", "total"} <= figures.keys():
        return f"{label} {figures['passed']} of {figures['total']}".strip()
    scores = [
        score_of(value, f"{label} {name}".strip())
        for name, value in figures.items()
        if isinstance(value, Mapping)
    ]
    if passed := [score for score in scores if " of " in score]:
        return ", ".join(passed)
    numbers = {
        name: value
        for name, value in figures.items()
        if isinstance(value, float) and not isinstance(value, bool)
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()) if not label else ""


def tables_of_cluster(cluster: ClusterState) -> list[Table]:
    """Draw the resources in use, the nodes, and the actors by state."""
    resources = Table(title=f"Ray at {cluster.address}")
    resources.add_column("resource")
    resources.add_column("in use", justify="right")
    for name, (used, total) in cluster.used.items():
        resources.add_row(name, f"{amount(name, used)} of {amount(name, total)}")
    nodes = Table(title="Nodes")
    for column in ("address", "state", "offers"):
        nodes.add_column(column)
    for node in cluster.nodes:
        offers = ", ".join(f"{amount(n, a)} {n}" for n, a in node.resources.items())
        nodes.add_row(node.address, "alive" if node.alive else "dead", offers)
    if cluster.actors is None:
        return [resources, nodes]
    actors = Table(title="Actors")
    for column in ("class", "states"):
        actors.add_column(column)
    for name, states in cluster.actors.items():
        said = ", ".join(f"{number} {state.lower()}" for state, number in sorted(states.items()))
        actors.add_row(name, said)
    return [resources, nodes, actors]


def amount(resource: str, number: float) -> str:
    """Write an amount of a resource, memory in GiB."""
    return f"{number / GIB:.1f} GiB" if "memory" in resource else f"{number:g}"

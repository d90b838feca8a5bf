"""`drive sweep`: train policies that differ in what you name, score each, compare them in a table.

Each policy is trained with several seeds and scored on several suites; Ray Tune runs them,
`side_by_side` at once, and tries again what died. After each, `report.html` and a Markdown file for
every table compare them with 95 % intervals, and `results.json` has every figure. `drive status`
shows those under way.

Each policy is in a folder of its own, as `drive train-policy` leaves it. What was recorded, trained
or scored is not done again: a sweep can be interrupted, and policies, seeds and scores can be added
to it (`output=PATH` names the same folder). Trials that run on other nodes write there, too: on a
cluster, recordings and output are in folders that all nodes share.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster import record
from cluster.config import Config, dump, load, load_kept
from cluster.evaluate_policy import EvaluatePolicyRun
from cluster.jobs import RUNS
from cluster.kept import TRAINING, claim, found, kept
from cluster.output import write_text
from cluster.progress import Meter, progress
from cluster.record import RecordRun
from cluster.run_state import run_state
from cluster.sweep_page import Row, write_page
from cluster.sweep_trial import train_and_score
from cluster.train_policy import TrainPolicyRun
from drive_envs.scenarios import find_scenarios, load_scenarios
from drive_learner.local_cluster import local_cluster

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0
ON_THE_HEAD = "node:__internal_head__"  # a resource that every head node has

Words = tuple[str, ...]
Scores = Mapping[str, EvaluatePolicyRun]  # by name


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """What is compared.

    policies: by a name of your own, what would stand after `drive train-policy`: a YAML, a shipped
    one by its name, or another of these policies, and dotted.key=value. recordings: the same for
    `drive record`; those that are learnt from are made first, unless their file is there and was
    made so. seeds: of each policy; one is trained for all policies before the next. scores: what
    each is scored on.
    tables: by a name, policies that are to be compared with each other; without any it is all of
    them. only: the tables to make, each without the others; none means all.
    side_by_side: policies at once. num_cpus, num_gpus, resources: what Ray reserves for each
    besides its actors; with nothing it is on the head node, and not counted. max_failures: how
    often a policy is tried again whose process died.
    """

    policies: dict[str, Words] = field(default_factory=dict)
    recordings: dict[str, Words] = field(default_factory=dict)
    tables: dict[str, Words] = field(default_factory=dict)
    only: Words = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    scores: tuple[EvaluatePolicyRun, ...] = (EvaluatePolicyRun(),)
    side_by_side: int = 1
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    max_failures: int = 2

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies is empty: name at least one, such as {mine: [reprojective]}")
        for name in self.only:
            if name not in self.tables:
                raise ValueError(
                    f"only names {name}, the tables are {', '.join(self.tables) or 'none'}"
                )
        for table, names in self.tables.items():
            if unknown := [name for name in names if name not in self.policies]:
                raise ValueError(f"tables.{table} names {', '.join(unknown)}, which is no policy")
        listed = {name for names in self.tables.values() for name in names}
        if self.tables and (left := [name for name in self.policies if name not in listed]):
            raise ValueError(f"{', '.join(left)}: in none of the tables, and would not be trained")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once, got {list(self.seeds)}")
        if any(score.policy is not None or score.policies for score in self.scores):
            raise ValueError("scores name a policy: leave it out, those trained are meant")
        names = [name_of(score) for score in self.scores]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"scores must be one or more, each once, got {names}")
        if self.side_by_side < 1 or self.max_failures < 0:
            raise ValueError(
                f"side_by_side is {self.side_by_side} and max_failures {self.max_failures}; "
                "they must be at least 1 and 0"
            )

    @property
    def needs(self) -> dict[str, float]:
        """What Ray reserves for one policy; Tune refuses to be asked for nothing."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        needs = {name: amount for name, amount in needs.items() if amount}
        return needs or {ON_THE_HEAD: 0.001}

    @property
    def compared(self) -> dict[str, Words]:
        """The policies of each table that is to be made."""
        if not self.tables:
            return {"policies": tuple(self.policies)}
        return {name: self.tables[name] for name in self.only or self.tables}

    @property
    def points(self) -> dict[tuple[str, int], TrainPolicyRun]:
        """The training runs by policy and seed, in the order in which they are done."""
        wanted = {name for names in self.compared.values() for name in names}
        runs = {
            name: as_said(TrainPolicyRun, spelt_out(self.policies, name))
            for name in self.policies
            if name in wanted
        }
        return {
            (name, seed): replace(run, seed=seed)
            for seed in self.seeds
            for name, run in runs.items()
        }


def name_of(score: EvaluatePolicyRun) -> str:
    """Name a score by its suite and setting."""
    return f"{find_scenarios(score.scenarios).stem}-{score.noise}"


def spelt_out(said: Mapping[str, Words], name: str) -> Words:
    """Return the words of one of several, those of another that it begins with put in their place.

    A name that begins with itself means a file. ValueError for names that go round in a circle.
    """
    words, seen = said[name], [name]
    while words and words[0] in said and words[0] != seen[-1]:
        if words[0] in seen:
            raise ValueError(f"{' begins with '.join([*seen, words[0]])}: that has no beginning")
        seen.append(words[0])
        words = (*said[words[0]], *words[1:])
    return words


def as_said(schema: type[Config], words: Words) -> Config:
    """Read a run as on the command line: perhaps a YAML, then dotted.key=value."""
    path, overrides = None, words
    if words and "=" not in words[0]:
        shipped = RUNS / f"{words[0]}.yaml"
        path, overrides = shipped if shipped.exists() else Path(words[0]), words[1:]
    return load(schema, path, overrides)


def run(config: SweepRun, output: Path) -> dict[str, Any]:
    """Record, train and score what is not done yet; return the passes and errors of each policy."""
    output = output.resolve()
    points = config.points
    recordings = {
        name: as_said(RecordRun, spelt_out(config.recordings, name)) for name in config.recordings
    }
    needed = {training.data_path for training in points.values()}
    recordings = {
        name: recording
        for name, recording in recordings.items()
        if needed & {recording.path.resolve(), *recording.path.resolve().parents}
    }
    folders = {(name, seed): output / f"{name}-seed_{seed}" for name, seed in points}
    for score in config.scores:  # all that can be wrong, before the first hour is spent
        load_scenarios(score.scenarios)
    for point, training in points.items():
        claim(folders[point], training)
    for name, recording in recordings.items():
        record_once(recording, output / "recordings" / name)
    scores = {name_of(score): score for score in config.scores}

    def write() -> dict[str, Any]:
        rows = [
            row
            for (name, seed), folder in folders.items()
            if (row := row_of(name, seed, folder, scores)) is not None
        ]
        results = {f"{row.policy}-seed_{row.seed}": vars(row) for row in rows}
        write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
        return write_page(output, rows, list(scores), config.compared)

    problems = train_all(config, list(folders.values()), scores, output, write)
    figures = write()
    if problems:
        raise ValueError("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
    return figures


def record_once(recording: RecordRun, folder: Path) -> None:
    """Record unless it is done; beside the recordings is written how they were made.

    ValueError where the path has others.
    """
    path = recording.path.with_suffix(".json")
    if not recording.path.exists():
        path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept(path, recording, lambda: record.run(recording, folder))


def figures_of(
    folder: Path, scores: Scores
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]] | None:
    """Read what training and each score of a policy gave, None where some of it is to be done."""
    training = load_kept(TrainPolicyRun, (folder / TRAINING).read_text())
    trained = found(folder / "trained.json", training)
    scored = {
        name: figures
        for name, score in scores.items()
        if (figures := found(folder / "scores" / name / "scored.json", score)) is not None
    }
    return None if trained is None or len(scored) < len(scores) else (trained, scored)


def is_done(folder: Path, scores: Scores) -> bool:
    """Tell whether a policy is trained and has all its scores."""
    return figures_of(folder, scores) is not None


def row_of(name: str, seed: int, folder: Path, scores: Scores) -> Row | None:
    """Return the figures of one policy, None where it is not done."""
    if (figures := figures_of(folder, scores)) is None:
        return None
    trained, scored = figures
    made = json.loads((folder / "result.json").read_text())
    machine = made["machine"]
    return Row(
        policy=name,
        seed=seed,
        steps=trained["steps"],
        minutes=trained["seconds"] / 60,
        trajectory_mae=trained["trajectory_mae"],
        passed={score: one[suite(score)]["passed"] for score, one in scored.items()},
        total={score: one[suite(score)]["total"] for score, one in scored.items()},
        mean_abs_lateral={score: one["mean_abs_lateral"] for score, one in scored.items()},
        seconds_in_lane={score: seconds_in_lane(folder / "scores" / score) for score in scored},
        commit=made["commit"],
        machine=f"{machine['cores']} cores of {machine['cpu']}",
    )


def seconds_in_lane(pages: Path) -> float | None:
    """Return how long the drives of a score were in their lane on average; None without any."""
    (drives,) = json.loads((pages / "results.json").read_text())["drivers"].values()
    seconds = [
        drive["time"][-1] - drive["figures"]["off_lane_time"]
        for drive in drives
        if drive["figures"]
    ]
    return sum(seconds) / len(seconds) if seconds else None


def suite(score: str) -> str:
    """Return the suite that a score's name says."""
    return score.rpartition("-")[0]


def train_all(
    config: SweepRun,
    folders: Sequence[Path],
    scores: Scores,
    output: Path,
    on_done: Callable[[], object],
) -> dict[str, str]:
    """Train and score with Ray Tune what is not done; return what could not be done, and why.

    on_done: called after each policy.
    """
    waiting = [folder for folder in folders if not is_done(folder, scores)]
    if not waiting:
        return {}
    from ray import tune  # seconds, which a sweep that is done need not spend

    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths in runs are meant from here
    point = {
        "folder": tune.grid_search([str(folder) for folder in waiting]),
        "scores": {name: dump(score) for name, score in scores.items()},
        "directory": str(Path.cwd()),
    }
    done = len(folders) - len(waiting)
    with (
        local_cluster(object_store_mb=1000 * (1 + config.side_by_side)),
        progress("policies", len(folders), done=done) as meter,
        watching(meter, folders, scores, on_done),
    ):
        tuner = tune.Tuner(
            tune.with_resources(train_and_score, config.needs),
            param_space=point,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=config.side_by_side,
                trial_name_creator=lambda trial: Path(trial.config["folder"]).name,
                trial_dirname_creator=lambda trial: Path(trial.config["folder"]).name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(output),
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                verbose=0,
            ),
        )
        results = tuner.fit()
        meter.update(sum(is_done(folder, scores) for folder in folders))
    problems = {}
    for result in results:
        folder = Path((result.config or point)["folder"])
        if result.error is not None:
            problems[folder.name] = str(result.error).strip().splitlines()[-1]
        elif not result.metrics or "problem" not in result.metrics:
            raise KeyboardInterrupt
        elif result.metrics["problem"]:
            problems[folder.name] = result.metrics["problem"]
    return problems


@contextmanager
def watching(
    meter: Meter,
    folders: Sequence[Path],
    scores: Scores,
    on_done: Callable[[], object],
) -> Iterator[None]:
    """Show on the meter, while the block runs, how far the policies under way have come."""
    ended = threading.Event()

    def watch() -> None:
        known = -1  # so that those that an earlier sweep has done are written, too
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            done = sum(is_done(folder, scores) for folder in folders)
            meter.update(done, under_way(folders))
            if done > max(known, 0):
                on_done()
            known = done

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def under_way(folders: Sequence[Path]) -> str:
    """Say how far the jobs have come that run now."""
    notes = []
    for folder in folders:
        for place in (folder, *sorted(folder.glob("scores/*"))):
            state = run_state(place)
            if state.state == "running" and state.work:
                work = state.work
                of = f"{work['done']} of {work['total']}" if work["total"] else work["done"]
                at = "" if place == folder else f" {place.name}"
                notes.append(f"{folder.name}{at}: {of} {work['what']}")
    return ", ".join(notes)

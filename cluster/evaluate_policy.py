"""`drive evaluate-policy`: score policies in closed loop, in MetaDrive, scenario by scenario.

Several processes drive side by side, each with a MetaDrive of its own; one that dies is replaced.
The output directory gets `results.json` (every figure of every scenario), `lateral.png` (lateral
position over time), `pace.png` (speed and gap, where the driver chooses the speed), `report.html`
with all of it, and `videos/`.

What passes is written in `drive_envs/data/lane_centering.yaml`, `drive_actors/verdict.py` and
`drive_actors/pace_verdict.py`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray

from cluster.progress import CONSOLE, progress
from cluster.score_plots import draw_lateral, draw_pace
from cluster.score_report import (
    failures_of,
    headline,
    mean_abs_lateral,
    table_of,
    write_page,
    write_results,
)
from cluster.telemetry import Telemetry
from cluster.work_queue import Lost, work
from drive_actors.policy_file import STATE, load_policy
from drive_actors.scorer import Scored, Scorer, WhenToDraw
from drive_actors.scoring import Drive, Result, lost
from drive_envs.checkpoint import checkpoints
from drive_envs.drawing import Picture, caption, draw_views, write_video
from drive_envs.metadrive_assets import ensure_assets
from drive_envs.scenarios import Scenario, find_scenarios, load_scenarios
from drive_learner.local_cluster import local_cluster

logger = logging.getLogger(__name__)

BLIND = ("teacher", "straight")  # drivers that do not look at images
DEFAULT_SIZE = (128, 64)

Item = TypeVar("Item")
Results = dict[str, dict[str, Result]]  # by driver, then by scenario


@dataclass(frozen=True, kw_only=True)
class EvaluatePolicyRun:
    """One score."""

    policy: str | None = None
    """A policy's folder, or a training run's (its newest checkpoint), or `teacher` (which knows the
    road) or `straight` (which holds the wheel); null is the shipped policy."""
    policies: dict[str, str] = field(default_factory=dict)
    """Several of them by a name of your own, to compare side by side; in place of `policy`."""
    scenarios: Path | None = None
    """A scenario list, or the name of a shipped one, `lane_centering` (null is this),
    `lane_change` or `longitudinal`."""
    noise: Literal["plain", "realistic"] = "plain"
    video: str = "none"
    """`none`, `all`, `failed`, or the name of a scenario."""
    render: bool = True  # false drives in the dark, which teacher and straight can
    num_processes: int = 2  # side by side, one core and 0.8 GB each
    timeout: float = 180.0  # s for one scenario, after which its process counts as hung

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise ValueError(f"num_processes must be 1 or more, got {self.num_processes}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be positive, got {self.timeout} s")
        if self.policy is not None and self.policies:
            raise ValueError("give either policy or policies, not both")


def run(config: EvaluatePolicyRun, output: Path) -> dict[str, Any]:
    """Score; return passed and total, and the mean distance to the lane centre at the end."""
    scenarios = load_scenarios(config.scenarios)
    drivers = find_drivers(config)
    size = image_size(drivers, is_rendered=config.render)
    check_video(config, scenarios)
    if config.render:
        ensure_assets()
    started = time.monotonic()
    results, videos = score_all(config, scenarios, drivers, size, output)
    seconds = time.monotonic() - started
    suite = find_scenarios(config.scenarios).stem
    write_results(output / "results.json", config.noise, results, seconds)
    pictures = {"lateral": draw_lateral(scenarios, results)}
    if any(scenario.longitudinal == "policy" for scenario in scenarios):
        pictures["pace"] = draw_pace(scenarios, results)
    for name, picture in pictures.items():
        (output / f"{name}.png").write_bytes(picture)
    figures = headline(suite, config.noise, results)
    write_page(output / "report.html", figures, scenarios, results, pictures, videos)
    CONSOLE.print(table_of(scenarios, results, f"{suite}, {config.noise}"))
    for failure in failures_of(results):
        CONSOLE.print(failure, style="red", highlight=False, markup=False)
    logger.info("%d drives in %.0f s; see %s", len(scenarios) * len(drivers), seconds, output)
    return figures


def find_drivers(config: EvaluatePolicyRun) -> dict[str, str]:
    """Return what `Scorer` is to drive with, by label; ValueError when there is no such policy."""
    if config.policies:
        return {label: find_policy(given) for label, given in config.policies.items()}
    if config.policy is not None:
        return {
            "policy" if config.policy not in BLIND else config.policy: find_policy(config.policy)
        }
    shipped = Path(str(files("drive_actors") / "data" / "policy"))
    if not (shipped / STATE).exists():
        raise ValueError(
            f"{shipped}: no policy is shipped here: train one with `drive train-policy` "
            "and name it, policy=PATH"
        )
    return {"policy": str(shipped)}


def find_policy(given: str) -> str:
    """Find the policy in a folder: its own, or the newest checkpoint of a training run."""
    if given in BLIND:
        return given
    path = Path(given).resolve()
    if (path / STATE).exists():
        return str(path)
    if found := [*checkpoints(path), *checkpoints(path / "checkpoints")]:
        return str(found[-1])
    raise ValueError(
        f"{given}: no policy there; policy=PATH is a policy's folder (with {STATE}) or a training "
        "run's, or one of the words teacher and straight"
    )


def image_size(drivers: Mapping[str, str], *, is_rendered: bool) -> tuple[int, int]:
    """Return the (width, height) that all policies see; reading them finds damage early."""
    policies = {label: load_policy(Path(d)) for label, d in drivers.items() if d not in BLIND}
    if policies and not is_rendered:
        raise ValueError(f"{', '.join(policies)}: a policy looks at images, it needs render=true")
    sizes = {label: (p.config.width, p.config.height) for label, p in policies.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"policies of different image sizes {sizes}: score them one at a time")
    return next(iter(sizes.values()), DEFAULT_SIZE)


def check_video(config: EvaluatePolicyRun, scenarios: Sequence[Scenario]) -> None:
    """Refuse a video of nothing."""
    names = [scenario.name for scenario in scenarios]
    if config.video not in ("none", "all", "failed", *names):
        raise ValueError(
            f"video={config.video}: no such scenario; there are none, all, failed and "
            f"{', '.join(names)}"
        )
    if config.video != "none" and not config.render:
        raise ValueError(f"video={config.video} needs render=true")


def score_all(
    config: EvaluatePolicyRun,
    scenarios: Sequence[Scenario],
    drivers: Mapping[str, str],
    size: tuple[int, int],
    output: Path,
) -> tuple[Results, list[Path]]:
    """Drive everything side by side; return the results in the given order, and the videos."""
    found: Results = {label: {} for label in drivers}
    videos: list[Path] = []
    num_drives = len(scenarios) * len(drivers)
    run_name = output.resolve().name
    telemetry = {
        label: Telemetry(run_name if len(drivers) == 1 else f"{run_name}/{label}")
        for label in drivers
    }
    with progress("scenarios", num_drives) as meter:
        for label, scenario, scored in drives(config, scenarios, drivers, size):
            found[label][scenario.name] = scored.result
            if scored.filmed is not None:
                name = scenario.name if len(drivers) == 1 else f"{label}-{scenario.name}"
                videos.append(output / "videos" / f"{name}.mp4")
                videos[-1].parent.mkdir(exist_ok=True)
                write_video(videos[-1], pictures_of(scored.filmed))
            passed = sum(r.passed for by_name in found.values() for r in by_name.values())
            meter.advance(note=f"{passed} passed, last {scenario.name}")
            telemetry[label].tell(score_so_far(found[label], len(scenarios)))
    names = [scenario.name for scenario in scenarios]
    ordered = {label: {name: found[label][name] for name in names} for label in drivers}
    return ordered, sorted(videos)


def score_so_far(by_name: Mapping[str, Result], num_scenarios: int) -> dict[str, float]:
    """Return the score of one driver as metrics."""
    figures: dict[str, float] = {
        "score/scenarios": num_scenarios,
        "score/driven": len(by_name),
        "score/passed": sum(result.passed for result in by_name.values()),
    }
    mean = mean_abs_lateral(by_name)
    return figures if mean is None else figures | {"score/mean_abs_lateral": mean}


def drives(
    config: EvaluatePolicyRun,
    scenarios: Sequence[Scenario],
    drivers: Mapping[str, str],
    size: tuple[int, int],
) -> Iterator[tuple[str, Scenario, Scored]]:
    """Yield every drive of every driver as it is done."""
    by_name = {scenario.name: scenario for scenario in scenarios}
    items = [(label, name) for label in drivers for name in by_name]

    def ask(process: Any, item: tuple[str, str]) -> Any:
        label, name = item
        return process.score.remote(drivers[label], by_name[name], when_to_film(config.video, name))

    for (label, name), scored in score_items(
        config, items, ask, lambda item: by_name[item[1]], size
    ):
        yield label, by_name[name], scored


def score_items(
    config: EvaluatePolicyRun,
    items: Sequence[Item],
    ask: Callable[[Any, Item], Any],
    scenario_of: Callable[[Item], Scenario],
    size: tuple[int, int],
) -> Iterator[tuple[Item, Scored]]:
    """Yield every item with its drive as it is done, on Ray; one that was lost counts as failed.

    ask: gives an item to a `Scorer` in a process of its own, and returns what Ray does.
    """
    if not items:
        return
    scorer = ray.remote(Scorer).options(num_cpus=1, max_restarts=0)
    num_processes = min(config.num_processes, len(items))
    with local_cluster(num_cpus=num_processes, object_store_mb=200):
        for item, done in work(
            items,
            lambda: scorer.remote(*size, config.noise, is_rendered=config.render),
            ask,
            num_processes=num_processes,
            timeout=config.timeout,
        ):
            if isinstance(done, Lost):
                done = Scored(result=lost(scenario_of(item), done.cause), filmed=None)
            yield item, done


def pictures_of(driven: Drive) -> list[Picture]:
    """Draw every frame that the driver saw, with its plan (green) and the teacher's (blue)."""
    return [
        draw_views(
            {"narrow": view.narrow, "wide": view.wide},
            plan=None if view.plan is None else view.plan.copy(),  # what Ray brings is read-only
            teacher=view.teacher_plan.copy(),
            teacher_valid=view.teacher_valid.copy(),
            caption=caption(step, view.lateral, view.speed),
        )
        for step, view in enumerate(driven.views)
    ]


def when_to_film(video: str, name: str) -> WhenToDraw:
    """Say for one scenario what `video` asks for."""
    if video == "failed":
        return "failed"
    return "always" if video in ("all", name) else "never"

"""Closed-loop scoring in one process: drive a scenario in a world, then judge where the car was.

The car moves by our vehicle model, at the scenario's speed or, with `longitudinal: policy`, as fast
as its driver wants; the world only shows what the cameras see from there. A drive begins with 2 s
of history in which the car was as far off, and as turned, as it is at the start, as in training.
Where the car is is measured on the road's own geometry, by none of the environment's figures.
Everything random has the scenario's seed.

Several processes side by side, tables, plots and files: `cluster.evaluate_policy`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, radians
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from drive_actors.drivers import Driver
from drive_actors.pace_verdict import PaceFigures, measure_pace, pace_reasons
from drive_actors.verdict import Figures, measure, reasons_to_fail
from drive_envs.environment import DrivingVectorEnv, EnvConfig
from drive_envs.metadrive_world import RoadScene
from drive_envs.path import NUM_PAST, RecordedPath
from drive_envs.plan import STEP, TIMES
from drive_envs.scenarios import Scenario
from drive_envs.scenes import Scene
from drive_envs.scripted_cars import gaps
from drive_envs.traffic import CAR_LENGTH, CAR_WIDTH
from drive_envs.vehicle import VehicleConfig, preset
from drive_envs.world import World

Noise = Literal["plain", "realistic"]
Series = Float[np.ndarray, " time"]
DESIRES = {"left": 1, "right": 2}


@dataclass(frozen=True, kw_only=True)
class View:
    """What the driver saw and meant on one frame: for a video."""

    narrow: UInt8[np.ndarray, "3 height width"]
    wide: UInt8[np.ndarray, "3 height width"]
    plan: Float32[np.ndarray, "33 15"] | None
    teacher_plan: Float32[np.ndarray, "33 15"]
    teacher_valid: Bool[np.ndarray, "33"]
    lateral: float  # m left of the lane centre
    speed: float  # m/s


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A scenario as it was driven.

    time (N,) s from the start, a value every `STEP`; poses (N, 3) world x, y, yaw of the vehicle
    centre; views one a frame, or none; seconds of wall time by phase. It ends early when the car
    was more than 4 m off.
    """

    time: Float[np.ndarray, " time"]
    poses: Float[np.ndarray, "time 3"]
    views: tuple[View, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a scenario went; without figures its process died, and `reasons` says how.

    lateral (N,): m left of where to be, at `time` (N,) s. speed (N,): m/s, and gap (N,): m to the
    car ahead, infinite without one. pace: where the driver chose the speed.
    """

    scenario: str
    passed: bool
    reasons: tuple[str, ...]
    figures: Figures | None
    time: Float[np.ndarray, " time"]
    lateral: Float[np.ndarray, " time"]
    speed: Float[np.ndarray, " time"]
    gap: Float[np.ndarray, " time"]
    pace: PaceFigures | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def scene_of(scenario: Scenario) -> Scene:
    """Turn a scenario into a scene: the path is a good driver's, as long as plans reach."""
    num_steps = round(scenario.duration / STEP)
    num_rows = NUM_PAST + num_steps + round(float(TIMES[-1]) / STEP) + 1
    time = STEP * (np.arange(num_rows) - NUM_PAST)
    poses = scenario.target_poses(time)
    poses[:, 2] = np.unwrap(poses[:, 2])
    desire = torch.zeros(num_rows, dtype=torch.int64)
    for pulse in scenario.desire:
        desire[NUM_PAST + round(pulse.time / STEP)] = DESIRES[pulse.direction]
    path = RecordedPath(
        time=torch.from_numpy(time),
        poses=torch.from_numpy(poses),
        speed=torch.from_numpy(scenario.reference.at(time)[1]),
        desire=desire,
    )
    return Scene(
        path=path,
        start=NUM_PAST,
        num_steps=num_steps,
        source=RoadScene(
            road=scenario.road,
            lane=scenario.lane,
            cars=scenario.car_poses(time[: NUM_PAST + num_steps + 1]),
        ),
        lateral_offset=scenario.lateral_offset,
        heading_offset=radians(scenario.heading_offset_deg),
    )


def drive(
    driver: Driver,
    scenario: Scenario,
    world: World,
    vehicle: VehicleConfig,
    *,
    with_views: bool = False,
) -> Drive:
    """Drive a scenario to its end, or until the car is more than 4 m off or hits another."""
    camera = world.cameras["narrow"]
    config = EnvConfig(
        width=camera.width,
        height=camera.height,
        vehicle=vehicle,
        longitudinal=scenario.longitudinal,
        max_station_error=inf,  # who is slower or faster than a good driver is judged, not stopped
    )
    scene = scene_of(scenario)
    env = DrivingVectorEnv(world, lambda rng: scene, config, num_envs=1)
    begin = perf_counter()
    observation, info = env.reset(seed=scenario.seed)
    driver.start(info["context"])
    reset_seconds = perf_counter() - begin
    poses, views = [info["pose"][0].copy()], []
    while info["active"][0] and not is_over(scenario, len(poses) - 1, poses[-1]):
        decision = driver.act(observation, info)
        if with_views:
            plan = None if decision.plan is None else decision.plan[0].copy()
            views.append(
                View(
                    narrow=observation["narrow"][0].copy(),
                    wide=observation["wide"][0].copy(),
                    plan=plan,
                    teacher_plan=info["teacher_plan"][0].copy(),
                    teacher_valid=info["teacher_plan_valid"][0].copy(),
                    lateral=float(info["lateral_error"][0]),
                    speed=float(observation["speed"][0, 0]),
                )
            )
        observation, _, _, _, info = env.step(decision.action)
        poses.append(info["pose"][0].copy())
    seconds = perf_counter() - begin
    return Drive(
        time=STEP * np.arange(len(poses), dtype=np.float64),
        poses=np.stack(poses),
        views=tuple(views),
        seconds={"reset": reset_seconds, "drive": seconds - reset_seconds},
    )


def is_over(scenario: Scenario, step: int, pose: Series) -> bool:
    """Tell whether a car is more than 4 m from where to be across the road, or has hit another.

    The environment measures the first against a good driver's way, which may have ended by then.
    """
    time = np.array([step * STEP])
    s, offset = scenario.line.locate(pose[None, :2])
    wanted, _ = scenario.target_offset(time)
    is_off = abs(offset[0] - wanted[0]) > EnvConfig.max_lateral_error
    return bool(is_off) or first_hit(scenario, time, s, offset) is not None


def judge(scenario: Scenario, driven: Drive) -> Result:
    """Measure a drive of at least one step and say whether it passed, and if not, why."""
    s, offset = scenario.line.locate(driven.poses[:, :2])
    lateral = offset - scenario.target_offset(driven.time)[0]
    right, left = scenario.edges(driven.time)
    yaw_rate = np.diff(np.unwrap(driven.poses[:, 2])) / STEP
    gap = gaps(scenario.car_tracks(driven.time), s, offset, CAR_WIDTH).min(axis=1, initial=np.inf)
    speed, is_free = scenario.speed * np.ones(len(s)), scenario.longitudinal == "policy"
    if is_free:
        speed = np.hypot(*np.diff(driven.poses[:, :2], axis=0).T) / STEP
        speed = np.append(speed, speed[-1:])
    thresholds = scenario.thresholds
    figures = measure(
        lateral,
        is_outside=(offset < right) | (offset > left),
        acceleration=speed[:-1] * yaw_rate,
        step=STEP,
        thresholds=thresholds,
    )
    is_comfort_judged = bool(scenario.desire) or is_free
    reasons = reasons_to_fail(figures, thresholds, is_comfort_judged=is_comfort_judged)
    pace = None
    if is_free:
        good = scenario.reference.at(driven.time[-1:])[0][0] - scenario.station
        progress = float((s[-1] - scenario.station) / good)
        pace = measure_pace(speed, gap, STEP, progress, thresholds)
        reasons += pace_reasons(pace, thresholds)
    if (hit := first_hit(scenario, driven.time, s, offset)) is not None:
        reasons = (f"hit a car after {hit:.1f} s", *reasons)
    elif driven.time[-1] < scenario.duration - STEP / 2:
        reasons = (f"left the road after {driven.time[-1]:.1f} s", *reasons)
    return Result(
        scenario=scenario.name,
        passed=not reasons,
        reasons=reasons,
        figures=figures,
        time=driven.time,
        lateral=lateral,
        speed=speed,
        gap=gap,
        pace=pace,
        seconds=driven.seconds,
    )


def first_hit(scenario: Scenario, time: Series, s: Series, offset: Series) -> float | None:
    """Return when (s) our box met another car's, both along the lane; None if never."""
    is_hit = np.zeros(len(time), bool)
    for poses in scenario.car_poses(time).swapaxes(0, 1):
        along, beside = scenario.line.locate(poses[:, :2])
        is_hit |= (np.abs(s - along) < CAR_LENGTH) & (np.abs(offset - beside) < CAR_WIDTH)
    return float(time[is_hit][0]) if is_hit.any() else None


def lost(scenario: Scenario, cause: str) -> Result:
    """Return the result of a scenario that could not be driven."""
    nothing = np.zeros(0)
    return Result(
        scenario=scenario.name,
        passed=False,
        reasons=(cause,),
        figures=None,
        time=nothing,
        lateral=nothing,
        speed=nothing,
        gap=nothing,
    )


def score(
    driver: Driver, scenarios: Iterable[Scenario], world: World, noise: Noise = "plain"
) -> list[Result]:
    """Drive scenarios one after the other in this process and judge them."""
    car = preset(noise)
    return [judge(scenario, drive(driver, scenario, world, car)) for scenario in scenarios]

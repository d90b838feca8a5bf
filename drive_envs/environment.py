"""The driving environment: a vehicle, a world, a teacher and a reward, composed.

    action --vehicle--> pose --world--> images
                          |---teacher--> plan, action
                          `---reward---> scalar

A scene begins with 2 s of recorded context, displaced as its start is, and ends when the car leaves
the road, or is too far from where the recorded one was at the time (`terminated`), or at the anchor
(`truncated`, from where a value may be bootstrapped).
All scenes of a batch start together; one that is over is frozen until the next reset.

With `longitudinal: recorded` the car keeps the station of the recorded one along the path, faster
on the outside of a curve and slower inside, so that the frame recorded at the same time remains
the one to look at. With `longitudinal: policy` it goes as fast as it is told. The environment knows
nothing of policies, and nothing of where its world's images come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from drive_envs import reward as rewarding
from drive_envs.path import NUM_DESIRES, NUM_PAST, PathOffset, Paths, gather_paths
from drive_envs.photometry import PhotometryConfig, develop, draw_looks, draw_places
from drive_envs.plan import STEP
from drive_envs.scenes import Scene, SceneSource
from drive_envs.teachers import LATERAL_RATE, Targets, follow, teach
from drive_envs.vehicle import (
    MAX_ACCELERATION,
    MAX_CURVATURE,
    MIN_ACCELERATION,
    MIN_WIND_SPEED,
    NUM_COMMANDS,
    Vehicle,
    VehicleConfig,
    VehicleState,
    advance,
    draw,
    limit,
    preset,
)
from drive_envs.world import ClosableWorld, PlanningWorld, TimedWorld, World

MAX_SPEED = 100.0  # m/s, of the observation space
OPTIONS = ("scenes",)  # of `reset`
Observation = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environment around a world.

    width, height: of the images, as the world's. photometry: what the cameras add to them, by
    default nothing. longitudinal: who chooses the speed. teacher: `path` knows the recorded path,
    `plan` is what the world itself plans, which must be a `PlanningWorld`. lateral_rate: 1/s, how
    fast the teacher leads back.
    max_lateral_error: m from the recorded path, beyond which a scene is terminated (by the
    paper, the warp's range is less than 4 m); lane_change_margin: m more while the driver is
    told of a lane change, when the path moves to the next lane and who is late is far from it.
    max_station_error: along the path, from where the recorded car was at the time; infinity for
    never. How scenes are drawn is the sampler's.
    """

    width: int = 128
    height: int = 64
    vehicle: VehicleConfig = field(default_factory=lambda: preset("training"))
    photometry: PhotometryConfig = field(default_factory=PhotometryConfig)
    longitudinal: Literal["recorded", "policy"] = "recorded"
    teacher: Literal["path", "plan"] = "path"
    lateral_rate: float = LATERAL_RATE
    reward: rewarding.RewardConfig = field(default_factory=rewarding.RewardConfig)
    max_lateral_error: float = 4.0
    lane_change_margin: float = 0.0
    max_station_error: float = 8.0

    def __post_init__(self) -> None:
        if self.longitudinal not in ("recorded", "policy"):
            raise ValueError(f"longitudinal is '{self.longitudinal}'; use recorded or policy")
        if not 0 < self.lateral_rate <= 3:
            raise ValueError(f"lateral_rate is {self.lateral_rate} 1/s, not within 0..3")
        if self.teacher not in ("path", "plan"):
            raise ValueError(f"teacher is '{self.teacher}'; use path or plan")
        if not 0 < self.max_lateral_error <= 20:
            raise ValueError(f"max_lateral_error is {self.max_lateral_error} m, not within 0..20")
        if not 0 <= self.lane_change_margin <= 10:
            raise ValueError(f"lane_change_margin is {self.lane_change_margin} m, not within 0..10")
        if not self.max_station_error > 0:
            raise ValueError(
                f"max_station_error is {self.max_station_error} m, it must be positive"
            )


def observation_space(width: int, height: int) -> spaces.Space[Any]:
    """What a driver sees of one scene."""
    image = spaces.Box(0, 255, (3, height, width), np.uint8)
    command = action_space()
    return spaces.Dict(
        {
            "narrow": image,
            "wide": image,
            "speed": spaces.Box(0.0, MAX_SPEED, (1,), np.float32),
            "desire": spaces.Box(0.0, 1.0, (NUM_DESIRES,), np.float32),
            "last_action": spaces.Box(2 * command.low, 2 * command.high, dtype=np.float32),
        }
    )


def action_space() -> spaces.Box:
    """Desired curvature in 1/m, positive left, and desired acceleration in m/s^2."""
    low = np.array([-MAX_CURVATURE, MIN_ACCELERATION], np.float32)
    return spaces.Box(low, np.array([MAX_CURVATURE, MAX_ACCELERATION], np.float32))


class DrivingVectorEnv(VectorEnv):
    """A batch of scenes, driven together; see the module.

    Observations are dicts of numpy arrays (batch, ...): `narrow`, `wide` uint8 (3, H, W); `speed`
    m/s (1,); `desire` (3,), as `RecordedPath.told`; `last_action` (2,), as the car took it. Actions
    are (batch, 2) float32, clipped to the car's limits.

    info, of reset and step: `teacher_plan` (batch, 33, 15) SI, `teacher_plan_valid` (batch, 33),
    `teacher_action` (batch, 2), `lateral_error` m, `heading_error` rad and `station_error` m
    (batch,), `pose` (batch, 3) world, `active` (batch,), and `seconds`, the wall time of this call
    by phase ("decode" is part of "render"). reset also has `context`: the 9 observations before the
    first, (9, batch, ...), and `recording` (batch,): the number of each scene's.

    `reset(seed, options)`: the same seed gives the same scenes and cars; `options["scenes"]` drives
    given scenes, and there is no other option. Raises ValueError when world and config disagree on
    the images' size.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self, world: World, sampler: SceneSource, config: EnvConfig | None = None, num_envs: int = 1
    ) -> None:
        self.config = config or EnvConfig()
        self.world, self.sampler, self.num_envs = world, sampler, num_envs
        for name, camera in world.cameras.items():
            if (camera.width, camera.height) != (self.config.width, self.config.height):
                raise ValueError(
                    f"the world's camera '{name}' is {camera.width} x {camera.height}, but the "
                    f"environment's images are {self.config.width} x {self.config.height}: "
                    "make them equal"
                )
        if self.config.teacher == "plan" and not isinstance(world, PlanningWorld):
            raise ValueError(
                f"a {type(world).__name__} world does not plan: use teacher=path, or a world model"
            )
        self.single_observation_space = observation_space(self.config.width, self.config.height)
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.seconds: dict[str, float] = {}

    @torch.inference_mode()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new scenes, all at once; ValueError for options that are not known."""
        options = options or {}
        check_options(options)
        super().reset(seed=seed)
        self.seconds = {}
        with self._timed("reset"):
            root = int(self.np_random.integers(2**63))
            rngs = [np.random.default_rng([root, index]) for index in range(self.num_envs)]
            given = options.get("scenes")
            self._begin([self.sampler(rng) for rng in rngs] if given is None else given, rngs)
        context = [self._look_back(row) for row in range(NUM_PAST)]
        self._observation = self._observe(self._active)
        self._info = self._teach()
        stacked = {key: np.stack([frame[key] for frame in context]) for key in context[0]}
        told = {"context": stacked, "recording": self._recording, "seconds": self.seconds}
        return self._observation, self._info | told

    @torch.inference_mode()
    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Drive one `STEP`; ValueError for actions that are not (batch, 2) finite numbers."""
        self.seconds = {}
        was_active = self._active
        action = self._checked(actions)
        with self._timed("vehicle"):
            if was_active.any():
                jerk = self._drive(action)
                self._step += 1
            else:
                jerk = torch.zeros(self.num_envs, dtype=torch.float64)
            ahead = self._station_error
            left = was_active & (
                (self._offset.lateral.abs() > self._max_lateral_error())
                | (ahead.abs() > self.config.max_station_error)
            )
            arrived = was_active & ~left & (self._step >= self._num_steps)
            earned = rewarding.reward(
                self._offset.lateral, self._offset.heading, jerk, ahead, self.config.reward
            )
            earned = torch.where(was_active & ~left, earned, 0.0)
            self._active = was_active & ~left & ~arrived
        if was_active.any():
            kept = was_active.numpy()
            self._observation = merged(kept, self._observe(was_active), self._observation)
            self._info = merged(kept, self._teach(), self._info)
        self._info["active"] = self._active.numpy().copy()
        info = self._info | {"seconds": self.seconds}
        return self._observation, earned.numpy(), left.numpy(), arrived.numpy(), info

    def _max_lateral_error(self) -> Tensor:
        """How far (batch,) the cars may be from their paths, m: farther in a lane change."""
        is_changing = self._paths.told[:, NUM_PAST + self._step, 0] < 1
        return self.config.max_lateral_error + self.config.lane_change_margin * is_changing

    def _begin(self, scenes: Sequence[Scene], rngs: list[np.random.Generator]) -> None:
        """Put the cars at the start of their scenes, steering as they must have to get there."""
        if len(scenes) != self.num_envs:
            raise ValueError(f"{len(scenes)} scenes were given to {self.num_envs} environments")
        self.world.reset(scenes)
        longest = max(scene.num_steps for scene in scenes)
        self._num_steps = torch.tensor([scene.num_steps for scene in scenes])
        self._recording = np.array([scene.recording for scene in scenes], np.int64)
        self._step, self._active = 0, torch.ones(self.num_envs, dtype=torch.bool)
        self._paths = gather_paths([s.path for s in scenes], [s.start for s in scenes], longest)
        num_frames = NUM_PAST + longest + 1
        self._vehicle = draw(self.config.vehicle, rngs, longest + 1, num_frames)
        # Generators of their own: what cameras add must not change what is drawn elsewhere.
        of_cameras = [rng.spawn(1)[0] for rng in rngs]
        self._looks = draw_looks(self.config.photometry, of_cameras)
        of_noise = [draw_places(rng, len(self.world.cameras) * num_frames) for rng in of_cameras]
        self._places = np.stack(of_noise).reshape(len(rngs), num_frames, -1)
        self._lateral = torch.tensor([s.lateral_offset for s in scenes], dtype=torch.float64)
        self._heading = torch.tensor([s.heading_offset for s in scenes], dtype=torch.float64)
        self._past_actions = past_actions(self._paths, self._lateral, self._vehicle)
        self._last_action = self._past_actions[:, -1]
        pose = self._paths.displaced(NUM_PAST, self._lateral, self._heading)
        self._offset = self._paths.project(pose, self._paths.station[:, NUM_PAST])
        speed = self._paths.speed[:, NUM_PAST]
        curvature = self._paths.curvature[:, NUM_PAST]
        curvature = curvature / (1 - curvature * self._lateral)
        self._state = VehicleState(
            pose=pose,
            speed=speed * self._paths.stretch(self._offset),
            curvature=curvature - self._vehicle.wind[:, 0] / speed.clamp(min=MIN_WIND_SPEED) ** 2,
            commands=self._past_actions[:, -NUM_COMMANDS:, 0].flip(1),
        )

    def _drive(self, action: Tensor) -> Tensor:
        """Move the active cars by one step; return the lateral jerk of their commands, m/s^3."""
        before, offset = self._state, self._offset
        row = NUM_PAST + self._step
        command = limit(action, before)
        distance = None
        if self.config.longitudinal == "recorded":
            acceleration = self._paths.speed[:, row + 1] - self._paths.speed[:, row]
            command = torch.stack([command[:, 0], acceleration / STEP], dim=-1)
            ahead = self._paths.station[:, row + 1] - offset.station
            distance = (ahead * self._paths.stretch(offset)).clamp(min=0.0)
        after = advance(before, command, self._vehicle, self._step, distance)
        guess = offset.station + STEP * after.speed / self._paths.stretch(offset)
        offset = self._paths.project(after.pose, guess)
        if distance is not None:
            speed = self._paths.speed[:, row + 1] * self._paths.stretch(offset)
            after = replace(after, speed=speed)
        self._state = chosen(self._active, after, before)
        self._offset = PathOffset(
            *(torch.where(self._active, *pair) for pair in zip(offset, self._offset, strict=True))
        )
        self._last_action = torch.where(self._active[:, None], command, self._last_action)
        return (command[:, 0] - before.commands[:, 0]) * before.speed**2 / STEP

    def _teach(self) -> dict[str, np.ndarray]:
        with self._timed("teacher"):
            targets = self._targets()
            return {
                "teacher_plan": targets.plan.float().numpy(),
                "teacher_plan_valid": targets.valid.numpy(),
                "teacher_action": targets.action.float().numpy(),
                "lateral_error": self._offset.lateral.float().numpy(),
                "heading_error": self._offset.heading.float().numpy(),
                "station_error": self._station_error.float().numpy(),
                "pose": self._state.pose.numpy().copy(),
                "active": self._active.numpy().copy(),
            }

    @property
    def _station_error(self) -> Tensor:
        """Metres that the cars are ahead of the recorded ones."""
        return self._offset.station - self._paths.station[:, NUM_PAST + self._step]

    def _targets(self) -> Targets:
        now = self._state, self._vehicle, self._step, self.config.lateral_rate
        if self.config.teacher == "path":
            return teach(self._paths, self._offset, *now)
        assert isinstance(self.world, PlanningWorld)
        return follow(torch.from_numpy(self.world.plan), *now)

    def _observe(self, active: Tensor) -> Observation:
        row = NUM_PAST + self._step
        return self._frame(row, self._state.pose, self._state.speed, self._last_action, active)

    def _look_back(self, row: int) -> Observation:
        """Show a row before the start: the recorded pose, displaced as the start is."""
        pose = self._paths.displaced(row, self._lateral, self._heading)
        speed = self._paths.speed[:, row] * (1 - self._paths.curvature[:, row] * self._lateral)
        return self._frame(row, pose, speed, self._past_actions[:, row], self._active)

    def _frame(
        self, row: int, pose: Tensor, speed: Tensor, last_action: Tensor, active: Tensor
    ) -> Observation:
        lateral, turn = self._vehicle.jitter[:, row].unbind(-1)
        x, y, yaw = pose.unbind(-1)
        shaken = torch.stack([x - lateral * yaw.sin(), y + lateral * yaw.cos(), yaw + turn], -1)
        with self._timed("render"):
            images = self.world.render(shaken, row - NUM_PAST, active)
            if not self.config.photometry.is_neutral:
                for camera, name in enumerate(images):
                    images[name] = develop(images[name], self._looks, self._places[:, row, camera])
        if isinstance(self.world, TimedWorld):
            for phase, seconds in self.world.seconds.items():
                self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        return {
            **images,
            "speed": speed[:, None].clamp(0.0, MAX_SPEED).float().numpy(),
            "desire": self._paths.told[:, row].float().numpy(),
            "last_action": last_action.float().numpy(),
        }

    def _checked(self, actions: np.ndarray) -> Tensor:
        action = torch.as_tensor(np.asarray(actions), dtype=torch.float64)
        if action.shape != (self.num_envs, 2) or not action.isfinite().all():
            raise ValueError(
                f"actions are {tuple(action.shape)}, finite: {bool(action.isfinite().all())}; "
                f"{self.num_envs} scenes need ({self.num_envs}, 2) finite numbers"
            )
        return action

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - begin


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of `reset` that would be ignored."""
    if "reset_mask" in options:
        raise ValueError(
            "options['reset_mask'] cannot be followed: all scenes of a batch start together, one "
            "that is over stands still until then; reset when none is active, without it"
        )
    if unknown := [name for name in options if name not in OPTIONS]:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"reset has no option {names}; known are {', '.join(OPTIONS)}")


def past_actions(paths: Paths, lateral: Tensor, vehicle: Vehicle) -> Tensor:
    """Invert the car along the recording: the commands that made it drive there, (batch, 10, 2).

    Command k was sent one step before row k (the last one a step before the start). It steers what
    the path, displaced by `lateral` m, asks for a latency later, wind and gain accounted for.
    """
    sent = STEP * (torch.arange(NUM_PAST + 1, dtype=torch.float64) - NUM_PAST - 1)
    sent = sent.expand(len(lateral), -1)
    latency = (vehicle.delay + vehicle.lag)[:, None]
    effect = paths.at_time(sent + latency + STEP / 2)
    curvature = paths.at_station(effect.station).curvature
    curvature = curvature / (1 - curvature * lateral[:, None])
    drift = vehicle.wind[:, :1] / effect.speed.clamp(min=MIN_WIND_SPEED) ** 2
    command = (curvature - drift) / vehicle.gain[:, None]
    return torch.stack([command, paths.at_time(sent).acceleration], dim=-1)


def chosen(mask: Tensor, one: VehicleState, other: VehicleState) -> VehicleState:
    """Take the cars of `one` where the mask is set, of `other` elsewhere."""
    return VehicleState(
        pose=torch.where(mask[:, None], one.pose, other.pose),
        speed=torch.where(mask, one.speed, other.speed),
        curvature=torch.where(mask, one.curvature, other.curvature),
        commands=torch.where(mask[:, None], one.commands, other.commands),
    )


def merged(mask: np.ndarray, new: Observation, old: Observation) -> Observation:
    """Take rows of `new` where the mask is set, of `old` elsewhere; never the arrays of `old`."""
    if mask.all():
        return new
    for key, value in new.items():
        value[~mask] = old[key][~mask]
    return new


class DrivingEnv(gymnasium.Env):
    """One scene at a time: `DrivingVectorEnv` with a batch of one, its first axis removed.

    info has no `seconds`, which would make equal episodes differ; the attribute `seconds` has them.
    `render` gives the wide image (H, W, 3).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        world: World,
        sampler: SceneSource,
        config: EnvConfig | None = None,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        self._batch = DrivingVectorEnv(world, sampler, config, num_envs=1)
        self.config, self.render_mode = self._batch.config, render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of the last call by phase."""
        return self._batch.seconds

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new scene; `options["scenes"]` may give it, a list of one."""
        super().reset(seed=seed)
        observation, info = self._batch.reset(seed=seed, options=options)
        self._image = observation["wide"][0].transpose(1, 2, 0)
        context = {key: value[:, 0] for key, value in info.pop("context").items()}
        return first(observation), first(info) | {"context": context}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Drive one `STEP`."""
        observation, reward, left, arrived, info = self._batch.step(np.asarray(action)[None])
        self._image = observation["wide"][0].transpose(1, 2, 0)
        return first(observation), float(reward[0]), bool(left[0]), bool(arrived[0]), first(info)

    def close(self) -> None:
        """Close the world too, if it can be (a `DrivingVectorEnv` leaves that to its owner)."""
        if isinstance(self._batch.world, ClosableWorld):
            self._batch.world.close()

    def render(self) -> np.ndarray | None:
        """Return the last wide image, uint8 (H, W, 3), when made with `rgb_array`."""
        return self._image if self.render_mode == "rgb_array" else None


def first(batch: dict[str, Any]) -> dict[str, Any]:
    """Take the only row of every array; what is not an array (`seconds`) stays out."""
    return {key: value[0] for key, value in batch.items() if isinstance(value, np.ndarray)}

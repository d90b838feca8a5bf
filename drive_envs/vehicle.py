"""The simulated car: a kinematic bicycle behind a steering that is late, slow and inexact.

Every step of `STEP` = 0.2 s brings one command (desired curvature, desired acceleration), held
until the next; motion is integrated in four sub-steps (20 Hz), each as the paper's authors have it:

    d = v dt,  yaw' = yaw + d k,  (x', y') = (x, y) + d (cos, sin)(yaw + d k / 2)

The curvature that drives is k = kappa + wind / max(v, 5)^2, where kappa follows gain * command,
`delay` seconds later, through a first-order lag. `actions_from_poses` is the inverse.

State tensors are float64 with the scenes along the first axis. The module knows no road: how far
the car has to travel to keep up with a recording is told it (`distance`).
"""

from dataclasses import dataclass
from math import radians
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drive_envs.plan import MIN_SPEED, STEP

NUM_SUBSTEPS = 4
SUBSTEP = STEP / NUM_SUBSTEPS
NUM_COMMANDS = 4  # remembered; enough for any delay up to MAX_DELAY
MAX_DELAY = (NUM_COMMANDS - 1) * STEP
MIN_WIND_SPEED = 5.0  # m/s; wind turns a slower car no more than one at this speed
MAX_CURVATURE = 0.2  # 1/m
MAX_LATERAL_ACCELERATION = 3.0  # m/s^2
MAX_LATERAL_JERK = 5.0  # m/s^3
MIN_ACCELERATION, MAX_ACCELERATION = -4.0, 3.0  # m/s^2; published nowhere, decided here

Range = tuple[float, float]
Scenes = Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class VehicleConfig:
    """What is drawn anew for every scene, each uniformly from (low, high); see `preset`.

    delay: s from a command to its first effect, at most 0.6.
    lag: s, time constant of the steering.
    gain: factor on the commanded curvature; `is_gain_extreme` draws one of the two ends only.
    wind: m/s^2 to the left. Half of it stays for the scene, half changes with gusts of 1 to 4 s.
    jitter_lateral, jitter_yaw: m and rad, standard deviation of what is added to the rendered pose
        (not to the motion) at every step.
    """

    delay: Range = (0.0, 0.0)
    lag: Range = (0.0, 0.0)
    gain: Range = (1.0, 1.0)
    is_gain_extreme: bool = False
    wind: Range = (0.0, 0.0)
    jitter_lateral: Range = (0.0, 0.0)
    jitter_yaw: Range = (0.0, 0.0)

    def __post_init__(self) -> None:
        bounds = {
            "delay": (0.0, MAX_DELAY),
            "lag": (0.0, 2.0),
            "gain": (0.1, 10.0),
            "wind": (-MAX_LATERAL_ACCELERATION, MAX_LATERAL_ACCELERATION),
            "jitter_lateral": (0.0, 1.0),
            "jitter_yaw": (0.0, 0.5),
        }
        for name, (least, most) in bounds.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"vehicle.{name} is ({low}, {high}); it must rise within [{least}, {most}]"
                )


def preset(kind: Literal["plain", "training", "realistic"]) -> VehicleConfig:
    """Return the ideal car, the randomised one to learn in, or the hard one to be scored in."""
    match kind:
        case "plain":
            return VehicleConfig()
        case "training":
            return VehicleConfig(
                delay=(0.0, 0.3),
                lag=(0.0, 0.3),
                gain=(0.85, 1.15),
                wind=(-0.2, 0.2),
                jitter_lateral=(0.0, 0.02),
                jitter_yaw=(0.0, radians(0.1)),
            )
        case "realistic":
            return VehicleConfig(
                delay=(0.2, 0.2),
                lag=(0.2, 0.2),
                gain=(0.9, 1.1),
                is_gain_extreme=True,
                wind=(-0.2, 0.2),
                jitter_lateral=(0.02, 0.02),
                jitter_yaw=(radians(0.1), radians(0.1)),
            )
    raise ValueError(f"vehicle preset '{kind}' is unknown: use plain, training or realistic")


@dataclass(frozen=True, kw_only=True)
class Vehicle:
    """The cars of a batch as drawn: constants (batch,), and disturbances for every step.

    delay, lag: s. gain: factor. wind: (batch, num_steps) m/s^2. jitter: (batch, num_frames, 2), the
    lateral (m) and yaw (rad) error of each rendered pose, context frames first.
    """

    delay: Scenes
    lag: Scenes
    gain: Scenes
    wind: Float[Tensor, "batch num_steps"]
    jitter: Float[Tensor, "batch num_frames 2"]

    @property
    def response(self) -> Scenes:
        """Share of the way to its target that the lagged curvature goes in one sub-step."""
        return torch.where(self.lag > 0, -torch.expm1(-SUBSTEP / self.lag), 1.0)


def draw(
    config: VehicleConfig, rngs: list[np.random.Generator], num_steps: int, num_frames: int
) -> Vehicle:
    """Draw one car from each generator, so that a scene's car is the same in any batch."""
    constants, winds, jitters = [], [], []
    for rng in rngs:
        gain = rng.choice(config.gain) if config.is_gain_extreme else rng.uniform(*config.gain)
        constants.append((rng.uniform(*config.delay), rng.uniform(*config.lag), gain))
        scale = (rng.uniform(*config.jitter_lateral), rng.uniform(*config.jitter_yaw))
        # Streams of their own: how long a series is must not change what is drawn elsewhere.
        of_wind, of_jitter = rng.spawn(2)
        steady, changing = of_wind.uniform(*config.wind), gusts(config.wind, num_steps, of_wind)
        winds.append(0.5 * steady + 0.5 * changing)
        jitters.append(scale * of_jitter.standard_normal((num_frames, 2)))
    delay, lag, gain = torch.tensor(constants, dtype=torch.float64).unbind(-1)
    wind, jitter = torch.from_numpy(np.stack(winds)), torch.from_numpy(np.stack(jitters))
    return Vehicle(delay=delay, lag=lag, gain=gain, wind=wind, jitter=jitter)


def gusts(wind: Range, num_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (num_steps,) of wind that changes every 1 to 4 s to another value of the range.

    A longer series begins with the shorter one.
    """
    shortest, longest = round(1.0 / STEP), round(4.0 / STEP)
    length, value = rng.random((num_steps // shortest + 1, 2)).T
    lengths = np.floor(shortest + (longest + 1 - shortest) * length).astype(int)
    return np.repeat(wind[0] + (wind[1] - wind[0]) * value, lengths)[:num_steps]


@dataclass(frozen=True, kw_only=True)
class VehicleState:
    """Where the cars are, and what they have been told.

    pose (batch, 3): world x, y, yaw. speed: m/s. curvature: of the steering, 1/m, without wind.
    commands (batch, NUM_COMMANDS): curvatures sent, newest first, each `STEP` older than the last.
    """

    pose: Float[Tensor, "batch 3"]
    speed: Scenes
    curvature: Scenes
    commands: Float[Tensor, "batch 4"]


def limit(action: Float[Tensor, "batch 2"], state: VehicleState) -> Float[Tensor, "batch 2"]:
    """Clip (curvature, acceleration) to what the car accepts after its last command.

    First lateral jerk (5 m/s^3 in openpilot, so 1 m/s^2 a step), then lateral acceleration
    (3 m/s^2), then curvature (0.2 1/m), at a speed of at least 1 m/s.
    """
    squared_speed = state.speed.clamp(min=MIN_SPEED) ** 2
    reach = MAX_LATERAL_JERK * STEP / squared_speed
    most = (MAX_LATERAL_ACCELERATION / squared_speed).clamp(max=MAX_CURVATURE)
    last = state.commands[:, 0]
    curvature = torch.clamp(action[:, 0], last - reach, last + reach)
    curvature = torch.clamp(curvature, -most, most)
    return torch.stack([curvature, action[:, 1].clamp(MIN_ACCELERATION, MAX_ACCELERATION)], dim=-1)


def advance(
    state: VehicleState,
    action: Float[Tensor, "batch 2"],
    vehicle: Vehicle,
    step: int,
    distance: Scenes | None = None,
) -> VehicleState:
    """Send the cars an action (already limited) and let them move for one `STEP`.

    With `distance`, each travels that many metres at constant speed and the acceleration is
    ignored; the caller then says what the speed is after the step.
    """
    commands = torch.cat([action[:, :1], state.commands[:, :-1]], dim=1)
    middle = SUBSTEP * (torch.arange(NUM_SUBSTEPS, dtype=torch.float64) + 0.5)
    if distance is None:
        speed = (state.speed[:, None] + action[:, 1:] * middle).clamp(min=0.0)
        speed_after = (state.speed + action[:, 1] * STEP).clamp(min=0.0)
    else:
        speed_after = distance / STEP
        speed = speed_after[:, None].expand(-1, NUM_SUBSTEPS)
    applied = applied_commands(commands, vehicle.delay, middle)
    poses, curvature = roll(state, applied, vehicle, vehicle.wind[:, step], speed)
    return VehicleState(
        pose=poses[:, -1], speed=speed_after, curvature=curvature, commands=commands
    )


def predict(
    state: VehicleState,
    vehicle: Vehicle,
    step: int,
    horizon: Scenes,
    acceleration: Scenes,
) -> Float[Tensor, "batch 3"]:
    """Foretell the poses in `horizon` seconds, to the nearest sub-step, if no new command came.

    Speed changes at the given acceleration; the wind stays as it is.
    """
    num_substeps = max(round(float(horizon.max()) / SUBSTEP), 1)
    middle = SUBSTEP * (torch.arange(num_substeps, dtype=torch.float64) + 0.5)
    speed = (state.speed[:, None] + acceleration[:, None] * middle).clamp(min=0.0)
    # The newest command was sent one step ago.
    applied = applied_commands(state.commands, vehicle.delay, middle + STEP)
    poses, _ = roll(state, applied, vehicle, vehicle.wind[:, step], speed)
    poses = torch.cat([state.pose[:, None], poses], dim=1)
    return poses[torch.arange(len(poses)), (horizon / SUBSTEP).round().long()]


def applied_commands(
    commands: Float[Tensor, "batch 4"], delay: Scenes, time: Float[Tensor, " substep"]
) -> Float[Tensor, "batch substep"]:
    """Find which command is in effect at `time` seconds after the newest was sent."""
    age = torch.ceil((delay[:, None] - time) / STEP - 1e-9).clamp(0, NUM_COMMANDS - 1)
    return commands.gather(1, age.long())


def roll(
    state: VehicleState,
    applied: Float[Tensor, "batch substep"],
    vehicle: Vehicle,
    wind: Scenes,
    speed: Float[Tensor, "batch substep"],
) -> tuple[Float[Tensor, "batch substep 3"], Scenes]:
    """Integrate sub-steps with these commands in effect: pose after each, steering after all."""
    curvature, response, curvatures = state.curvature, vehicle.response, []
    for target in (vehicle.gain[:, None] * applied).unbind(1):
        curvature = torch.lerp(curvature, target, response)
        curvatures.append(curvature)
    distance = SUBSTEP * speed
    drift = wind[:, None] / speed.clamp(min=MIN_WIND_SPEED) ** 2
    turn = distance * (torch.stack(curvatures, dim=1) + drift)
    yaw = state.pose[:, 2:] + turn.cumsum(dim=1)
    heading = yaw - turn / 2
    x = state.pose[:, :1] + (distance * heading.cos()).cumsum(dim=1)
    y = state.pose[:, 1:2] + (distance * heading.sin()).cumsum(dim=1)
    return torch.stack([x, y, yaw], dim=-1), curvature


def actions_from_poses(
    poses: Float[Tensor, "*batch num_frames 3"], speed: Float[Tensor, "*batch num_frames"]
) -> Float[Tensor, "*batch num_frames-1 2"]:
    """Invert an ideal car: the actions that lead from each pose, `STEP` apart, to the next.

    The chord of a step is shorter than the distance travelled by sinc(turn/2) / sinc(turn/8), four
    sub-steps being four chords. Below `MIN_SPEED` the curvature is computed as if at that speed.
    """
    turn = poses[..., 1:, 2] - poses[..., :-1, 2]
    turn = torch.atan2(turn.sin(), turn.cos())
    chord = (poses[..., 1:, :2] - poses[..., :-1, :2]).norm(dim=-1)
    parts = 2 * NUM_SUBSTEPS
    distance = chord * torch.sinc(turn / (parts * torch.pi)) / torch.sinc(turn / (2 * torch.pi))
    curvature = turn / distance.clamp(min=MIN_SPEED * STEP)
    return torch.stack([curvature, speed.diff(dim=-1) / STEP], dim=-1)

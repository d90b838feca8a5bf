"""Messages between processes: what an actor returns to the learner, and asks of a world model.

A message is a frozen dataclass of contiguous numpy arrays, [time, batch, ...] or [batch, ...], so
that Ray moves it without pickling its parts and reads it back without a copy. It does not know who
made it or what becomes of it: no Ray, no torch, no network.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

NUM_CONTEXT = 9  # recorded frames before the first acted one: with it, 2 s at 5 Hz

Scalar = Float32[np.ndarray, "time batch"]
Pair = Float32[np.ndarray, "time batch 2"]
Flag = Bool[np.ndarray, "time batch"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of B scenes, with all that a learner needs to follow them again.

    Time runs over the frames C context, T acted and 1 final (to bootstrap from) in `observation`,
    and over the T acted steps elsewhere: step t acts on frame C + t and leads to frame C + t + 1.

    observation: per key (C+T+1, B, ...), as the environment gives them: `narrow`, `wide` uint8
        (3, H, W); `speed` m/s (1,), `desire` (3,), `last_action` (2,) float32.
    action: command sent to the environment: curvature 1/m, acceleration m/s^2.
    action_normalized, log_probs: the same in the units of `drive_actors.action`, and the log
        density of each of its two numbers under the policy that acted.
    active: whether the scene was still running when step t began. T is the same for all scenes; a
        scene that is over repeats its last observation, and all else in its rows is zero.
    terminated, truncated: set on the scene's last active step only.
    teacher_plan (SI, float32), teacher_plan_valid, teacher_action (as `action`), lateral_error (m):
        what the teacher wanted, and how far off the path the car was, at frame C + t.
    recording: number of the recording that each scene is part of.
    noise_seed: seed of the bottleneck noise, see `drive_actors.bottleneck.noise`.
    policy_version: of the weights that acted. actor: index in the pool.
    seconds: wall time by phase; `total` holds all others, `env/...` are parts of `env`.
    """

    observation: dict[str, np.ndarray]
    action: Pair
    action_normalized: Pair
    log_probs: Pair
    reward: Scalar
    terminated: Flag
    truncated: Flag
    active: Flag
    teacher_plan: Float32[np.ndarray, "time batch 33 15"]
    teacher_plan_valid: Bool[np.ndarray, "time batch 33"]
    teacher_action: Pair
    lateral_error: Scalar
    recording: Int64[np.ndarray, " batch"]
    noise_seed: int
    policy_version: int
    actor: int
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        frames = {key: len(value) for key, value in self.observation.items()}
        if set(frames.values()) != {NUM_CONTEXT + self.num_steps + 1}:
            raise ValueError(
                f"Rollout.observation holds {frames} frames, but {self.num_steps} steps need "
                f"{NUM_CONTEXT} of context and one final: {NUM_CONTEXT + self.num_steps + 1}"
            )

    @property
    def num_steps(self) -> int:
        """T."""
        return self.active.shape[0]

    @property
    def num_scenes(self) -> int:
        """B."""
        return self.active.shape[1]

    @property
    def num_active_steps(self) -> int:
        """Environment steps that were really taken, over all scenes."""
        return int(self.active.sum())

    @property
    def num_bytes(self) -> int:
        """Size of the arrays."""
        arrays = [value for value in vars(self).values() if isinstance(value, np.ndarray)]
        return sum(array.nbytes for array in [*arrays, *self.observation.values()])

    @property
    def needed_frames(self) -> Bool[np.ndarray, "frame batch"]:
        """Frames that some output of an active step, or its bootstrap, depends on."""
        needed = np.ones((NUM_CONTEXT + self.num_steps + 1, self.num_scenes), bool)
        needed[NUM_CONTEXT + 1 :] = self.active
        return needed


# Sizes that need not agree within a message are underscored: a service says what it makes of them.
Frames = UInt8[np.ndarray, "_scene _frame 2 3 _height _width"]  # narrow and wide camera
Poses = Float64[np.ndarray, "_scene _frame 3"]  # x, y in m, yaw in rad, in any one world
Numbers = Int64[np.ndarray, " _scene"]


@dataclass(frozen=True, kw_only=True)
class OpenSession:
    """Begin to drive some scenes of one driver in a world model.

    session: a name of the driver's own making, which no other has. context: the frames before the
    first to be generated, at least as many as a frame sees and itself. anchors: frames of the
    future, the first of them `wait` frames after the last of the context. seed: of each scene's
    noise; with `frame`, the number of the last context frame, it decides what will be generated,
    so that a session that was lost and is opened anew goes on as it would have.
    """

    session: str
    context: Frames
    context_poses: Poses
    anchors: Frames
    anchor_poses: Poses
    wait: Numbers
    seed: Numbers
    frame: int = 0

    @property
    def num_scenes(self) -> int:
        """Scenes of the session."""
        return len(self.context)


@dataclass(frozen=True, kw_only=True)
class StepSession:
    """Ask what some scenes of a session look like from poses, one frame after the last.

    frame: number of the frame asked for. Asking for the last one again gives the same answer: a
    request may be repeated when its answer was lost. seen: frames that were seen there; they are
    taken as they are and nothing is generated, only planned.
    """

    session: str
    frame: int
    scenes: Numbers
    poses: Float64[np.ndarray, "_scene 3"]
    seen: UInt8[np.ndarray, "_scene 2 3 _height _width"] | None = None


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the scenes asked for look like, and the plan from there.

    images: None where they were given. plan: SI units, the likeliest one. seconds: wall time by
    phase, `queue` being the wait for other sessions' requests. num_batched: scenes that were
    generated together.
    """

    images: UInt8[np.ndarray, "scene 2 3 height width"] | None
    plan: Float32[np.ndarray, "scene 33 15"]
    seconds: dict[str, float]
    num_batched: int


class SessionLostError(LookupError):
    """The service does not know the session, or not at this frame: open it anew."""


class NoRoomError(RuntimeError):
    """More scenes than a service has memory for."""


class BadRequestError(ValueError):
    """A request that no world model could answer."""

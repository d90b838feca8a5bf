"""One rollout: a batch of scenes driven from reset to their anchors, and everything written down.

    context 0 .. C-1 | C  -u_0-> C+1 -u_1-> ... -> C+T      frames, C = 9
                     | step 0    step 1                     steps

Frames become tokens once, when they are first seen, and the last of them are the history, zeros
where a policy reads further back than the drive began. The noise of the bottleneck is drawn up
front from the rollout's seed, frame by frame, so that a learner that knows the seed repeats every
token: at equal weights its importance ratios are 1.

The number of steps is fixed, for arrays that are all alike; scenes that are over earlier are
masked by `active`. It does not know Ray, nor what is learnt from what it records.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from drive_actors.action import command_from_normalized, log_probs, normalized_from_command
from drive_actors.bottleneck import noise as bottleneck_noise
from drive_actors.policy import Policy
from drive_envs.environment import DrivingVectorEnv
from drive_envs.protocol import NUM_CONTEXT, Rollout

Observation = Mapping[str, np.ndarray]
TEACHING = ("teacher_plan", "teacher_plan_valid", "teacher_action", "lateral_error")


class Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        begin = perf_counter()
        yield
        self.seconds[name] += perf_counter() - begin

    def add_parts(self, name: str, parts: Mapping[str, float]) -> None:
        """Add what a phase says of its own parts."""
        for part, seconds in parts.items():
            self.seconds[f"{name}/{part}"] += seconds


class Frames:
    """The observations of a rollout, (C+T+1, batch, ...), filled in order."""

    def __init__(self, num_frames: int, first: Observation) -> None:
        self.arrays = {
            key: np.empty((num_frames, *value.shape), value.dtype) for key, value in first.items()
        }

    def put(self, frame: int | slice, observation: Observation) -> None:
        """Copy one frame, or one to several; the environment may reuse its own arrays."""
        for key, array in self.arrays.items():
            array[frame] = observation[key]

    def tensors(self, begin: int, end: int) -> dict[str, Tensor]:
        """Return frames [begin, end) with time and batch as one axis, without a copy."""
        return {
            key: torch.from_numpy(array[begin:end]).flatten(0, 1)
            for key, array in self.arrays.items()
        }


class Steps:
    """Rows of T steps by name, (T, batch, ...), zero where a scene is not active."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.arrays: dict[str, np.ndarray] = {}

    def put(self, step: int, active: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Write one step of the active scenes; floats become float32."""
        for name, value in values.items():
            dtype = np.float32 if value.dtype.kind == "f" else value.dtype
            if name not in self.arrays:
                self.arrays[name] = np.zeros((self.num_steps, *value.shape), dtype)
            self.arrays[name][step, active] = value[active]


class Memory:
    """The tokens of the last frames, and the noise they are to be made with."""

    def __init__(self, policy: Policy, noise: Tensor | None) -> None:
        self.policy, self.noise = policy, noise

    def start(self, context: dict[str, Tensor], batch: int) -> None:
        """Encode the nine frames of context at once."""
        noise = None if self.noise is None else self.noise[:NUM_CONTEXT].flatten(0, 1)
        tokens = self.policy.tokens(context, noise).unflatten(0, (NUM_CONTEXT, batch))
        missing = self.policy.config.num_past + 1 - NUM_CONTEXT
        before = tokens.new_zeros(missing, *tokens.shape[1:])
        self.history = torch.cat([before, tokens]).transpose(0, 1)

    def see(self, frame: int, observation: dict[str, Tensor]) -> Tensor:
        """Encode one frame and return the history (batch, past + 1, dim) that ends with it."""
        noise = None if self.noise is None else self.noise[frame]
        token = self.policy.tokens(observation, noise)
        self.history = torch.cat([self.history[:, 1:], token[:, None]], dim=1)
        return self.history


@torch.inference_mode()
def collect(
    env: DrivingVectorEnv,
    policy: Policy,
    *,
    version: int,
    actor: int,
    seed: int,
    num_steps: int,
    deterministic: bool = False,
    teacher_share: float = 0.0,
) -> Rollout:
    """Drive one batch of scenes for `num_steps` steps, or until all are over.

    The seed decides the scenes, the bottleneck's noise and the actions drawn. A scene that is still
    running after `num_steps` is cut there, neither terminated nor truncated. `deterministic` drives
    as in evaluation: no noise, the mean action; such a rollout is to look at, not to learn from.
    `teacher_share` of the steps are driven as the teacher says (DAgger's mixture); of those, too,
    the log density is the policy's.
    """
    if num_steps < 1:
        raise ValueError(f"a rollout needs num_steps of 1 or more, got {num_steps}")
    clock, steps = Clock(), Steps(num_steps)
    begin = perf_counter()
    with clock.phase("env"):
        observation, info = env.reset(seed=seed)
    clock.add_parts("env", info["seconds"])
    recording = info["recording"]
    num_frames, batch = NUM_CONTEXT + num_steps + 1, env.num_envs
    frames = Frames(num_frames, observation)
    for frame in range(NUM_CONTEXT):
        frames.put(frame, {key: value[frame] for key, value in info["context"].items()})
    with clock.phase("policy"):
        unit_noise = torch.from_numpy(
            np.random.default_rng([seed, 1]).standard_normal((num_steps, batch, 2), np.float32)
        )
        taught = np.random.default_rng([seed, 2]).random((num_steps, batch)) < teacher_share
        num_features = policy.config.num_features
        noise = None if deterministic else bottleneck_noise(seed, num_frames, batch, num_features)
        memory = Memory(policy, noise)
        memory.start(frames.tensors(0, NUM_CONTEXT), batch)

    active, step = np.ones(batch, bool), 0
    while active.any() and step < num_steps:
        frame = NUM_CONTEXT + step
        frames.put(frame, observation)
        steps.put(step, active, {name: info[name] for name in TEACHING} | {"active": active})
        with clock.phase("policy"):
            seen = frames.tensors(frame, frame + 1)
            draw = torch.zeros(batch, 2) if deterministic else unit_noise[step]
            teacher = np.where(taught[step, :, None], info["teacher_action"], np.nan)
            chosen = act(policy, memory.see(frame, seen), seen["speed"], draw, teacher)
        with clock.phase("env"):
            observation, reward, terminated, truncated, info = env.step(chosen["action"])
        clock.add_parts("env", info["seconds"])
        outcome = {"reward": reward, "terminated": terminated, "truncated": truncated}
        steps.put(step, active, chosen | outcome)
        active, step = active & ~(terminated | truncated), step + 1
    frames.put(slice(NUM_CONTEXT + step, None), observation)
    return Rollout(
        observation=frames.arrays,
        **steps.arrays,
        recording=recording,
        noise_seed=seed,
        policy_version=version,
        actor=actor,
        seconds={**clock.seconds, "total": perf_counter() - begin},
    )


def act(
    policy: Policy, history: Tensor, speed: Tensor, draw: Tensor, teacher: np.ndarray
) -> dict[str, np.ndarray]:
    """Choose u = mean + std * draw; return it, the command it means and its log densities.

    Where `teacher` has a command (batch, 2), and not NaN, that is chosen.
    """
    mean, log_std = policy.act(history)
    commanded = normalized_from_command(torch.from_numpy(teacher), speed)
    normalized = torch.where(commanded.isnan(), mean + log_std.exp() * draw, commanded)
    return {
        "action": command_from_normalized(normalized, speed).numpy(),
        "action_normalized": normalized.numpy(),
        "log_probs": log_probs(mean, log_std, normalized).numpy(),
    }

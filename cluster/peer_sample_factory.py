"""Sample Factory in `drive bench peers`, run by an interpreter that has it, for our lock cannot.

    PYTHON cluster/peer_sample_factory.py REPOSITORY FD

It speaks as `cluster.peer_process` does, but a measurement starts and stops a whole run, for a run
cannot be held. PYTHON needs sample-factory, numpy below 2, torch, einops, jaxtyping, safetensors
and scipy; from REPOSITORY it takes the network alone. Sample Factory has its own heads and losses
(APPO with GAE) around it, and is handed the images as bytes, as the others are.
"""

# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import json
import os
import sys
import tempfile
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.encoder import Encoder
from sample_factory.train import make_runner

Point = dict[str, Any]
POINT = "DRIVE_BENCH_POINT"  # where its processes find the point
NUM_DRAWN = 4
NUM_EVENTS = 3
WARM_UP = 3.0  # seconds from the first gradient step


class SleepingScenes(gymnasium.Env):
    """`drive_envs.sleeping` as agents of one environment, which is stepped as one."""

    def __init__(self, point: Point) -> None:
        self.point, self.num_agents, self.is_multiagent = point, point["scenes"], True
        image = spaces.Box(0, 255, (3, point["height"], point["width"]), np.uint8)

        def box(num: int) -> spaces.Box:
            return spaces.Box(-100.0, 100.0, (num,), np.float32)

        self.observation_space = spaces.Dict(
            {
                "narrow": image,
                "wide": image,
                "speed": box(1),
                "desire": box(3),
                "last_action": box(2),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        generator = np.random.default_rng(0)
        size = (NUM_DRAWN, self.num_agents, *image.shape)
        self.images = {
            name: generator.integers(0, 256, size, np.uint8) for name in ("narrow", "wide")
        }
        self.count = 0

    def observe(self) -> list[dict[str, np.ndarray]]:
        """One dict an agent."""
        frame = self.count % NUM_DRAWN
        return [
            {
                **{name: drawn[frame, agent] for name, drawn in self.images.items()},
                "speed": np.full(1, 10.0, np.float32),
                "desire": np.array([1, 0, 0], np.float32),
                "last_action": np.zeros(2, np.float32),
            }
            for agent in range(self.num_agents)
        ]

    def reset(self, **kwargs: Any) -> Any:
        return self.observe(), [{} for _ in range(self.num_agents)]

    def step(self, actions: Any) -> Any:
        if self.point["step_seconds"]:
            time.sleep(self.point["step_seconds"])
        self.count += 1
        num, is_over = self.num_agents, self.count % self.point["fragment"] == 0
        return self.observe(), [1.0] * num, [False] * num, [is_over] * num, [{}] * num

    def render(self) -> None:
        return None


class PolicyEncoder(Encoder):
    """Our network up to its heads."""

    def __init__(self, cfg: Any, obs_space: Any) -> None:
        super().__init__(cfg)
        from drive_actors.policy import Policy
        from drive_actors.policy_file import config_from_json

        point = json.loads(os.environ[POINT])
        self.policy = Policy(config_from_json(point["policy"]))

    def get_out_size(self) -> int:
        return self.policy.config.model_dim

    def type_for_input_tensor(self, input_tensor_name: str) -> torch.dtype:
        return torch.uint8 if input_tensor_name in ("narrow", "wide") else torch.float32

    def forward(self, seen: Any) -> torch.Tensor:
        tokens = self.policy.tokens(dict(seen), None)
        num_past = self.policy.config.num_past
        history = torch.nn.functional.pad(tokens[:, None], (0, 0, num_past, 0))
        return self.policy.last(history)


class Watch(AlgoObserver):
    """Counts from the end of one gradient step to that of another, and then stops the run."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.times, self.lags = seconds, [], []
        self.before: tuple[float, int, int, int] | None = None
        self.figures: dict[str, float] = {}

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        now = time.monotonic()
        self.times.append(now)
        here = (now, len(self.times), runner.env_steps.get(0, 0), runner.samples_collected[0])
        if self.before is None:
            if now - self.times[0] >= WARM_UP:
                self.before = here
            return
        self.lags.append(runner.policy_lag[0].get("version_diff_avg", float("nan")))
        elapsed, steps, learnt, driven = (b - a for a, b in zip(self.before, here, strict=True))
        if elapsed >= self.seconds and steps >= NUM_EVENTS and not self.figures:
            self.figures = {
                "steps_per_second": learnt / elapsed,
                "driven_per_second": driven / elapsed,
                "learner_steps_per_second": steps / elapsed,
                "policy_lag": float(np.nanmean(self.lags)),
                "dropped_per_second": 0.0,
            }
            runner._stop_training()


def measure(point: Point, seconds: float) -> dict[str, float]:
    """Run until enough was seen."""
    os.environ[POINT] = json.dumps(point)
    minibatch = point["sequences"] * point["fragment"]
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "algo": "APPO",
            "env": "sleeping",
            "experiment": "bench",
            "train_dir": folder,
            "device": "cpu",
            "num_workers": point["actors"],
            "num_envs_per_worker": 1,
            "worker_num_splits": 1,
            "rollout": point["fragment"],
            "batch_size": minibatch,
            "num_batches_per_epoch": 1,
            "num_epochs": 1,
            "with_vtrace": False,  # with it, 2.1.1 fails at its own summaries
            "use_rnn": False,
            "recurrence": 1,
            "normalize_input": False,
            "normalize_returns": False,
            "policy_initialization": "torch_default",
            "train_for_env_steps": 10**10,
            "policy_workers_per_policy": 1,
            "set_workers_cpu_affinity": False,
            "decorrelate_envs_on_one_worker": False,
            "save_every_sec": 10**6,
            "experiment_summaries_interval": 1,
        }
        parser, _ = parse_sf_args([f"--{key}={value}" for key, value in words.items()])
        cfg = parse_full_cfg(parser, [f"--{key}={value}" for key, value in words.items()])
        _, runner = make_runner(cfg)
        watch = Watch(seconds)
        runner.register_observer(watch)
        runner.init()
        runner.run()
    if not watch.figures:
        raise RuntimeError("Sample Factory ended before it was measured: see what it wrote")
    return watch.figures


def make_env(
    name: str, cfg: Any, env_config: Any, render_mode: str | None = None
) -> SleepingScenes:
    """Build the environment of one worker."""
    return SleepingScenes(json.loads(os.environ[POINT]))


def main(repository: str, descriptor: int) -> None:
    """Answer until stdin ends."""
    sys.path.insert(0, repository)
    register_env("sleeping", make_env)
    global_model_factory().register_encoder_factory(PolicyEncoder)
    point: Point = {}
    with os.fdopen(descriptor, "w") as answers:
        for line in sys.stdin:
            ((name, given),) = json.loads(line).items()
            if name == "open":
                point = given
            found = measure(point, given) if name == "measure" else {}
            answers.write(json.dumps(found) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

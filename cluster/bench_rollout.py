"""How fast rollouts come: environment steps a second, and where the time goes.

It is the real thing: recorded drives, warp, car, teacher and policy, in this process on one thread,
and through Ray with one and more actors as the learner meets them. A step is one scene further by
`STEP`; scenes that are over do not count. The ways to run alternate, several times over, and
medians are reported, since a shared machine is never twice the same. Each way has driven before it
is measured: the first rollouts decode frames that later ones find in the cache.
"""

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster.progress import progress
from cluster.train_policy import TrainPolicyRun, make_env, start_actors
from drive_actors.policy import Policy
from drive_actors.rollout import collect
from drive_envs.protocol import Rollout
from drive_learner.local_cluster import local_cluster

Drive = Callable[[int], Sequence[Rollout]]


@dataclass(frozen=True, kw_only=True)
class RolloutBench:
    """Which rollouts, and how often.

    training: the run whose actors are measured: data, scenes, steps of a rollout, policy, world.
    actors: pools of so many Ray actors are measured, beside this process alone. num_rollouts: of a
    measurement, for each actor. num_repeats: measurements of each way to run. num_warmup: rollouts
    of each actor before. num_functions: the costliest functions to list, 0 for no profile.
    """

    training: TrainPolicyRun = field(default_factory=TrainPolicyRun)
    actors: tuple[int, ...] = (1, 2)
    num_rollouts: int = 4
    num_repeats: int = 5
    num_warmup: int = 8
    num_functions: int = 15

    def __post_init__(self) -> None:
        for name in ("num_rollouts", "num_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if any(number < 1 for number in self.actors):
            raise ValueError(f"actors must be numbers of 1 or more, got {list(self.actors)}")


def bench_rollout(config: RolloutBench, output: Path) -> dict[str, Any]:
    """Measure; return steps a second by way of running, and the share of each phase.

    Writes `profile.txt` into `output` where `num_functions` asks for it. Leaves torch with the
    number of threads that it had.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            alone = Alone(config)
            ways: dict[str, tuple[int, Drive]] = {"process": (1, alone.drive)}
            if config.actors:
                stack.enter_context(local_cluster(num_cpus=sum(config.actors)))
            for number in config.actors:
                pool = stack.enter_context(closing(Pool(config, number, alone.policy)))
                ways[f"ray_{number}"] = (number, pool.drive)
            figures = measure(ways, config)
        if config.num_functions:
            figures["profile"] = profile(alone, config, output)
    finally:
        torch.set_num_threads(threads)
    return figures


def measure(ways: dict[str, tuple[int, Drive]], config: RolloutBench) -> dict[str, Any]:
    """Let the ways to run take turns."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    spent: defaultdict[str, float] = defaultdict(float)
    num_steps = 0
    with progress("rollouts", total=config.num_repeats * len(ways)) as meter:
        for number, drive in ways.values():
            if config.num_warmup:
                drive(config.num_warmup * number)
        for _ in range(config.num_repeats):
            for way, (number, drive) in ways.items():
                begin = time.perf_counter()
                rollouts = drive(config.num_rollouts * number)
                wall = time.perf_counter() - begin
                taken = sum(rollout.num_active_steps for rollout in rollouts)
                rates[way].append(taken / wall)
                if way == "process":
                    num_steps += taken
                    for rollout in rollouts:
                        for phase, seconds in rollout.seconds.items():
                            spent[phase] += seconds
                meter.advance(note=f"{way}: {rates[way][-1]:.0f} steps/s")
    return {
        "steps_per_second": {way: round(median(each), 1) for way, each in rates.items()},
        "spread": {way: [round(min(each), 1), round(max(each), 1)] for way, each in rates.items()},
        "milliseconds_per_step": {
            phase: round(1000 * seconds / num_steps, 3) for phase, seconds in phases(spent).items()
        },
    }


def phases(spent: Mapping[str, float]) -> dict[str, float]:
    """Split the seconds of rollouts into parts that add up to the total, the largest first.

    What is neither environment nor policy is `collate`, the writing down; what the environment
    does not say of itself is `other`; reading and decoding is taken out of rendering.
    """
    parts = {
        name.removeprefix("env/"): value for name, value in spent.items() if name[:4] == "env/"
    }
    parts["render"] = parts.get("render", 0.0) - parts.get("decode", 0.0)
    parts["other"] = spent["env"] - sum(parts.values())
    parts["policy"] = spent["policy"]
    parts["collate"] = spent["total"] - spent["env"] - spent["policy"]
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


class Alone:
    """Rollouts in this process."""

    def __init__(self, config: RolloutBench) -> None:
        self.env = make_env(config.training)
        torch.manual_seed(0)
        self.policy = Policy(config.training.policy).eval()
        self.num_steps = config.training.rollout_steps
        self.num_driven = 0

    def drive(self, number: int) -> list[Rollout]:
        """Drive `number` rollouts one after the other."""
        first, self.num_driven = self.num_driven, self.num_driven + number
        return [
            collect(self.env, self.policy, version=0, actor=0, seed=seed, num_steps=self.num_steps)
            for seed in range(first, first + number)
        ]


class Pool:
    """Rollouts from actors, always as many under way as the actors may have."""

    def __init__(self, config: RolloutBench, number: int, policy: Policy) -> None:
        training = config.training
        actors = replace(training.actors, min_actors=number, max_actors=number)
        self.pool = start_actors(training, actors)
        self.pool.publish(0, policy.state_dict())
        self.seed = 0

    def drive(self, number: int) -> list[Rollout]:
        """Ask for `number` rollouts and take them in as they come."""
        seeds, taken = list(range(self.seed, self.seed + number)), []
        self.seed += number
        while len(taken) < number:
            seeds = seeds[self.pool.start(seeds) :]
            for rollout in self.pool.poll(timeout=1.0):
                if not isinstance(rollout, Rollout):
                    raise RuntimeError(f"an actor was lost while it was measured: {rollout.reason}")
                taken.append(rollout)
        return taken

    def close(self) -> None:
        """Stop the actors."""
        self.pool.close()


def profile(alone: Alone, config: RolloutBench, output: Path) -> list[dict[str, Any]]:
    """List the functions that cost most by themselves, in ms a rollout, callees not included."""
    profiler = cProfile.Profile()
    profiler.runcall(alone.drive, config.num_rollouts)
    with (output / "profile.txt").open("w") as file:
        stats = pstats.Stats(profiler, stream=file).strip_dirs().sort_stats("tottime")
        stats.print_stats(4 * config.num_functions)
    costs = sorted(stats.get_stats_profile().func_profiles.items(), key=lambda f: -f[1].tottime)
    return [
        {
            "function": f"{one.file_name}:{name}" if one.line_number else name,
            "milliseconds": round(1000 * one.tottime / config.num_rollouts, 1),
            "calls": one.ncalls,
        }
        for name, one in costs[: config.num_functions]
    ]

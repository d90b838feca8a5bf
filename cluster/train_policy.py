"""`drive train-policy`: from recordings to a driving policy, on-policy or off-policy.

On-policy, actors drive the recorded roads with the newest weights, in the reprojective world or in
a world model, and a central learner follows what the teacher would have done from where they were.
The world model is a service that all actors share; it is started for the job, and ends with it,
unless `service_name` says which one is up already. Off-policy, the same
learner takes as many steps on the recordings themselves. Network, data and augmentation are equal;
what a car's delay does to a command is told on-policy alone, for a recording does not know it.

A run that is stopped goes on from its last whole checkpoint when the same command is given again.
"""

import functools
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from torch import Tensor

from cluster.config import dump
from cluster.kept import refuse_other
from cluster.progress import Meter, progress
from cluster.telemetry import Telemetry, totals
from cluster.tensorboard_pages import DRIVING, LEARNING, Pages
from drive_actors.actor import RolloutActor
from drive_actors.policy import Policy, PolicyConfig, fresh_policy
from drive_envs.allocator import keep_freed_memory
from drive_envs.camera import cameras
from drive_envs.checkpoint import Checkpoint, latest_checkpoint
from drive_envs.environment import DrivingVectorEnv, EnvConfig
from drive_envs.learned import Learned, LearnedConfig
from drive_envs.precision import Precision
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.scenes import SamplerConfig, SceneSampler
from drive_envs.segments import open_dataset, sample_path
from drive_envs.world import World
from drive_learner.feed import RolloutFeed
from drive_learner.habits import HabitsConfig
from drive_learner.imitation import ImitationConfig, RecordedFeed, trajectory_mae
from drive_learner.learner import Learner, LearnerConfig, OptimizerConfig
from drive_learner.local_cluster import local_cluster
from drive_learner.loop import LoopConfig, Metrics, learn
from drive_learner.losses import LossConfig
from drive_learner.pool import ActorPool, PoolConfig
from drive_learner.queue import QueueConfig
from drive_learner.rllib_config import OwnLearning, RllibLearning
from world_model.service_config import ServiceConfig

log = logging.getLogger(__name__)

HEADLINES = (
    "loss/plan",
    "loss/action",
    "rollout/lateral_error",
    "rollout/return",
    "learner/steps_per_second",
    "learner/idle_share",
    "actor/utilisation",
    "actor/frames_per_second",
)

SETTINGS = (
    "mode",
    "simulator",
    "seed",
    "num_steps",
    "data",
    "env.teacher",
    "num_scenes",
    "rollout_steps",
    "precision",
    "optimizer.learning_rate",
    "loss.policy_gradient",
    "loss.value",
    "queue.num_sequences",
    "queue.reuse",
    "queue.max_lag",
    "actors.max_actors",
    "policy.bottleneck_bits",
)  # that TensorBoard compares runs by

LEARNT = (
    "mode",
    "seed",
    "data",
    "simulator",
    "learner",
    "policy",
    "loss",
    "env",
    "sampler",
    "world",
    "learned",
    "habits",
    "rollout_steps",
    "teacher_share",
)  # what a policy is, and learns from; how long, how fast and where may change as a run goes on


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Ray where no cluster is named by RAY_ADDRESS: on this machine, for this job.

    num_cpus: cores to share out, null for all there are. object_store_mb: for rollouts under way.
    """

    num_cpus: int | None = None
    object_store_mb: int = 2000
    dashboard: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainPolicyRun:
    """One training run.

    mode: on_policy drives, off_policy imitates the recordings. data: a Parquet file or a folder of
    them, or `sample` for the shipped one; its train split is learnt from, its held-out split gives
    the trajectory error. num_steps: gradient steps. num_scenes: driven side by side by one actor.
    rollout_steps: length of a rollout. teacher_share: of the steps, driven as the teacher says,
    from 0 (on-policy) to 1 (the teacher's own drives), as DAgger mixes them.
    precision: of the learner's forward pass; the actors' is fp32. num_threads: of the learner.
    simulator: what is driven in; `world_model` shows what `service` generates. With
    `env.teacher: plan` its plans are followed, in either simulator. service_name: of a service that
    `drive serve-world-model` keeps up; null starts one.
    resume: go on from the output directory's last checkpoint, if there is one, rather than begin
    again. learner: who learns, this project's loop or RLlib with the same network and losses.
    """

    mode: Literal["on_policy", "off_policy"] = "on_policy"
    seed: int = 0
    data: str = "sample"
    num_steps: int = 1500
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int = 1
    num_scenes: int = 16
    rollout_steps: int = 30
    teacher_share: float = 0.0
    resume: bool = True
    learner: OwnLearning | RllibLearning = field(default_factory=OwnLearning)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    simulator: Literal["reprojective", "world_model"] = "reprojective"
    world: ReprojectiveConfig = field(default_factory=ReprojectiveConfig)
    learned: LearnedConfig = field(default_factory=LearnedConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    service_name: str | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    habits: HabitsConfig = field(default_factory=HabitsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    actors: PoolConfig = field(default_factory=PoolConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_threads", "num_scenes", "rollout_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        sizes = {
            name: (part.width, part.height)
            for name, part in (("policy", self.policy), ("env", self.env), ("world", self.world))
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(f"images must have one size, got {sizes}: make width and height equal")
        cameras(self.env.width, self.env.height)  # says so if they have no such shape
        if self.mode == "off_policy" and (self.loss.policy_gradient or self.loss.value):
            raise ValueError(
                "recordings have no reward: off_policy needs loss.policy_gradient=0 and "
                "loss.value=0"
            )
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share must be 0 to 1, got {self.teacher_share}")
        is_own = isinstance(self.learner, OwnLearning) and self.mode == "on_policy"
        if self.teacher_share and (self.loss.policy_gradient or not is_own):
            raise ValueError(
                "what a teacher drove tells nothing of the policy's own actions: teacher_share "
                "needs mode=on_policy, learner.kind=own and loss.policy_gradient=0"
            )
        lag = self.loop.publish_lag * self.loop.publish_every
        if lag and not (is_own and lag < self.queue.max_lag):
            raise ValueError(
                f"loop.publish_lag makes actors {lag} gradient steps late: it needs "
                "mode=on_policy, learner.kind=own, and less than queue.max_lag, which is "
                f"{self.queue.max_lag}"
            )
        if isinstance(self.learner, RllibLearning):
            if self.mode == "off_policy":
                raise ValueError(
                    "RLlib learns on-policy only: learner.kind=rllib needs mode=on_policy"
                )
            self.learner.check(self.loss)
        if self.needs_model and self.sampler.rows_after < self.learned.num_anchors:
            raise ValueError(
                f"a world model is told {self.learned.num_anchors} frames after a scene's end, but "
                f"sampler.rows_after is {self.sampler.rows_after}: make them equal"
            )

    @property
    def needs_model(self) -> bool:
        """Whether a world model takes part."""
        return self.simulator == "world_model" or self.env.teacher == "plan"

    @property
    def learner_config(self) -> LearnerConfig:
        """The learner's part."""
        return LearnerConfig(
            num_steps=self.num_steps,
            loss=self.loss,
            optimizer=self.optimizer,
            habits=self.habits,
            is_longitudinal=self.env.longitudinal == "policy",
            precision=self.precision,
            device=self.device,
        )

    @property
    def data_path(self) -> Path:
        """Where the recordings are, absolute."""
        return sample_path() if self.data == "sample" else Path(self.data).resolve()

    @property
    def for_actors(self) -> "TrainPolicyRun":
        """The run as actors are told it, who may begin in another folder."""
        return self if self.data == "sample" else replace(self, data=str(self.data_path))


def run(config: TrainPolicyRun, output: Path) -> dict[str, Any]:
    """Train, leaving `checkpoints/` and `tensorboard/` in `output`; return the headline figures."""
    torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    if isinstance(config.learner, RllibLearning):
        from cluster.train_with_rllib import train_with_rllib

        return train_with_rllib(config, output)
    learner = Learner(fresh_policy(config.policy), config.learner_config)
    checkpoint = resumed(config, learner, output / "checkpoints")
    began, first = time.monotonic(), learner.step
    log.info("%s: gradient steps %d to %d", config.mode, first, config.num_steps)
    figures: dict[str, Any] = {"mode": config.mode, "steps": config.num_steps, "resumed_at": first}
    train = train_on_policy if config.mode == "on_policy" else train_off_policy
    pages = None
    if first < config.num_steps:
        pages = tensorboard_pages(config, output)
        with progress("gradient steps", config.num_steps, done=first) as meter:
            figures |= train(config, learner, output, checkpoint, meter)
    figures["seconds"] = round(time.monotonic() - began, 1)
    figures["trajectory_mae"] = held_out_error(config, learner.weights(averaged=True))
    if pages is not None:
        pages.end(config.num_steps, figures)
    return figures


def tensorboard_pages(config: TrainPolicyRun, output: Path) -> Pages:
    """Begin what TensorBoard shows of the run beside its curves."""
    return Pages(
        output / "tensorboard",
        config,
        {**LEARNING, **DRIVING} if config.mode == "on_policy" else LEARNING,
        settings=SETTINGS,
        figures=HEADLINES,
        results=("trajectory_mae",),
    )


def train_on_policy(
    config: TrainPolicyRun,
    learner: Learner,
    output: Path,
    checkpoint: Checkpoint | None,
    meter: Meter,
) -> dict[str, Any]:
    """Learn from actors; return figures with the fate of every rollout."""
    with actor_feed(config, checkpoint, output) as feed:
        told = totals(checkpoint.state["feed"]["counts"]) if checkpoint else {}
        telemetry = Telemetry(output.resolve().name, told)
        metrics = learn(
            learner,
            feed,
            config.loop,
            output,
            run=dump(config),
            on_step=reporter(meter, telemetry),
        )
        counts = feed.close()
        telemetry.tell(totals(vars(counts)))
    return headlines(metrics) | {
        "rollouts": {
            "started": counts.started,
            "learnt": counts.learnt,
            "discarded": dict(counts.discarded),
        }
    }


def train_off_policy(
    config: TrainPolicyRun,
    learner: Learner,
    output: Path,
    checkpoint: Checkpoint | None,
    meter: Meter,
) -> dict[str, Any]:
    """Learn from recordings; a resumed run needs no more of `checkpoint` than the learner has."""
    segments = open_dataset(config.data_path, split="train")
    feed = RecordedFeed(
        segments,
        config.queue,
        config.policy,
        config.imitation,
        seed=config.seed,
        photometry=config.env.photometry,
        mirrored_share=config.sampler.mirrored_share,
        lane_change_share=config.sampler.lane_change_share,
    )
    metrics = learn(learner, feed, config.loop, output, run=dump(config), on_step=reporter(meter))
    return headlines(metrics) | {"skipped": dict(feed.skipped + segments.skipped)}


@contextmanager
def actor_feed(
    config: TrainPolicyRun, checkpoint: Checkpoint | None, output: Path
) -> Iterator[RolloutFeed]:
    """Start Ray and the actors, and stop both at the end whatever happens."""
    with (
        local_cluster(
            num_cpus=config.ray.num_cpus,
            object_store_mb=config.ray.object_store_mb,
            dashboard=config.ray.dashboard,
        ),
        world_model_service(config, output) as service,
    ):
        pool = start_actors(config, config.actors, service)
        feed = RolloutFeed(
            pool,
            config.queue,
            config.policy,
            seed=config.seed,
            state=checkpoint.state["feed"] if checkpoint else None,
            pinned=torch.cuda.is_available() and config.device != "cpu",
        )
        try:
            yield feed
        finally:
            feed.close()


@contextmanager
def world_model_service(config: TrainPolicyRun, output: Path) -> Iterator[str | None]:
    """Yield the name of the service that the actors ask, None where they ask none."""
    if not config.needs_model or config.service_name is not None:
        yield config.service_name if config.needs_model else None
        return
    from world_model.service import serving  # seconds, which a run without one need not spend

    # A learner that was killed leaves its service behind: the run as it goes on takes it over.
    folder = output.resolve()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    with serving(config.service, f"train-policy-{folder.name}-{digest}") as name:
        yield name


def start_actors(
    config: TrainPolicyRun, actors: PoolConfig, service: str | None = None
) -> ActorPool:
    """Start the actors of a run, as many as `actors` says, and wait for them."""
    actor = ray.remote(RolloutActor).options(**actors.options)
    make = functools.partial(make_env, config.for_actors, service)

    def make_actor(index: int) -> Any:
        return actor.remote(
            make,
            config.policy,
            index=index,
            num_steps=config.rollout_steps,
            num_seats=actors.seats,
            teacher_share=config.teacher_share,
        )

    pool = ActorPool(make_actor, actors)
    pool.wait_until_ready()
    return pool


def make_env(
    config: TrainPolicyRun, service: str | None = None, num_scenes: int | None = None
) -> DrivingVectorEnv:
    """Build the environment of one actor, with the run's number of scenes or another."""
    segments = open_dataset(config.data_path, split="train")
    sampler = SceneSampler(segments, config.sampler)
    world: World = Reprojective(config.world)
    if service is not None:
        from world_model.service import ServiceConnection

        learned = replace(config.learned, is_shown=config.simulator == "world_model")
        world = Learned(ServiceConnection(service), world, learned)
    return DrivingVectorEnv(world, sampler, config.env, num_scenes or config.num_scenes)


def resumed(config: TrainPolicyRun, learner: Learner, folder: Path) -> Checkpoint | None:
    """Restore the learner from the newest whole checkpoint, or clear the folder to begin again."""
    if not config.resume:
        if folder.exists():
            log.warning("resume is false: removing %s", folder)
            shutil.rmtree(folder)
        return None
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return None
    try:
        learner.restore(checkpoint.step, checkpoint.tensors)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"the checkpoint in {folder} is of another network: choose another output or "
            f"resume=false"
        ) from error
    refuse_other(folder, checkpoint.run, config, LEARNT)
    log.info("going on from step %d in %s", checkpoint.step, folder)
    return checkpoint


def held_out_error(config: TrainPolicyRun, weights: Mapping[str, Tensor]) -> float | None:
    """Return the off-policy trajectory error in m of these weights, None without data."""
    policy = Policy(config.policy)
    policy.load_state_dict(weights)
    try:
        segments = open_dataset(config.data_path, split="held_out")
        segments.leave_out_damaged()
        return round(trajectory_mae(policy, segments), 4)
    except ValueError as error:  # a training that is over is not lost for what it is judged by
        log.warning("%s: no trajectory error", error)
        return None


def reporter(meter: Meter, telemetry: Telemetry | None = None) -> Any:
    """Return what shows each step on the progress display, and tells Ray the figures."""
    told: Metrics = {}

    def show(step: int, metrics: Metrics) -> None:
        nonlocal told
        notes = [
            f"{label} {metrics[name]:.3f}"
            for label, name in (
                ("plan", "loss/plan"),
                ("action", "loss/action"),
                ("off path m", "rollout/lateral_error"),
                ("steps/s", "learner/steps_per_second"),
            )
            if name in metrics
        ]
        meter.update(step, ", ".join(notes))
        if telemetry is not None and metrics is not told:  # they are the same until there are news
            told = metrics
            telemetry.tell(metrics | {"learner/step": step})

    return show


def headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """Pick the figures that are worth a line."""
    return {name: round(metrics[name], 4) for name in HEADLINES if name in metrics}

"""How much of a machine or a cluster a training run uses, and what of it is full first.

The arithmetic behind `cluster/specs/SIZES.md` (`sizes_page`). A run's YAML says how many actors and
replicas there are, how large a minibatch and how often a step is learnt from. What one actor, core
or GPU does in a second is measured on two cores (`MEASURED`, the README), follows from what the
networks multiply (`counting`), or is assumed (`ASSUMED`): nobody has run this on a GPU yet.
A step is one scene further by 0.2 s; a fresh one has not been learnt from.
"""

from dataclasses import dataclass

from cluster.counting import bytes_of, frame_gflop, learnt_gflop, weights_bytes
from cluster.jobs import RUNS, resolve
from cluster.train_policy import TrainPolicyRun
from world_model.dit import Size


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of the README: two cores of an AMD EPYC, no GPU, images of 128 x 64.

    actor_rate: steps/s of an actor while the other core drives too. render_share: of its time that
    goes into the reprojective world's images. learner_rates: gradient steps/s with so many threads,
    bf16, minibatches of 300 steps.
    """

    actor_rate: float = 467 / 2
    render_share: float = 2.1 / 3.7
    learner_rates: tuple[float, float] = (3.7, 5.8)
    learner_steps: int = 300


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What nobody has measured here. A GPU is one of the H100's class.

    request_ms: of an actor's core for a scene's request and its frames. call_ms: that one call of
    the network takes at least, for its kernels have to be started. model_tflops, learner_tflops:
    that a GPU does of each network's products. gradient_ms: that a gradient step takes at least.
    copy_gb: a second that one thread copies into minibatches. network_gb: a second into a node.
    """

    request_ms: float = 0.5
    call_ms: float = 3.0
    model_tflops: float = 200.0
    learner_tflops: float = 20.0
    gradient_ms: float = 30.0
    copy_gb: float = 5.0
    network_gb: float = 3.1


MEASURED, ASSUMED = Measured(), Assumed()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run of `cluster/runs` is at home.

    cores: of a machine, or of a node of actors. model: size of its world model, None where it has
    none. learner_gpu: whether the learner has a GPU; is_shared: with a replica. nodes: of each
    type, as the specs call them.
    """

    run: str
    title: str
    cores: int
    model: Size | None = None
    learner_gpu: bool = False
    is_shared: bool = False
    nodes: tuple[tuple[str, int], ...] = ()

    @property
    def is_cluster(self) -> bool:
        """Whether rollouts come over a network."""
        return bool(self.nodes)

    @property
    def config(self) -> TrainPolicyRun:
        """The run."""
        return resolve("train-policy", RUNS / f"{self.run}.yaml", []).config


PLACES = (
    Place(run="laptop", title="A laptop", cores=8),
    Place(
        run="one_gpu",
        title="One GPU",
        cores=16,
        model="nano",
        learner_gpu=True,
        is_shared=True,
    ),
    Place(
        run="eight_gpus",
        title="A node of eight GPUs",
        cores=64,
        model="500m",
        learner_gpu=True,
        is_shared=True,
    ),
    Place(
        run="nodes_64",
        title="64 nodes",
        cores=64,
        model="500m",
        learner_gpu=True,
        nodes=(("learner", 1), ("world_model", 61), ("actors", 2)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """A run in its place. Rates are a second; limits are fresh steps/s that each part could bear.

    rate: fresh steps/s, the smallest of the limits.
    """

    config: TrainPolicyRun
    limits: dict[str, float]
    frame_gflop: float
    rollout_mb: float
    step_kb: float
    learnt_kb: float
    weights_mb: float
    gpu_shares: dict[str, float]

    @property
    def full(self) -> str:
        """What saturates first."""
        return min(self.limits, key=self.limits.__getitem__)

    @property
    def rate(self) -> float:
        """Fresh steps/s."""
        return self.limits[self.full]

    @property
    def minibatch(self) -> int:
        """Steps of a minibatch."""
        return self.config.queue.num_sequences * self.config.queue.sequence_length

    @property
    def gradient_rate(self) -> float:
        """Gradient steps/s."""
        return self.rate * self.config.queue.reuse / self.minibatch

    def share(self, part: str) -> float:
        """How much of a part is used, 1 for all."""
        return self.rate / self.limits[part]


def balance(place: Place) -> Balance:
    """Work a run out."""
    config = place.config
    step_bytes, learnt_bytes = bytes_of(config)
    queue = config.queue
    minibatch = queue.num_sequences * queue.sequence_length
    frame = frame_gflop(place.model, config) if place.model else 0.0
    learner = learner_limit(place, config, minibatch) / queue.reuse
    replica = replica_rate(frame, config) if place.model else 0.0
    pass_seconds = config.service.engine.batch_size / replica if replica else 0.0
    limits = {"actors": config.actors.max_actors * actor_rate(config, pass_seconds)}
    shares = {}
    if place.model:
        limits["world model"] = config.service.num_replicas * replica
    limits["learner"] = learner
    if place.is_shared:
        # On the GPU that both use, a second of the one is no second of the other.
        limits["shared GPU"] = 1 / (1 / limits["world model"] + 1 / learner)
    limits["copying"] = ASSUMED.copy_gb * 1e9 / learnt_bytes / queue.reuse
    if place.is_cluster:
        limits["network"] = ASSUMED.network_gb * 1e9 / step_bytes
    rate = min(limits.values())
    if place.model:
        shares["world model"] = rate / limits["world model"]
    if place.learner_gpu:
        shares["learner"] = rate / limits["learner"]
    return Balance(
        config=config,
        limits=limits,
        frame_gflop=frame,
        rollout_mb=step_bytes * config.rollout_steps * config.num_scenes / 1e6,
        step_kb=step_bytes / 1e3,
        learnt_kb=learnt_bytes / 1e3,
        weights_mb=weights_bytes(config.policy) / 1e6,
        gpu_shares=shares,
    )


def actor_rate(config: TrainPolicyRun, pass_seconds: float) -> float:
    """Return the steps/s of one actor that is never told to wait for the learner.

    In a world model it renders nothing, but asks and waits: for the pass that is under way and its
    own. With `seats` it drives on in other scenes meanwhile.
    """
    if config.simulator == "reprojective":
        return MEASURED.actor_rate
    busy = (1 - MEASURED.render_share) / MEASURED.actor_rate + ASSUMED.request_ms / 1e3
    waiting = 2 * pass_seconds + config.service.scheduler.max_wait
    turn = config.num_scenes * busy + waiting
    return min(1 / busy, config.actors.seats * config.num_scenes / turn)


def replica_rate(gflop: float, config: TrainPolicyRun) -> float:
    """Return the frames/s of one replica with full passes."""
    batch = config.service.engine.batch_size
    calls = config.service.sampler.num_steps + 2  # the finished frame once more, and its decoding
    least = calls * ASSUMED.call_ms / 1e3
    return batch / max(least, batch * gflop / (ASSUMED.model_tflops * 1e3))


def learner_limit(place: Place, config: TrainPolicyRun, minibatch: int) -> float:
    """Return the steps/s that the learner could learn from, each counted as often as it is used."""
    if not place.learner_gpu:
        return MEASURED.learner_rates[config.num_threads - 1] * MEASURED.learner_steps
    gflop = minibatch * learnt_gflop(config.policy, config.queue.sequence_length)
    seconds = max(ASSUMED.gradient_ms / 1e3, gflop / (ASSUMED.learner_tflops * 1e3))
    return minibatch / seconds

"""The settings of RLlib as the learner, apart from RLlib itself, which takes seconds to import."""

from dataclasses import dataclass
from typing import Literal

from drive_learner.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class OwnLearning:
    """The project's own loop: `drive_learner.loop`."""

    kind: Literal["own"] = "own"


@dataclass(frozen=True, kw_only=True)
class RllibLearning:
    """RLlib's.

    algorithm: IMPALA and APPO are asynchronous, PPO waits for all actors. fragment_length: steps
    that an actor returns at once, and a sequence of a minibatch. num_sequences: of a minibatch.
    minibatches, num_epochs: PPO's, of one round of driving and over it. clip: of APPO's and PPO's
    ratio. gae_lambda: PPO's. num_learners: processes that learn, 0 for the one that drives the
    run. num_aggregators: processes that put minibatches together, for each learner.
    broadcast_every: rounds of learning between two publications.
    """

    kind: Literal["rllib"] = "rllib"
    algorithm: Literal["impala", "appo", "ppo"] = "impala"
    fragment_length: int = 40
    num_sequences: int = 16
    minibatches: int = 4
    num_epochs: int = 4
    clip: float = 0.2
    gae_lambda: float = 0.95
    num_learners: int = 0
    num_aggregators: int = 0
    broadcast_every: int = 1

    def __post_init__(self) -> None:
        sizes = (
            "fragment_length",
            "num_sequences",
            "minibatches",
            "num_epochs",
            "broadcast_every",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("num_learners", "num_aggregators"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.clip < 1:
            raise ValueError(f"clip must be within 0..1, got {self.clip}")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda must be within 0..1, got {self.gae_lambda}")
        if self.num_aggregators and not self.num_learners:
            raise ValueError("num_aggregators need num_learners of 1 or more to be put beside")

    def check(self, loss: LossConfig) -> None:
        """ValueError for losses that RLlib cannot be told of."""
        if loss.policy_gradient <= 0:
            raise ValueError(
                "RLlib always descends the policy gradient: loss.policy_gradient must be above 0 "
                "with learner.kind=rllib"
            )
        if not loss.is_corrected:
            raise ValueError(
                "RLlib's V-trace always corrects: learner.kind=rllib needs loss.is_corrected=true"
            )
        if loss.c_max != 1:
            raise ValueError(f"RLlib's V-trace has c_max 1, got loss.c_max {loss.c_max}")

"""One gradient step after another: AdamW on the losses of a minibatch.

Learning rate: linear warm-up, then a cosine to zero over the run's steps. Gradients are clipped by
their global norm. The averaged weights, an exponential moving average of the raw ones, are what is
evaluated and shipped. Everything that a later step depends on is in `state()` and `step`: a learner
restored from them continues to the bit.

It does not know where minibatches come from, nor about processes and files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from drive_actors.policy import Policy
from drive_envs.precision import Precision, autocast
from drive_learner.batch import Batch
from drive_learner.habits import Habits, HabitsConfig
from drive_learner.losses import LossConfig, losses

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Weight decay acts on matrices and kernels, not on biases, norms and embeddings."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    num_warmup_steps: int = 100
    max_gradient_norm: float = 1.0
    average_decay: float = 0.99  # of the averaged weights, a step; 0 averages nothing

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.max_gradient_norm <= 0:
            raise ValueError(f"max_gradient_norm must be positive, got {self.max_gradient_norm}")
        if self.num_warmup_steps < 0:
            raise ValueError(f"num_warmup_steps must be 0 or more, got {self.num_warmup_steps}")
        for name in ("beta1", "beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What a `Learner` needs.

    num_steps: gradient steps of the whole run, for the schedule. is_longitudinal: whether the car
    takes the policy's acceleration.
    """

    num_steps: int = 1500
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    habits: HabitsConfig = field(default_factory=HabitsConfig)
    is_longitudinal: bool = False
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be 1 or more, got {self.num_steps}")


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of gradient step `step` (from 0) of `num_steps`."""
    warmup = min(1.0, (step + 1) / (config.num_warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps)))
    return config.learning_rate * warmup * cosine


class Learner:
    """A policy and its optimiser. `step` counts the gradient steps taken; it is the version."""

    def __init__(self, policy: Policy, config: LearnerConfig) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("learner device is cuda, but torch sees no GPU: say device: auto")
        name = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
        self.device = torch.device(name)
        self.config = config
        self.policy = policy.to(self.device)
        self.step = 0
        self.habits = Habits(config.habits, policy.config.model_dim).to(self.device)
        self._named = dict(policy.named_parameters())
        self._learnt = self._named | {
            f"habits.{name}": value for name, value in self.habits.named_parameters()
        }
        self._average = {name: value.detach().clone() for name, value in self._named.items()}
        matrices = [value for value in self._named.values() if value.ndim >= 2]
        others = [value for value in self._named.values() if value.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.optimizer.weight_decay},
                {"params": [*others, self.habits.token_from_code.weight], "weight_decay": 0.0},
                {"params": [self.habits.codes], "weight_decay": 0.0},
            ],
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
        )

    def update(self, batch: Batch) -> dict[str, float]:
        """Take one gradient step; return its metrics (`loss/...`, `policy/...`, `learner/...`)."""
        optimizer = self.config.optimizer
        rate = learning_rate(self.step, self.config.num_steps, optimizer)
        of_codes = self.habits.config.rate
        for group, factor in zip(self.optimizer.param_groups, (1.0, 1.0, of_codes), strict=True):
            group["lr"] = factor * rate
        batch = batch.to(self.device)
        with autocast(self.config.precision, self.device.type):
            generator = torch.Generator().manual_seed(self.step)
            habit, of_prior = self.habits(batch.recording, generator)
            output = self.policy.unroll(
                batch.observation,
                batch.noise,
                batch.present,
                habit=habit,
                num_context=batch.num_context,
            )
        total, metrics = losses(
            output, batch, self.config.loss, is_longitudinal=self.config.is_longitudinal
        )
        total = total + of_prior
        if not math.isfinite(metrics["loss/total"]):
            raise FloatingPointError(f"the loss of step {self.step} is not finite: {metrics}")
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self._learnt.values(), optimizer.max_gradient_norm)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        lag = (self.step - 1 - batch.policy_version).float()
        return metrics | {
            "learner/learning_rate": rate,
            "loss/habits": of_prior.item(),
            "learner/gradient_norm": norm.item(),
            "learner/policy_lag": lag.mean().item(),
            "learner/max_policy_lag": lag.max().item(),
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        # Slow only once there is something to average: the first weights are soon forgotten.
        decay = min(self.config.optimizer.average_decay, self.step / (self.step + 10))
        for name, value in self._named.items():
            self._average[name].lerp_(value, 1 - decay)

    def weights(self, *, averaged: bool = False) -> Tensors:
        """Return a copy of the policy's `state_dict` on the CPU, raw or averaged."""
        state = self.policy.state_dict()
        if averaged:
            state |= self._average
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def state(self) -> dict[str, Tensors]:
        """Return copies of the raw weights, their average and the optimiser's moments, by name."""
        moments = {
            f"{name}.{key}": value.detach().to("cpu", copy=True)
            for name, parameter in self._learnt.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        habits = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self.habits.state_dict().items()
        }
        return {
            "raw": self.weights(),
            "optimizer": moments,
            "policy": self.weights(averaged=True),
            "habits": habits,
        }

    def restore(self, step: int, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from a `state()` taken after `step` gradient steps."""
        self.policy.load_state_dict(state["raw"])
        self.habits.load_state_dict(state["habits"])
        averaged = state["policy"]
        for name in self._named:
            self._average[name].copy_(averaged[name])
        moments = state["optimizer"]
        for name, parameter in self._learnt.items():
            keys = ("step", "exp_avg", "exp_avg_sq") if f"{name}.step" in moments else ()
            self.optimizer.state[parameter] = {
                # AdamW keeps its step count on the CPU
                key: moments[f"{name}.{key}"].clone().to("cpu" if key == "step" else self.device)
                for key in keys
            }
        self.step = step

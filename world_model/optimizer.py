"""AdamW with a warm-up, a cosine and averaged weights, for tokenizer and world model alike.

Everything that a later step depends on is in `state()` and `step`: an optimizer restored from it
continues to the bit. Parameters may be sharded over processes (FSDP2, `DTensor`): states are whole
tensors on the CPU whatever the sharding, so a run goes on on another number of processes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

Tensors = dict[str, Tensor]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Weight decay acts on matrices and kernels, not on biases, norms and embeddings.

    num_warmup_steps: of a linear rise, before a cosine to zero. average_decay: of the averaged
    weights, which are what is kept, a step.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    num_warmup_steps: int = 200
    max_gradient_norm: float = 1.0
    average_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_gradient_norm <= 0:
            raise ValueError(
                f"optimizer.learning_rate is {self.learning_rate} and max_gradient_norm "
                f"{self.max_gradient_norm}; they must be positive"
            )
        for name in ("beta1", "beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}, not within [0, 1)")
        if self.num_warmup_steps < 0:
            raise ValueError(
                f"optimizer.num_warmup_steps is {self.num_warmup_steps}, not 0 or more"
            )


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of gradient step `step` (from 0) of `num_steps`."""
    warmup = min(1.0, (step + 1) / (config.num_warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps)))
    return config.learning_rate * warmup * cosine


class Optimizer:
    """Steps the parameters of a network, and averages them. `step` counts the steps taken."""

    def __init__(self, network: nn.Module, config: OptimizerConfig, num_steps: int) -> None:
        self.config, self.num_steps, self.step = config, num_steps, 0
        self._named = {
            name: value for name, value in network.named_parameters() if value.requires_grad
        }
        self._average = {name: value.detach().clone() for name, value in self._named.items()}
        matrices = [value for value in self._named.values() if value.ndim >= 2]
        others = [value for value in self._named.values() if value.ndim < 2]
        self._adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
        )

    def descend(self, loss: Tensor) -> dict[str, float]:
        """Follow the gradient of a loss for one step; return figures about it.

        Raises FloatingPointError when the loss is not finite: the weights are as before.
        """
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"the loss of step {self.step} is {value}")
        rate = learning_rate(self.step, self.num_steps, self.config)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(self._named.values(), self.config.max_gradient_norm)
        self._adam.step()
        self.step += 1
        self._update_average()
        return {"optimizer/learning_rate": rate, "optimizer/gradient_norm": whole(norm).item()}

    @torch.no_grad()
    def _update_average(self) -> None:
        # Slow only once there is something to average: the first weights are soon forgotten.
        decay = min(self.config.average_decay, self.step / (self.step + 10))
        for name, value in self._named.items():
            self._average[name].lerp_(value, 1 - decay)

    def averaged(self) -> Tensors:
        """Return the averaged weights, whole, on the CPU."""
        return {name: on_cpu(value) for name, value in self._average.items()}

    def state(self) -> dict[str, Tensors]:
        """Return copies of the weights, their average and the moments, by name."""
        moments = {
            f"{name}.{key}": on_cpu(value)
            for name, parameter in self._named.items()
            for key, value in self._adam.state[parameter].items()
        }
        raw = {name: on_cpu(value) for name, value in self._named.items()}
        return {"raw": raw, "average": self.averaged(), "moments": moments}

    @torch.no_grad()
    def restore(self, step: int, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from a `state()` taken after `step` steps."""
        for name, parameter in self._named.items():
            parameter.copy_(like(state["raw"][name], parameter))
            self._average[name].copy_(like(state["average"][name], parameter))
            moments = {key: state["moments"].get(f"{name}.{key}") for key in MOMENTS}
            self._adam.state[parameter] = {
                # AdamW keeps its step count on the CPU
                key: value.clone() if key == "step" else like(value, parameter)
                for key, value in moments.items()
                if value is not None
            }
        self.step = step


def whole(value: Tensor) -> Tensor:
    """Gather a tensor from all processes that hold a part of it."""
    if not torch.distributed.is_initialized():
        return value
    # Here, for it takes a second, and all that build a world model import this module.
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def on_cpu(value: Tensor) -> Tensor:
    """Copy a tensor, whole, to the CPU."""
    return whole(value.detach()).to("cpu", copy=True)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Bring a whole tensor to the device, type and sharding of a parameter."""
    value = value.to(parameter.device, parameter.dtype, copy=True)
    if not torch.distributed.is_initialized():
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value

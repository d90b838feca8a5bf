"""What the driver is told: four losses on a minibatch of fragments, and the weights that add them.

- plan: MHP Laplace NLL of the teacher's plan (nats a value, see `drive_envs.plan`);
- action: Gaussian NLL of the teacher's action under the policy's own distribution (nats), each
  dimension weighed by sigma^(2 beta), held constant (Seitzer et al. 2022, "On the Pitfalls of
  Heteroscedastic Uncertainty Estimation"): at beta = 0 the gradient of the mean is (mu - u) /
  sigma^2, which learns what is easy already and leaves the curves, where sigma is large, aside;
- policy gradient: - E[A log pi(a|x)] with V-trace's advantage A, for what the reward says, of the
  dimensions that the car obeys: of the others it would be noise alone;
- value: 1/2 (V - v)^2 against V-trace's target v;
- entropy: - E[H(pi)], so that the policy goes on exploring.

Plan and action alone are DAgger with a future-anchored expert, the paper's section 4; with the
actor's lag corrected by V-trace the other three are IMPALA. All are means over the active steps.
The module does not know about optimisers, nor which states the fragments came from.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drive_actors.action import entropy, log_probs, normalized_from_command
from drive_actors.policy import PolicyOutput
from drive_envs.plan import Hypotheses, negative_log_likelihood
from drive_learner.batch import Batch
from drive_learner.vtrace import VTrace, vtrace

TimeBatch = Float[Tensor, "time batch"]
Flag = Bool[Tensor, "time batch"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses, and V-trace's constants.

    action_beta: 0 is the plain NLL, 1 a squared error. discount: gamma a step of 0.2 s. rho_max,
    c_max: V-trace's truncations. is_corrected: with false the actors' lag is ignored, as if what
    they drove had been driven by the policy that learns: every importance ratio is 1.
    """

    plan: float = 1.0
    action: float = 4.0
    policy_gradient: float = 0.1
    value: float = 0.1
    entropy: float = 0.001
    action_beta: float = 0.5
    discount: float = 0.95
    rho_max: float = 1.0
    c_max: float = 1.0
    is_corrected: bool = True

    def __post_init__(self) -> None:
        for name in ("plan", "action", "policy_gradient", "value", "entropy"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss weight {name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.action_beta <= 1:
            raise ValueError(f"action_beta must be in [0, 1], got {self.action_beta}")
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount must be in [0, 1), got {self.discount}")
        if not 0 < self.c_max <= self.rho_max:
            raise ValueError(
                f"V-trace needs 0 < c_max <= rho_max, got {self.c_max} and {self.rho_max}"
            )


def losses(
    output: PolicyOutput, batch: Batch, config: LossConfig, *, is_longitudinal: bool = False
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the weighted sum to descend, and every part and diagnosis as `area/name` metrics.

    `output` is the policy's over the C + L + 1 frames of `batch`: L acted steps and a final one to
    bootstrap from. is_longitudinal: whether the car takes the policy's acceleration, and not the
    recording's.
    """
    mean, log_std = output.action_mean[:-1], output.action_log_std[:-1]
    # What the car does not obey has no consequences: it is no part of the ratio.
    obeyed = slice(None) if is_longitudinal else slice(1)
    own = log_probs(mean, log_std, batch.action_normalized)[..., obeyed].sum(-1)
    log_ratio = own - batch.log_probs[..., obeyed].sum(-1)
    targets = value_targets(output.value.detach(), log_ratio.detach(), batch, config)
    speed = batch.observation["speed"][batch.num_context : -1]
    teacher = normalized_from_command(batch.teacher_action, speed)

    active = batch.active
    taught = output.taught_mean[:-1], output.taught_log_std[:-1]
    balance = (2 * config.action_beta * taught[1].detach()).exp()
    value_error = output.value[:-1] - targets.value_target
    parts = {
        "plan": plan_loss(output.plan, batch),
        "action": -masked_mean((balance * log_probs(*taught, teacher)).sum(-1), active),
        # d(ratio)/d(theta) at rho folded into the advantage: log pi's gradient alone
        "policy_gradient": -masked_mean(targets.advantage * own, active),
        "value": 0.5 * masked_mean(value_error.square(), active),
        "entropy": -masked_mean(entropy(log_std), active),
    }
    total = torch.stack([getattr(config, name) * part for name, part in parts.items()]).sum()
    with torch.no_grad():
        metrics = {f"loss/{name}": part.item() for name, part in parts.items()}
        error = (taught[0] - teacher).abs()
        ratio = torch.where(active, log_ratio, 0.0).exp()
        metrics |= {
            "loss/total": total.item(),
            "policy/lateral_action_error": masked_mean(error[..., 0], active).item(),
            "policy/longitudinal_action_error": masked_mean(error[..., 1], active).item(),
            "policy/lateral_std": masked_mean(log_std[..., 0].exp(), active).item(),
            "vtrace/importance_ratio": masked_mean(ratio, active).item(),
            "vtrace/clipped_share": masked_mean((ratio > config.rho_max).float(), active).item(),
            "vtrace/value_target": masked_mean(targets.value_target, active).item(),
        }
        # The others have been fitted before, so that their errors flatter.
        if (unseen := active & batch.is_first_use).any():
            metrics |= {
                "first_use/value": 0.5 * masked_mean(value_error.square(), unseen).item(),
                "first_use/lateral_action_error": masked_mean(error[..., 0], unseen).item(),
            }
    return total, metrics


def value_targets(
    value: Float[Tensor, "time_and_final batch"],
    log_ratio: TimeBatch,
    batch: Batch,
    config: LossConfig,
) -> VTrace:
    """Run V-trace over the fragments: 0 follows a termination, V(final frame) anything else."""
    is_last = ~batch.active.roll(-1, 0)
    is_last[-1] = True
    return vtrace(
        log_ratio=log_ratio if config.is_corrected else torch.zeros_like(log_ratio),
        reward=batch.reward,
        discount=torch.where(batch.terminated, 0.0, config.discount),
        value=value[:-1],
        next_value=value[1:],
        is_last=is_last,
        active=batch.active,
        rho_max=config.rho_max,
        c_max=config.c_max,
    )


def plan_loss(hypotheses: Hypotheses | None, batch: Batch) -> Float[Tensor, ""]:
    """Average the plan's NLL over the active steps whose teacher plan is valid anywhere."""
    assert hypotheses is not None
    has_plan = batch.active & batch.teacher_plan_valid.any(-1)
    of_steps = Hypotheses(*(value[:-1][has_plan] for value in hypotheses))
    each = negative_log_likelihood(
        of_steps, batch.teacher_plan[has_plan], batch.teacher_plan_valid[has_plan]
    )
    return each.sum() / max(1, len(each))


def masked_mean(values: TimeBatch, mask: Flag) -> Float[Tensor, ""]:
    """Average where the mask is set; 0 where it is set nowhere."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)

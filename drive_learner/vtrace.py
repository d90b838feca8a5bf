"""V-trace: value targets and advantages from another policy's actions (Espeholt et al., 2018).

Symbols are the paper's: rho_t and c_t are the truncated importance ratios, and eq. 1 reads

    v_s = V(x_s) + sum_{t >= s} gamma^{t-s} (prod_{s <= i < t} c_i) delta_t
    delta_t = rho_t (r_t + gamma V(x_{t+1}) - V(x_t))

Each step names the value of the state that its own action led to. That is what keeps the three ways
a sequence can stop apart: an episode that terminated has discount 0, so nothing follows; one that
was truncated, or a fragment that was cut, is bootstrapped from the state it was left in, and only
the sum over later steps ends there. The module does not know how the two were told apart.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TimeBatch = Float[Tensor, "time batch"]


class VTrace(NamedTuple):
    """What the critic should predict, and how much better each action was than expected."""

    value_target: TimeBatch
    advantage: TimeBatch


@torch.no_grad()
def vtrace(
    *,
    log_ratio: TimeBatch,
    reward: TimeBatch,
    discount: TimeBatch,
    value: TimeBatch,
    next_value: TimeBatch,
    is_last: Bool[Tensor, "time batch"],
    active: Bool[Tensor, "time batch"],
    rho_max: float = 1.0,
    c_max: float = 1.0,
) -> VTrace:
    """Correct returns for the lag between the policy that acted and the one that learns.

    log_ratio: log pi(a|x) - log mu(a|x).
    discount: gamma, or 0 where the action ended the episode for good (terminated).
    value, next_value: V of the state before the action, and of the state it led to.
    is_last: whether the next row of the column belongs to something else: the last step of an
        episode or of a fragment, for whatever reason. The last row is always one.
    active: steps that were really taken. The others contribute nothing: their value target is their
        value, their advantage is 0.
    """
    ratio = torch.where(active, log_ratio, 0.0).exp()
    rho, c = ratio.clamp(max=rho_max), ratio.clamp(max=c_max)
    td_error = torch.where(active, rho * (reward + discount * next_value - value), 0.0)

    correction = torch.zeros_like(value[0])
    corrections, next_targets = [], []
    for t in reversed(range(len(reward))):
        after = torch.where(is_last[t], 0.0, correction)
        next_targets.append(next_value[t] + after)
        correction = td_error[t] + discount[t] * c[t] * after
        corrections.append(correction)
    target = value + torch.stack(corrections[::-1])
    next_target = torch.stack(next_targets[::-1])
    advantage = torch.where(active, rho * (reward + discount * next_target - value), 0.0)
    return VTrace(target, advantage)

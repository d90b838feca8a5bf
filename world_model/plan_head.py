"""The future-anchored teacher: from a frame's tokens to where a person would drive from there.

A frame is asked by one learnt query for what matters, and a stack of residual feed-forward blocks
turns the answer, and what the network is told of the frame, into several hypotheses of a plan, as
in the paper. They are departures from the plainest way there is: to the first anchor, a
curve that is as smooth as can be (`plans_from: way`); without anchors, or asked for, on an arc at
the frame's speed and yaw rate.
Where the road goes in between, and how soon one is back on it, is for the network to tell.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from drive_envs.plan import (
    NUM_POINTS,
    NUM_VALUES,
    SCALE,
    Hypotheses,
    Plan,
    plan_of_arc,
    plan_to_pose,
)

LEAST_TIME = 2.0  # s: an anchor nearer than that is reached later, as people do not swerve


class PlanHead(nn.Module):
    """Reads tokens and what is told of frames; see `drive_envs.plan` for the units."""

    def __init__(self, dim: int, num_heads: int, num_blocks: int, num_hypotheses: int) -> None:
        super().__init__()
        self.num_heads, self.num_hypotheses = num_heads, num_hypotheses
        self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.told = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
            )
            for _ in range(num_blocks)
        )
        self.out_norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, num_hypotheses * (2 * NUM_POINTS * NUM_VALUES + 1))

    def forward(
        self,
        tokens: Float[Tensor, "batch frame space dim"],
        condition: Float[Tensor, "batch frame dim"],
        plainest: Plan,
    ) -> Hypotheses:
        """Return the plans of each frame: mean (batch, frame, hypothesis, 33, 15) and so on.

        condition: all that is told of a frame, in one vector; it reaches the tokens through gates
        that are closed at first. plainest (batch, frame, 33, 15): what plans depart from, SI.
        """
        batch, frames = tokens.shape[:2]
        split = "batch frame space (part head dim) -> part (batch frame) head space dim"
        key, value = rearrange(
            self.key_value(self.norm(tokens)), split, part=2, head=self.num_heads
        ).unbind()
        query = rearrange(self.query, "(head dim) -> head 1 dim", head=self.num_heads)
        asked = query.to(key.dtype).expand(len(key), -1, -1, -1)
        x = scaled_dot_product_attention(asked, key, value)
        x = rearrange(x, "batch head 1 dim -> batch (head dim)")
        x = x + self.told(condition.flatten(0, 1))
        for block in self.blocks:
            x = x + block(x)
        out = self.out(self.out_norm(x)).float()
        out = out.unflatten(0, (batch, frames)).unflatten(-1, (self.num_hypotheses, -1))
        mean, log_scale = out[..., 1:].unflatten(-1, (2, NUM_POINTS, NUM_VALUES)).unbind(-3)
        mean = mean + (plainest / SCALE.to(plainest))[:, :, None]
        return Hypotheses(mean=mean, log_scale=log_scale, logit=out[..., 0])


def plainest_plan(
    speed: Float[Tensor, "*batch"],
    yaw_rate: Float[Tensor, "*batch"],
    anchor: Float[Tensor, "*batch 3"],
    wait: Float[Tensor, "*batch"],
    has_anchor: Bool[Tensor, "*batch"],
) -> Plan:
    """Return the plan that takes nothing but what is told: m/s, rad/s, the first anchor, and s."""
    arc = plan_of_arc(speed, yaw_rate)
    return torch.where(
        has_anchor[..., None, None], plan_to_pose(speed, anchor, wait, LEAST_TIME), arc
    )

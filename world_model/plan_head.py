"""The future-anchored teacher: from a frame's tokens to where a person would drive from there.

A frame is asked by one learnt query for what matters, and a stack of residual feed-forward blocks
turns the answer, and what the network is told of the frame, into several hypotheses of a plan
(PAPER.md section 3). They are departures from going on as the car went, on an arc at the frame's
speed and yaw rate. That the plan leads to the anchors is what training has made of it; nothing in
here knows of them.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from drive_envs.plan import NUM_POINTS, NUM_VALUES, SCALE, Hypotheses, plan_of_arc


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
        speed: Float[Tensor, "batch frame"],
        yaw_rate: Float[Tensor, "batch frame"],
    ) -> Hypotheses:
        """Return the plans of each frame: mean (batch, frame, hypothesis, 33, 15) and so on.

        condition: all that is told of a frame, in one vector; it reaches the tokens through gates
        that are closed at first. speed, yaw_rate: m/s and rad/s, 0 where they are not known.
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
        arc = plan_of_arc(speed, yaw_rate) / SCALE.to(speed)
        mean = mean + arc[:, :, None]
        return Hypotheses(mean=mean, log_scale=log_scale, logit=out[..., 0])

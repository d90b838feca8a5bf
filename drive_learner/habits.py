"""What is peculiar to the driver of each recording, learnt beside the policy and left out of it.

Where in his lane a person likes to be cannot be told from the road, and still it is what every one
of his recorded paths was driven with. A network that is asked for it again and again learns the
recordings by heart, and on a road of its own it makes a habit up. So each recording gets a code of
a few numbers, a random effect in the sense of mixed models:

    taught = policy's last token + W (code(recording) - mean code),    code ~ N(0, 1 / prior)

What a recording's scenes have in common goes into its code, which is the shorter way; what all have
in common goes into the policy, as the codes' mean is taken out. The imitation losses read `taught`.
A policy that drives, and all that V-trace hears of it, has no code: it is the average person. So
that it is that of each kind of road, a share of what is imitated is imitated without a code too.

Recordings are known by a number (`drive_envs.scenes.Scene.recording`), of which the table takes the
remainder: two that share a slot share a code, which does no harm while they are few.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HabitsConfig:
    """A table of codes.

    dim: numbers in a code. num_slots: of the table. rate: learning rate of the codes relative to
    the policy's, high as each is seen seldom. prior: precision that pulls codes to zero, relative
    to one look at a recording. share_without: of the sequences, imitated without a code; 1 is to
    have none.
    """

    dim: int = 4
    num_slots: int = 65536
    rate: float = 20.0
    prior: float = 0.02
    share_without: float = 0.25

    def __post_init__(self) -> None:
        if self.dim < 1 or self.num_slots < 1:
            raise ValueError(
                f"habits need dim >= 1 and num_slots >= 1, got {self.dim} and {self.num_slots}"
            )
        if self.rate <= 0 or self.prior < 0:
            raise ValueError(
                f"habits need rate > 0 and prior >= 0, got {self.rate} and {self.prior}"
            )
        if not 0 <= self.share_without <= 1:
            raise ValueError(f"habits share_without must be in [0, 1], got {self.share_without}")


class Habits(nn.Module):
    """Codes, all zero at the start, and what they do to a token of `token_dim` numbers."""

    def __init__(self, config: HabitsConfig, token_dim: int) -> None:
        super().__init__()
        self.config = config
        self.codes = nn.Parameter(torch.zeros(config.num_slots, config.dim))
        self.register_buffer("known", torch.zeros(config.num_slots, 1))
        self.token_from_code = nn.Linear(config.dim, token_dim, bias=False)
        nn.init.normal_(self.token_from_code.weight, std=config.dim**-0.5)

    def forward(
        self, recording: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch token"], Float[Tensor, ""]]:
        """Return what is added to the tokens of these recordings, and the prior's loss."""
        slot = recording % self.config.num_slots
        known = self.get_buffer("known")
        known[slot] = 1
        code = self.codes[slot] - (known * self.codes).sum(0) / known.sum()
        drawn = torch.rand(len(slot), 1, generator=generator).to(code.device)
        has_code = drawn >= self.config.share_without
        prior = 0.5 * self.config.prior * code.square().sum(-1).mean()
        return self.token_from_code(code * has_code), prior

"""What is smaller than a token: a few convolutions between the transformer and the velocity.

A token is 16 x 16 pixels of both cameras, and a transformer that is to run on two cores has hardly
more room in it than these take as they are. Where a lane line runs through it, and how sharp its
edge is, can be told from the latents beside it: so the transformer says what there is, in some
features of each place, and convolutions draw it into what they see (as the convolutional heads of
vision transformers do, Ranftl et al., 2021, for their dense predictions).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

NUM_FEATURES = 32  # of each place of a latent, from the transformer
NUM_BLOCKS = 3

Features = Float[Tensor, "frame feature rows columns"]
Shown = Float[Tensor, "frame shown rows columns"]
Hidden = Float[Tensor, "frame hidden rows columns"]
Latent = Float[Tensor, "frame channel rows columns"]


class Detail(nn.Module):
    """A convolution, blocks of two with a way past them, and one more; nothing at first.

    num_shown: channels of what the transformer has seen. num_channels: of a latent.
    """

    def __init__(self, num_shown: int, num_channels: int, num_hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(NUM_FEATURES + num_shown, num_hidden, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(num_hidden) for _ in range(NUM_BLOCKS))
        self.last = zero_convolution(num_hidden, num_channels)

    def forward(self, features: Features, shown: Shown) -> Latent:
        """Return what to add to the velocity."""
        x = self.first(torch.cat([features, shown.to(features.dtype)], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.last(silu(x)).float()


class ResidualBlock(nn.Module):
    """Two convolutions whose outcome is added; nothing at first."""

    def __init__(self, num_hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_hidden, num_hidden, 3, padding=1)
        self.last = zero_convolution(num_hidden, num_hidden)

    def forward(self, x: Hidden) -> Hidden:
        """Return x and what is added to it."""
        return x + self.last(silu(self.first(silu(x))))


def zero_convolution(num_in: int, num_out: int) -> nn.Conv2d:
    """Make a 3 x 3 convolution that returns zeros until it has learnt."""
    convolution = nn.Conv2d(num_in, num_out, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution

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

Features = Float[Tensor, "frame feature rows columns"]
Shown = Float[Tensor, "frame shown rows columns"]
Latent = Float[Tensor, "frame channel rows columns"]


class Detail(nn.Module):
    """Three convolutions, past the second of which there is a way round; nothing at first.

    num_shown: channels of what the transformer has seen. num_channels: of a latent.
    """

    def __init__(self, num_shown: int, num_channels: int, num_hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(NUM_FEATURES + num_shown, num_hidden, 3, padding=1)
        self.second = nn.Conv2d(num_hidden, num_hidden, 3, padding=1)
        self.last = nn.Conv2d(num_hidden, num_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Features, shown: Shown) -> Latent:
        """Return what to add to the velocity."""
        x = self.first(torch.cat([features, shown.to(features.dtype)], dim=1))
        return self.last(silu(x + self.second(silu(x)))).float()

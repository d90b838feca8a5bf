"""A network that sees where other cars are: the next one of our lane, and the next that comes.

It looks at one frame of both cameras, and tells of each of the two whether it is there, how far
away (m), and in which direction (rad, left positive, from where we look). So a generated frame is
judged by itself, and what cars do in a rollout is told from one frame to the next.

It is trained on pictures of which it is known who is where, tokenized and decoded, which is how
generated frames look too. Its own error is the floor of what it says about a world model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from world_model.small_net import FitConfig, convolutions, fit
from world_model.tokenizer import to_float

NUM_CARS = 2
UNIT = (0.1, 0.02)  # of the logarithm of a distance, and rad: what errors are weighed in
TYPICAL = 30.0  # m

Views = UInt8[Tensor, "batch 2 3 height width"]


@dataclass(frozen=True, kw_only=True)
class CarNetConfig(FitConfig):
    """How it is trained."""

    part: ClassVar[str] = "car_net"
    num_steps: int = 2500


class CarsSeen(NamedTuple):
    """Of each car: the logit of its being there, its distance in m, its direction in rad."""

    logit: Float[Tensor, "batch cars"]
    distance: Float[Tensor, "batch cars"]
    bearing: Float[Tensor, "batch cars"]

    @property
    def is_there(self) -> Bool[Tensor, "batch cars"]:
        """Whether it is there rather than not."""
        return self.logit > 0

    @property
    def places(self) -> Float[Tensor, "batch cars 2"]:
        """Where each is, in m ahead of us and to our left; NaN where there is none."""
        x, y = self.distance * self.bearing.cos(), self.distance * self.bearing.sin()
        places = torch.stack([x, y], dim=-1)
        return places.where(self.is_there[..., None], torch.nan)


class CarSamples(NamedTuple):
    """Frames, and where the cars are in them: m ahead and to the left, NaN for one that is not."""

    images: Views
    places: Float[Tensor, "batch cars 2"]


class CarNet(nn.Module):
    """Convolutions over both cameras, and what is left of rows and columns, flattened."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.features, num = convolutions(6, width, height)
        self.out = nn.Sequential(nn.Linear(num, 128), nn.SiLU(), nn.Linear(128, 3 * NUM_CARS))

    def forward(self, images: Views) -> CarsSeen:
        """Tell who is where."""
        found = self.out(self.features(to_float(images).flatten(1, 2))).float()
        logit, log, bearing = found.unflatten(1, (3, NUM_CARS)).unbind(1)
        return CarsSeen(logit, TYPICAL * log.clamp(-4, 4).exp(), 0.1 * bearing)


def train_car_net(
    samples: CarSamples,
    config: CarNetConfig,
    seed: int,
    shown: Callable[[range], Iterable[int]] = iter,
) -> CarNet:
    """Fit a network to frames; bearings and distances where there is somebody. shown: see `fit`."""
    torch.manual_seed(seed)
    height, width = samples.images.shape[-2:]
    network = CarNet(width, height)

    def loss(picked: Tensor, rng: np.random.Generator) -> Tensor:
        places = samples.places[picked]
        is_there = places.isfinite().all(-1)
        x, y = places.nan_to_num(1.0).unbind(-1)
        seen = network(samples.images[picked])
        presence = nn.functional.binary_cross_entropy_with_logits(seen.logit, is_there.float())
        distance = (seen.distance.log() - torch.hypot(x, y).log()).abs() / UNIT[0]
        bearing = (seen.bearing - torch.atan2(y, x)).abs() / UNIT[1]
        return presence + 0.2 * ((distance + bearing) * is_there).sum() / is_there.sum().clamp(1)

    fit(network, len(samples.places), loss, config, seed, shown)
    return network


@torch.inference_mode()
def cars_seen(network: CarNet, images: Views) -> CarsSeen:
    """Tell who is where in many frames."""
    return CarsSeen(*map(torch.cat, zip(*map(network, images.split(64)), strict=True)))


class CarNetErrors(NamedTuple):
    """How wrong it is, by car.

    missed: share of those that are there. imagined: share of the frames without that show one.
    distance: median, relative. bearing: median, rad.
    """

    missed: Float[Tensor, " cars"]
    imagined: Float[Tensor, " cars"]
    distance: Float[Tensor, " cars"]
    bearing: Float[Tensor, " cars"]


def errors_of(network: CarNet, samples: CarSamples) -> CarNetErrors:
    """Compare what it sees with who is where; NaN where there is nobody, or always somebody."""
    seen = cars_seen(network, samples.images)
    is_there = samples.places.isfinite().all(-1)
    x, y = samples.places.unbind(-1)
    both = is_there & seen.is_there
    distance = (seen.distance / torch.hypot(x, y) - 1).abs().where(both, torch.nan)
    bearing = (seen.bearing - torch.atan2(y, x)).abs().where(both, torch.nan)
    return CarNetErrors(
        missed=(is_there & ~seen.is_there).sum(0) / is_there.sum(0),
        imagined=(~is_there & seen.is_there).sum(0) / (~is_there).sum(0),
        distance=distance.nanmedian(dim=0).values,
        bearing=bearing.nanmedian(dim=0).values,
    )

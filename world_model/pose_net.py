"""A network that sees how far beside the recorded pose a picture was taken.

It compares what both cameras recorded at a time with what is seen at the same time from elsewhere,
and tells the lateral offset (m, left) and the turn (rad) between the two. So it judges a generated
frame by itself: no error adds up over frames, as it would with motion between frames.

It is trained on recordings and their excursions, tokenized and decoded, which is how generated
frames look too. Its own error is the floor of what it says about a world model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from world_model.latents import LatentFile
from world_model.small_net import FitConfig, convolutions, fit
from world_model.tokenizer import Tokenizer, to_float

UNIT = (1.0, 0.1)  # m and rad: what the outputs are in

Pairs = UInt8[Tensor, "batch 2 3 height width"]
Offsets = Float[Tensor, "batch 2"]


@dataclass(frozen=True, kw_only=True)
class PoseNetConfig(FitConfig):
    """How it is trained: on `num_pairs` pairs of frames, decoded once."""

    part: ClassVar[str] = "pose_net"
    num_pairs: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pairs < 1:
            raise ValueError(f"pose_net.num_pairs must be 1 or more, got {self.num_pairs}")


class PoseNet(nn.Module):
    """Convolutions over both frames at once, then what is left of rows and columns, flattened."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.features, num = convolutions(12, width, height)
        self.out = nn.Sequential(nn.Linear(num, 96), nn.SiLU(), nn.Linear(96, len(UNIT)))

    def forward(self, recorded: Pairs, seen: Pairs) -> Offsets:
        """Return (m to the left, rad counter-clockwise) of `seen` relative to `recorded`."""
        both = torch.cat([to_float(images).flatten(1, 2) for images in (recorded, seen)], dim=1)
        return self.out(self.features(both)).float() * both.new_tensor(UNIT)


class Samples(NamedTuple):
    """Pairs of frames of the same time, and how the second is off."""

    recorded: Pairs
    seen: Pairs
    offset: Offsets


def draw_samples(
    file: LatentFile, split: str, tokenizer: Tokenizer, num: int, seed: int
) -> Samples:
    """Decode pairs from the drives of one split: an excursion's frame, and the recorded one.

    Raises ValueError when the split has no drive, or the file no excursions.
    """
    groups = [group for group, of in enumerate(file.splits) if of == split]
    if not groups or file.info.num_variants < 2:
        raise ValueError(
            f"{file.path}: a pose net takes excursions of split '{split}'; there are {len(groups)} "
            f"drives and {file.info.num_variants - 1} excursions of each"
        )
    rng = np.random.default_rng(seed)
    recorded, seen, offsets = [], [], []
    for index in range(num):
        # Drives in order, so that each is read once.
        drive = file[groups[index * len(groups) // num]]
        row, variant = int(rng.integers(len(drive))), int(rng.integers(1, len(drive.poses)))
        turn = drive.poses[variant, row, 2] - drive.poses[0, row, 2]
        recorded.append(drive.latents[0, row])
        seen.append(drive.latents[variant, row])
        offsets.append((drive.lateral[variant, row], np.arctan2(np.sin(turn), np.cos(turn))))
    images = [
        torch.cat([tokenizer.decode(part) for part in stacked(latents).split(64)])
        for latents in (recorded, seen)
    ]
    return Samples(images[0], images[1], torch.tensor(np.array(offsets), dtype=torch.float32))


def stacked(latents: Sequence[np.ndarray]) -> Tensor:
    """Stack latents as they are kept into what a tokenizer takes."""
    return torch.from_numpy(np.stack(latents)).float()


def train_pose_net(samples: Samples, config: PoseNetConfig, seed: int) -> PoseNet:
    """Fit a network to pairs, half of them turned over; L1, as a few frames show nothing."""
    torch.manual_seed(seed)
    height, width = samples.seen.shape[-2:]
    network = PoseNet(width, height)
    unit = torch.tensor(UNIT)

    def loss(picked: Tensor, rng: np.random.Generator) -> Tensor:
        recorded, seen, offset = (part[picked] for part in samples)
        if rng.random() < 0.5:
            recorded, seen, offset = recorded.flip(-1), seen.flip(-1), -offset
        return ((network(recorded, seen) - offset) / unit).abs().mean()

    fit(network, len(samples.offset), loss, config, seed)
    return network


@torch.inference_mode()
def estimate(network: PoseNet, recorded: Pairs, seen: Pairs) -> Offsets:
    """Tell the offsets of many pairs."""
    parts = zip(recorded.split(64), seen.split(64), strict=True)
    return torch.cat([network(*pair) for pair in parts])

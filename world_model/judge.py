"""What is seen of a world model when it is followed and commanded, see `evaluation`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from world_model.evaluation import (
    EvaluationConfig,
    Scene,
    drift_curve,
    image_curves,
    offsets_seen,
    realised_share,
    still_frames,
    true_frames,
)
from world_model.pose_net import PoseNet
from world_model.previews import Frames, decoded
from world_model.rollouts import Rollouts, roll_out
from world_model.sampler import Sampler
from world_model.tokenizer import Tokenizer

KINDS = ("autoencoder", "next frame", "still", "rollout")


class Followed(NamedTuple):
    """Recordings as they are generated: curves by kind and metric, and what was generated.

    Of these the `still` is the last frame that was seen, again and again: where it is nearer to the
    truth than a rollout, a metric says little of whether the road is where it should be.
    """

    curves: dict[str, dict[str, np.ndarray]]
    rollouts: Rollouts
    frames: Frames


class Deviation(NamedTuple):
    """Excursions that were commanded, (scene, frame) m beside the recording.

    seen: where the pose net sees generated frames taken from, in_truth: those that show the
    excursion as it would have been seen. errors: of generated frames against these, by metric,
    means over frames.
    """

    peak: float
    variant: int
    commanded: Tensor
    seen: Tensor
    in_truth: Tensor
    rollouts: Rollouts
    frames: Frames
    errors: dict[str, float]

    @property
    def pose_net_error(self) -> float:
        """How far off the pose net is, in m, on pictures that show the excursion truly."""
        return (self.in_truth - self.commanded).abs().mean().item()

    @property
    def shares(self) -> tuple[float, float]:
        """Which share of the command is realised: in generated frames, and in true ones."""
        return (
            realised_share(self.seen, self.commanded),
            realised_share(self.in_truth, self.commanded),
        )


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model, and all that it takes to judge it. perceptual: LPIPS networks by name, or none."""

    evaluation: EvaluationConfig
    sampler: Sampler
    tokenizer: Tokenizer
    pose_net: PoseNet
    perceptual: Mapping[str, nn.Module]

    @property
    def variants(self) -> range:
        """The variants of a scene that are commanded excursions."""
        return range(1, 1 + 2 * len(self.evaluation.commanded))

    def generate(
        self, scenes: Sequence[Scene], *, variant: int, truth_as_history: bool = False
    ) -> Rollouts:
        """Generate the frames of all scenes along one of their variants; see `roll_out`."""
        return roll_out(
            self.sampler,
            [(scene.drive, scene.first) for scene in scenes],
            self.evaluation.num_frames,
            seed=self.evaluation.seed,
            variant=variant,
            truth_as_history=truth_as_history,
        )

    def follow(self, scenes: Sequence[Scene]) -> Followed:
        """Generate the recordings again, and compare frame by frame."""
        num_frames = self.evaluation.num_frames
        rollouts = self.generate(scenes, variant=0)
        forced = self.generate(scenes, variant=0, truth_as_history=True)
        truth = true_frames(scenes, 0, num_frames)
        frames = {
            "autoencoder": decoded(self.tokenizer, rollouts.truth),
            "next frame": decoded(self.tokenizer, forced.latents),
            "still": still_frames(scenes, num_frames),
            "rollout": decoded(self.tokenizer, rollouts.latents),
        }
        curves = {}
        for kind in KINDS:
            curves[kind] = image_curves(frames[kind], truth, self.perceptual)
            curves[kind]["drift"] = drift_curve(
                self.pose_net, frames["autoencoder"], frames[kind], frames["autoencoder"]
            )
            if kind != "autoencoder":  # which is what the others are seen from
                off = offsets_seen(self.pose_net, frames["autoencoder"], frames[kind])
                curves[kind]["off_pose"] = off[..., 0].abs().mean(0).numpy()
                curves[kind]["off_heading"] = off[..., 1].abs().mean(0).numpy()
        return Followed(curves, rollouts, frames["rollout"])

    def deviate(self, scenes: Sequence[Scene], variant: int) -> Deviation:
        """Generate along an excursion, and see where the frames were taken from."""
        num_frames = self.evaluation.num_frames
        rollouts = self.generate(scenes, variant=variant)
        rows = [slice(scene.first, scene.first + num_frames) for scene in scenes]

        def decoded_variant(variant: int) -> Frames:
            latents = [
                torch.from_numpy(scene.drive.latents[variant, row]).float()
                for scene, row in zip(scenes, rows, strict=True)
            ]
            return decoded(self.tokenizer, torch.stack(latents))

        recorded, truth = decoded_variant(0), decoded_variant(variant)
        frames = decoded(self.tokenizer, rollouts.latents)
        commanded = np.stack(
            [scene.drive.lateral[variant, row] for scene, row in zip(scenes, rows, strict=True)]
        )
        curves = image_curves(frames, true_frames(scenes, variant, num_frames), self.perceptual)
        peak = self.evaluation.commanded[(variant - 1) // 2] * (1 if variant % 2 else -1)
        return Deviation(
            peak=peak,
            variant=variant,
            commanded=torch.from_numpy(commanded),
            seen=offsets_seen(self.pose_net, recorded, frames)[..., 0],
            in_truth=offsets_seen(self.pose_net, recorded, truth)[..., 0],
            rollouts=rollouts,
            frames=frames,
            errors={name: float(curve.mean()) for name, curve in curves.items()},
        )

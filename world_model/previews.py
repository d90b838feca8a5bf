"""What a world model dreams, to look at: generated frames beside what was recorded."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from drive_envs.camera import CAMERAS
from drive_envs.drawing import Picture, draw_views
from world_model.rollouts import Rollouts
from world_model.tokenizer import Tokenizer

Frames = UInt8[Tensor, "batch frame 2 3 height width"]


def decoded(tokenizer: Tokenizer, latents: Tensor) -> Frames:
    """Turn latents (batch, frame, C, h, w) into both cameras' images, on the CPU."""
    images = [tokenizer.decode(scene.to(tokenizer.mean.device)).cpu() for scene in latents]
    return torch.stack(images)


def draw_rollouts(
    generated: Frames,
    recorded: Frames,
    rollouts: Rollouts,
    *,
    scale: int = 2,
    caption: str = "recorded",
) -> list[Picture]:
    """Draw all scenes, a picture a frame: recorded, and below it generated, with its plan."""
    pictures = []
    for step in range(generated.shape[1]):
        columns = []
        for scene in range(len(generated)):
            plan = rollouts.plans[scene, step + 1].cpu().numpy()
            above = draw_views(by_camera(recorded[scene, step]), caption=caption, scale=scale)
            below = draw_views(by_camera(generated[scene, step]), plan=plan, scale=scale)
            columns.append(np.concatenate([above, below]))
        pictures.append(np.concatenate(columns, axis=1))
    return pictures


def by_camera(images: UInt8[Tensor, "2 3 height width"]) -> dict[str, np.ndarray]:
    """Name the images of a frame."""
    return {name: image.numpy() for name, image in zip(CAMERAS, images, strict=True)}


def grid(frames: Frames, steps: Sequence[int]) -> Picture:
    """Put some frames of each scene beside each other, scenes below each other, narrow camera."""
    rows = [
        np.concatenate([frames[scene, step, 0].permute(1, 2, 0).numpy() for step in steps], axis=1)
        for scene in range(len(frames))
    ]
    return np.concatenate(rows)

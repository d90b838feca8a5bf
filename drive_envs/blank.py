"""A world without images, for drivers that do not look: driving costs nothing but itself."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from drive_envs.camera import cameras
from drive_envs.scenes import Scene


class Blank:
    """Shows black pictures of the right size for any scene."""

    def __init__(self, width: int = 128, height: int = 64) -> None:
        self.cameras = cameras(width, height)

    def reset(self, scenes: Sequence[Scene]) -> None:
        """Take any scenes."""

    def render(
        self, poses: Float[Tensor, "batch 3"], step: int, active: Bool[Tensor, " batch"]
    ) -> dict[str, np.ndarray]:
        """Return black images, uint8 (batch, 3, H, W)."""
        return {
            name: np.zeros((len(poses), 3, camera.height, camera.width), np.uint8)
            for name, camera in self.cameras.items()
        }

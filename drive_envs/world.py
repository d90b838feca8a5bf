"""What a world is: it answers what the cameras see from a pose, for a batch of scenes.

The environment cannot tell one world from another. There are three: `reprojective.Reprojective`
(recorded frames and depth), `learned.Learned` (what a world model has learnt to show) and
`metadrive_world.MetaDrive` (a 3-D simulator).
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from drive_envs.camera import Camera
from drive_envs.scenes import Scene


@runtime_checkable
class World(Protocol):
    """A batch of scenes to look at."""

    @property
    def cameras(self) -> Mapping[str, Camera]:
        """`narrow` and `wide`, all of the same size."""
        ...

    def reset(self, scenes: Sequence[Scene]) -> None:
        """Begin with new scenes; ValueError when this world cannot show their source."""
        ...

    def render(
        self, poses: Float[Tensor, "batch 3"], step: int, active: Bool[Tensor, " batch"]
    ) -> dict[str, np.ndarray]:
        """Return what each camera sees from world poses x, y, yaw: uint8 (batch, 3, H, W).

        `step` counts from each scene's start row, negative in its context. Images of scenes that
        are not active are not looked at.
        """
        ...


@runtime_checkable
class TimedWorld(Protocol):
    """A world that also tells how long the parts of its last `render` took."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time by part; the parts lie within the render's."""
        ...


@runtime_checkable
class ClosableWorld(Protocol):
    """A world that holds something to give back, such as a simulator."""

    def close(self) -> None:
        """End it; the world cannot be used again."""
        ...


@runtime_checkable
class PlanningWorld(Protocol):
    """A world that also knows where to drive, from where its last `render` looked."""

    @property
    def plan(self) -> Float32[np.ndarray, "batch 33 15"]:
        """The plans, SI units in the ego frames of the poses rendered from."""
        ...

"""MetaDrive as a world to drive in: the real 3-D scene from wherever the car is.

Scenes come with a `RoadScene` as their source; poses are MetaDrive's world poses, as the paths of
`scenario_path` are. The road is empty. One scene at a time, one world a process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drive_envs.camera import cameras
from drive_envs.conditions import CLEAR
from drive_envs.metadrive_rendering import MetaDriveRenderer
from drive_envs.path import NUM_PAST, RecordedPath
from drive_envs.plan import STEP
from drive_envs.roads import Road, lane_centerline
from drive_envs.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class RoadScene:
    """A drive on a road of our own, along one of its lanes (0 leftmost).

    cars: world poses (x, y, yaw) of others, a row a step from the first of the context on.
    """

    road: Road
    lane: int = 0
    cars: Float[np.ndarray, "row car 3"] | None = field(default=None, compare=False)


class MetaDrive:
    """The World that MetaDrive is. Images are `width` x `height`; ValueError as the renderer's.

    `region` (512 or 1024 m) limits how large roads may be; see `MetaDriveRenderer`. What is seen is
    subject to `conditions`, which may be set before a scene begins; `cameras` are what the driver
    thinks they are.
    """

    def __init__(
        self, width: int = 128, height: int = 64, *, region: int = 512, supersampling: int = 2
    ) -> None:
        self.cameras = cameras(width, height)
        self._cars: np.ndarray | None = None
        self.conditions = CLEAR
        self.renderer = MetaDriveRenderer(self.cameras, region=region, supersampling=supersampling)

    def reset(self, scenes: Sequence[Scene]) -> None:
        """Load the road of the one scene; ValueError for more of them, or for another source."""
        if len(scenes) != 1:
            raise ValueError(
                f"MetaDrive shows one scene a process, got {len(scenes)}: start one process a scene"
            )
        source = scenes[0].source
        if not isinstance(source, RoadScene):
            kind = type(source).__name__
            raise ValueError(f"MetaDrive needs scenes with a RoadScene as source, got a {kind}")
        self.renderer.load(source.road)
        mounted = {name: self.conditions.mounted(camera) for name, camera in self.cameras.items()}
        self.renderer.mount(mounted)
        self._cars = source.cars

    def render(
        self, poses: Float[Tensor, "1 3"], step: int, active: Bool[Tensor, "1"]
    ) -> dict[str, np.ndarray]:
        """Return uint8 (1, 3, H, W) images of each camera; black when the scene is not active."""
        if not bool(active[0]):
            blank = {name: (1, 3, c.height, c.width) for name, c in self.cameras.items()}
            return {name: np.zeros(shape, np.uint8) for name, shape in blank.items()}
        if self._cars is not None:
            self.renderer.place({"s": self._cars[NUM_PAST + step]})
        x, y, yaw = (float(value) for value in poses[0])
        frames = self.renderer.render(x, y, yaw)
        return {
            name: self.conditions.seen(
                frame.image, frame.depth, self.renderer.cameras[name], poses[0].numpy(), step
            )[None]
            for name, frame in frames.items()
        }

    def close(self) -> None:
        """End MetaDrive."""
        self.renderer.close()


def scenario_path(
    road: Road, lane: int, start: float, speed: float, duration: float
) -> RecordedPath:
    """Return a path along a lane's centre at constant speed, with the context before its start.

    Row `NUM_PAST` is at `start` metres along the lane; `duration` s follow. ValueError when the
    context would begin before the road, or the drive end after it.
    """
    line = lane_centerline(road, lane)
    num_rows = NUM_PAST + round(duration / STEP) + 1
    s = start + speed * STEP * (np.arange(num_rows) - NUM_PAST)
    if s[0] < 0 or s[-1] > line.length:
        needed = f"from {s[0]:.1f} m to {s[-1]:.1f} m"
        raise ValueError(f"the drive needs the lane {needed}, but it is {line.length:.1f} m long")
    return RecordedPath(
        time=STEP * torch.arange(num_rows, dtype=torch.float64),
        poses=torch.from_numpy(line.poses(s)),
        speed=torch.full((num_rows,), speed, dtype=torch.float64),
        desire=torch.zeros(num_rows, dtype=torch.int64),
    )

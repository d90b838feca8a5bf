"""Filming drives: from random kinematics to a segment with pictures, depth and poses.

A drive is repeatable from (seed, number). It does not know files or processes: `cluster.record`
does.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from drive_envs.camera import Camera
from drive_envs.drives import Drive, DriveConfig, DropError, random_drive
from drive_envs.frames import encode_depth, encode_image, shrink_depth
from drive_envs.metadrive_rendering import MetaDriveRenderer
from drive_envs.plan import STEP
from drive_envs.segment import Segment

MAX_ATTEMPTS = 10  # drives tried for one segment


@dataclass(frozen=True, kw_only=True)
class Take:
    """A segment, and how many drives were dropped before it by cause."""

    segment: Segment
    dropped: Counter[str]


class Recorder:
    """Records segments with the one MetaDrive of this process.

    `scale` says how many times larger the cameras are than what a driver will see: they are drawn
    without supersampling, which is made up for when the frames are shrunk, and depth is kept at the
    driver's resolution. At scale 1 the scene is drawn twice as large, as for a driver.
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        config: DriveConfig,
        *,
        seed: int,
        quality: int,
        scale: int = 1,
    ) -> None:
        self.config, self._seed, self._quality, self._scale = config, seed, quality, scale
        self._renderer = MetaDriveRenderer(
            cameras, region=config.roads.region, supersampling=2 if scale == 1 else 1
        )

    def record(self, number: int, split: str) -> Take:
        """Record the drive of this number; ValueError when `MAX_ATTEMPTS` drives are dropped."""
        dropped: Counter[str] = Counter()
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self._seed, number, attempt])
            try:
                drive = random_drive(self.config, rng)
            except DropError as error:
                dropped[error.cause] += 1
                continue
            return Take(segment=self._film(drive, f"drive-{number:05d}", split), dropped=dropped)
        causes = ", ".join(f"{count} x {cause}" for cause, count in dropped.items())
        raise ValueError(f"drive {number} was dropped {MAX_ATTEMPTS} times ({causes})")

    def close(self) -> None:
        """End MetaDrive."""
        self._renderer.close()

    def _film(self, drive: Drive, name: str, split: str) -> Segment:
        renderer = self._renderer
        renderer.load(drive.road)
        images: dict[str, list[bytes]] = {camera: [] for camera in renderer.cameras}
        depths: dict[str, list[bytes | None]] = {camera: [] for camera in renderer.cameras}
        for (x, y, yaw), cars in zip(drive.poses.tolist(), drive.cars, strict=True):
            renderer.place(cars)
            for camera, frame in renderer.render(x, y, yaw).items():
                images[camera].append(encode_image(frame.image, quality=self._quality))
                depths[camera].append(encode_depth(shrink_depth(frame.depth, self._scale)))
        num_rows = len(drive.poses)
        x, y, yaw = drive.poses.T
        zero = np.zeros(num_rows)
        return Segment(
            name=name,
            split=split,
            cameras=renderer.cameras,
            time=STEP * np.arange(num_rows),
            position=np.stack([x, y, zero], axis=-1),
            quaternion=np.stack([zero, zero, np.sin(yaw / 2), np.cos(yaw / 2)], axis=-1),
            velocity=np.stack([drive.speed * np.cos(yaw), drive.speed * np.sin(yaw), zero], -1),
            desire=drive.desire.astype(np.int8),
            valid=np.ones(num_rows, bool),
            images=images,
            depths=depths,
            source=json.dumps(_source(drive, self.config, self._seed)),
        )


def _source(drive: Drive, config: DriveConfig, seed: int) -> dict[str, object]:
    """Say where a segment comes from, so that its road and its driver can be told."""
    return {
        "simulator": "MetaDrive",
        "road": drive.road.fingerprint(),
        "blocks": [asdict(block) for block in drive.road.blocks],
        "lane": drive.lane,
        "opposite": drive.opposite,
        "preference": drive.driver.preference,
        "preferred_speed": drive.driver.speed,
        "num_cars": drive.num_cars,
        "seed": seed,
        "human": asdict(config.human),
    }

"""What may be otherwise than in training: light, weather, the road's surface, the camera, the car.

A picture is changed as light is, in linear intensities (gamma 2.2), from its depth z:

    L' = L a(x, y) e(z) t(r) + A (1 - t(r)) + rain,    t(r) = exp(-extinction r)   (Koschmieder)

a: the road's brightness, a pattern that lies still in the world. e: daylight, and below `DUSK` the
car's own headlights, which fall off with distance. r: metres from the camera, A: the air's own
brightness. The camera's errors are of its mount, the car's are those of `vehicle`: the driver is
not told of either. Strengths of nought (one for factors) change nothing.

It does not know what is drawn, nor who drives.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import radians

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from drive_envs.camera import Camera, unproject
from drive_envs.vehicle import VehicleConfig

GAMMA = 2.2
DUSK = 0.3  # of daylight, below which headlights are on
HEADLIGHTS, HEADLIGHT_REACH = 0.8, 15.0  # of daylight at the bumper; m at which half is left
AIR = 0.6  # brightness of fog in daylight, of white
GROUND = 0.3  # m above the road up to which a point belongs to it
PATTERN_SCALES = (0.5, 2.0, 8.0)  # m
SHEET = 256  # numbers a side in the pattern, after which it repeats
RAIN_FOG = 0.01  # 1/m, extinction of the heaviest rain
STREAK = 0.12  # length of a streak, of the image's height
STREAK_BRIGHTNESS = 0.35  # of white


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a drive differs from a clear day with the camera and the car as they should be.

    light: factor on daylight. fog: extinction, 1/m; one sees some 3 / fog metres. rain: 0 to 1.
    texture: standard deviation of the road's relative brightness.
    camera_height: m too high. camera_pitch: degrees too far down. focal: factor on its length.
    latency: s until a command has an effect. gain: factor on the steering. wind: m/s^2 to the left.
    """

    light: float = 1.0
    fog: float = 0.0
    rain: float = 0.0
    texture: float = 0.0
    camera_height: float = 0.0
    camera_pitch: float = 0.0
    focal: float = 1.0
    latency: float = 0.0
    gain: float = 1.0
    wind: float = 0.0

    def __post_init__(self) -> None:
        for name in ("light", "focal", "gain"):
            if getattr(self, name) <= 0:
                raise ValueError(f"conditions.{name} must be positive, got {getattr(self, name)}")
        for name in ("fog", "rain", "texture", "latency"):
            if getattr(self, name) < 0:
                raise ValueError(f"conditions.{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def is_clear(self) -> bool:
        """Whether pictures stay as they are drawn."""
        return (self.light, self.fog, self.rain, self.texture) == (1.0, 0.0, 0.0, 0.0)

    def mounted(self, camera: Camera) -> Camera:
        """Return a camera as it is, not as the driver thinks."""
        return replace(
            camera,
            focal=camera.focal * self.focal,
            mount_height=camera.mount_height + self.camera_height,
            pitch=camera.pitch + radians(self.camera_pitch),
        )

    def vehicle(self, car: VehicleConfig) -> VehicleConfig:
        """Return a car with these disturbances in place of its own of their kind."""
        if self.latency:
            car = replace(car, delay=(self.latency, self.latency))
        if self.gain != 1:
            car = replace(car, gain=(self.gain, self.gain))
        if self.wind:
            car = replace(car, wind=(self.wind, self.wind))
        return car

    def seen(
        self,
        image: UInt8[np.ndarray, "3 height width"],
        depth: Float[np.ndarray, "height width"],
        camera: Camera,
        pose: Float[np.ndarray, "3"],
        step: int,
    ) -> UInt8[np.ndarray, "3 height width"]:
        """Return a picture as it looks; depth is planar metres, inf in the sky.

        camera: as mounted. pose: of the car, world x, y, yaw. step: rain is another on each.
        """
        if self.is_clear:
            return image
        light = (image.astype(np.float32) / 255) ** GAMMA
        points = unproject(camera, torch.from_numpy(depth.astype(np.float64))).numpy()
        if self.texture:
            light *= 1 + self.texture * road_pattern(points, camera, pose)
        shining = np.full(depth.shape, self.light, np.float32)
        if self.light < DUSK:
            shining += (HEADLIGHTS / (1 + (depth / HEADLIGHT_REACH) ** 2)).astype(np.float32)
        light *= shining
        if extinction := self.fog + RAIN_FOG * self.rain:
            rays = unproject(camera, torch.ones(depth.shape, dtype=torch.float64)).numpy()
            clear = np.exp(-extinction * np.linalg.norm(rays, axis=-1) * depth)
            light = light * clear + AIR * self.light * (1 - clear)
        if self.rain:
            light += self.rain * STREAK_BRIGHTNESS * self.light * streaks(depth.shape, step)
        return (255 * light.clip(0, 1) ** (1 / GAMMA) + 0.5).astype(np.uint8)


CLEAR = Conditions()


def road_pattern(
    points: Float[np.ndarray, "height width 3"], camera: Camera, pose: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "height width"]:
    """Return a pattern of unit variance where camera-frame points lie on the road, else 0.

    What is finer than a pixel's length on the ground, z^2 / (f h), fades away.
    """
    in_sky = np.logical_not(np.isfinite(points).all(-1))
    mount = camera.ego_from_camera.numpy()
    ego = np.where(in_sky[..., None], 0.0, points) @ mount[:3, :3].T + mount[:3, 3]
    x, y, yaw = pose
    east = x + ego[..., 0] * np.cos(yaw) - ego[..., 1] * np.sin(yaw)
    north = y + ego[..., 0] * np.sin(yaw) + ego[..., 1] * np.cos(yaw)
    length = np.where(in_sky, np.inf, points[..., 2]) ** 2 / (camera.focal * camera.mount_height)
    total = np.zeros(east.shape, np.float32)
    for scale in PATTERN_SCALES:
        columns, rows = (np.mod(place / scale, SHEET).astype(np.float32) for place in (east, north))
        read = cv2.remap(pattern(), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        total += read * np.minimum(1, scale / length.clip(scale / 100)).astype(np.float32)
    on_road = ~in_sky & (np.abs(ego[..., 2]) < GROUND)
    return np.where(on_road, total / np.float32(len(PATTERN_SCALES) ** 0.5), np.float32(0.0))


@lru_cache(maxsize=1)
def pattern() -> Float[np.ndarray, "rows columns"]:
    """Return the pattern's numbers, of unit variance where they are read between them."""
    drawn = np.random.default_rng(0).standard_normal((SHEET, SHEET)).astype(np.float32)
    # Of a normal number 0.88 of the deviation is left within +-2, and 2/3 when read bilinearly.
    return np.float32(1.5 / 0.88) * drawn.clip(-2, 2)


def streaks(shape: tuple[int, ...], step: int) -> Float[np.ndarray, "height width"]:
    """Return streaks of rain, 0 to 1, the same for the same step."""
    height, width = shape
    drawn = np.random.default_rng([1, abs(step), height]).standard_normal((height, width))
    length = max(1, round(STREAK * height))
    smeared = cv2.blur(drawn.astype(np.float32), (1, length)) * np.float32(length**0.5)
    return (smeared - 1.5).clip(0, 1)

"""MetaDrive as a renderer: load a road, place cars, look from a pose.

Nothing here has dynamics: cars stand where they are put, and the camera's own car is not seen.
MetaDrive allows one engine a process. World poses are MetaDrive's own (x, y, yaw
counter-clockwise), a right-handed world like ours.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from metadrive.component.vehicle.vehicle_type import MVehicle, SVehicle
from metadrive.constants import CamMask
from metadrive.envs import MetaDriveEnv
from metadrive.obs.observation_base import DummyObservation

from drive_envs.camera import Camera
from drive_envs.metadrive_assets import ensure_assets
from drive_envs.metadrive_camera import MetaDriveCamera
from drive_envs.metadrive_mesa import patch
from drive_envs.roads import Road

CARS = {"s": SVehicle, "m": MVehicle}  # the models whose licence is known


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What one camera saw."""

    image: UInt8[np.ndarray, "3 height width"]
    depth: Float[np.ndarray, "height width"]  # m, planar z, inf in the sky


class RoadEnv(MetaDriveEnv):
    """MetaDrive with its cameras left where we put them."""

    def setup_engine(self) -> None:
        super().setup_engine()
        # MetaDrive sets it to a value that every Python started from here would refuse.
        os.environ.pop("PYTHONUTF8", None)
        for window in self.engine.graphicsEngine.getWindows():
            # The invisible main window would otherwise draw the scene once more.
            if window.getName() == "filter-base" and window.getXSize() == 1:
                window.setActive(False)

    def reset_sensors(self) -> None:
        """Leave the cameras alone: they are posed for each frame."""


class MetaDriveRenderer:
    """The only MetaDrive of this process, seen through `cameras`.

    `region` (512 or 1024 m) is the side of the square around (0, 0) in which roads are visible.
    ValueError (AssetsError, GraphicsError) when the machine lacks assets or OpenGL, or when the
    process has a renderer already.
    """

    _is_taken = False

    def __init__(
        self, cameras: Mapping[str, Camera], *, region: int = 512, supersampling: int = 2
    ) -> None:
        ensure_assets()
        if MetaDriveRenderer._is_taken:
            raise ValueError(
                "this process has a MetaDriveRenderer already: close it, or start another process"
            )
        if region not in (512, 1024):
            raise ValueError(f"region must be 512 or 1024 m, got {region}")
        patch()
        self.cameras = dict(cameras)
        self._region = region
        self._road: Road | None = None
        self._cars: dict[str, list[Any]] = {kind: [] for kind in CARS}
        sensors = {
            name: (MetaDriveCamera, camera, supersampling) for name, camera in cameras.items()
        }
        self._env = RoadEnv(_settings(sensors, region))
        MetaDriveRenderer._is_taken = True

    def load(self, road: Road) -> None:
        """Build a road (0.5 s or so, nothing when it is the last one); all cars disappear.

        ValueError when the road does not fit into the region.
        """
        if road.extent > self._region / 2:
            size = f"{2 * road.extent:.0f} m for a region of {self._region} m"
            raise ValueError(f"the road is too large, {size}: shorten it, or use a larger region")
        self.place({})
        if road == self._road:
            return
        self._clear()
        self._env.config["map_config"].update(road.map_config())
        self._env.reset()
        self._road = road
        self._env.agent.origin.hide(CamMask.AllOn)

    def place(self, cars: Mapping[str, Float[np.ndarray, "cars 3"]]) -> None:
        """Show cars of each kind ("s", "m") at world poses (x, y, yaw); others are put away."""
        for kind, vehicles in self._cars.items():
            poses = np.asarray(cars.get(kind, np.empty((0, 3))), float)
            while len(vehicles) < len(poses):
                vehicles.append(self._spawn(kind))
            for index, vehicle in enumerate(vehicles):
                vehicle.origin.hide() if index >= len(poses) else vehicle.origin.show()
            for vehicle, (x, y, yaw) in zip(vehicles, poses, strict=False):
                vehicle.set_position((x, y))
                vehicle.set_heading_theta(yaw)

    def mount(self, cameras: Mapping[str, Camera]) -> None:
        """Look through cameras of the same sizes and centres, once a road is loaded."""
        self.cameras = dict(cameras)
        for name, camera in cameras.items():
            self._env.engine.sensors[name].mount(camera)

    def render(self, x: float, y: float, yaw: float) -> dict[str, Frame]:
        """Look from a world pose on the loaded road and return a frame for each camera."""
        assert self._road is not None
        sensors = self._env.engine.sensors
        for name in self.cameras:
            sensors[name].pose(x, y, yaw)
        self._env.engine.graphicsEngine.renderFrame()
        return {
            name: Frame(image=sensors[name].image(), depth=sensors[name].depth())
            for name in self.cameras
        }

    def close(self) -> None:
        """End MetaDrive, so that this process may have another renderer."""
        self._env.close()
        MetaDriveRenderer._is_taken = False

    def _clear(self) -> None:
        """Take the cars out of MetaDrive, which refuses to reset with objects of ours in it."""
        vehicles = [vehicle for group in self._cars.values() for vehicle in group]
        if vehicles:
            self._env.engine.clear_objects([vehicle.id for vehicle in vehicles])
        self._cars = {kind: [] for kind in CARS}

    def _spawn(self, kind: str) -> Any:
        """Make a car that only stands there: nothing steps its physics."""
        vehicle = self._env.engine.spawn_object(
            CARS[kind],
            vehicle_config={"navigation_module": None, "spawn_position_heading": ((0.0, 0.0), 0.0)},
        )
        vehicle.set_position((0.0, 0.0), height=vehicle.TIRE_RADIUS)
        return vehicle


def _settings(sensors: dict[str, Any], region: int) -> dict[str, Any]:
    """Return MetaDrive's configuration: no physics worth the name, no decoration, no traffic."""
    return {
        "use_render": False,
        "image_observation": True,
        "image_on_cuda": False,
        "agent_observation": DummyObservation,
        "sensors": sensors,
        "interface_panel": [],
        "show_interface": False,
        "show_logo": False,
        "show_fps": False,
        "multi_thread_render": False,
        "preload_models": False,
        "log_level": logging.CRITICAL,
        "store_map": False,
        "traffic_density": 0.0,
        "num_scenarios": 1,
        "map_region_size": region,
        "vehicle_config": {
            "show_navi_mark": False,
            "vehicle_model": "s",
        },
    }

"""`drive play`: steer a car through a world by hand, or watch a policy drive, in a web page.

The page shows both cameras with the driver's plan (green) and the teacher's (blue) drawn on the
road, and how far off the path the car is. Left and right steer; space begins another drive. The
world may be recordings, a world model or MetaDrive: the quickest way to see what a model knows is
to leave the road in it.

The page is for this machine alone: it is served on 127.0.0.1, and takes keys only from a page that
came from there. The drive goes on while somebody looks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cluster.evaluate_policy import EvaluatePolicyRun, find_drivers
from cluster.local_server import LocalServer
from cluster.progress import CONSOLE
from cluster.serve_world_model import told_to_end
from cluster.train_policy import RayConfig
from drive_actors.drivers import Decision, Driver, PolicyDriver, StraightDriver, TeacherDriver
from drive_actors.policy_file import load_policy
from drive_envs.allocator import keep_freed_memory
from drive_envs.drawing import caption, draw_views
from drive_envs.environment import DrivingVectorEnv, EnvConfig
from drive_envs.frames import encode_image
from drive_envs.learned import Learned, LearnedConfig
from drive_envs.plan import STEP
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.scenes import SamplerConfig, SceneSampler
from drive_envs.segments import open_dataset, sample_path
from drive_envs.vehicle import MAX_CURVATURE
from drive_envs.world import World
from drive_learner.local_cluster import local_cluster
from world_model.service_config import ServiceConfig

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "play.html"
FULL_LOCK = 3.0  # m/s^2 across the car, at which the keys steer most
MIN_SPEED = 4.0  # m/s, below which they steer as at this speed
STEER_RATE = 2.5  # 1/s, from straight on to full lock and back
LOCAL = ("127.0.0.1", "localhost")


@dataclass(frozen=True, kw_only=True)
class PlayRun:
    """One sitting.

    world: what is driven in. driver: `person`, `policy` (which `policy` names, null being the
    shipped one), `teacher`, which knows the way, or `straight`. data: recordings, for reprojective
    and world_model. num_steps: of a drive, of 0.2 s each. port: 0 for any that is free. rate: how
    many times as fast as time. seconds: how long the page is served, null for until it is told to
    end.
    """

    world: Literal["reprojective", "world_model", "metadrive"] = "reprojective"
    driver: Literal["person", "policy", "teacher", "straight"] = "person"
    policy: str | None = None
    data: str = "sample"
    seed: int = 0
    num_steps: int = 45
    lateral_offset: float = 0.0
    teacher: Literal["path", "plan"] = "path"
    port: int = 8123
    rate: float = 1.0
    seconds: float | None = None
    service: ServiceConfig = field(default_factory=ServiceConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port is {self.port}, not within 0..65535")
        if self.rate <= 0 or (self.seconds is not None and self.seconds <= 0):
            raise ValueError(f"rate is {self.rate} and seconds {self.seconds}; they are positive")
        if self.teacher == "plan" and self.world != "world_model":
            raise ValueError(f"world {self.world} does not plan: use teacher=path")


def run(config: PlayRun, output: Path) -> dict[str, Any]:
    """Serve the page until told to end; return what was driven. `output` gets nothing."""
    keep_freed_memory()
    # Within, as Ray sets a handler of its own.
    with opened_world(config) as env, told_to_end() as ended:
        drive = Drive(env, make_driver(config), config)
        server = Server(drive, config)
        asyncio.run(server.serve(ended))
        return {"world": config.world, "driver": config.driver, **drive.figures}


@contextmanager
def opened_world(config: PlayRun) -> Iterator[DrivingVectorEnv]:
    """Make the environment, with all that it needs, for the block."""
    options = EnvConfig(max_lateral_error=8.0, teacher=config.teacher)
    if config.world == "metadrive":
        from drive_envs.metadrive_world import MetaDrive
        from drive_envs.registration import draw_road_scene

        yield DrivingVectorEnv(MetaDrive(options.width, options.height), draw_road_scene, options)
        return
    learned = LearnedConfig()
    is_learned = config.world == "world_model"
    sampler = SamplerConfig(
        num_steps=(config.num_steps, config.num_steps),
        lateral_offset=config.lateral_offset,
        rows_after=learned.num_anchors if is_learned else 0,
    )
    segments = open_dataset(sample_path() if config.data == "sample" else Path(config.data))
    scenes = SceneSampler(segments, sampler)
    recorded: World = Reprojective(ReprojectiveConfig(source_offsets=(0, -2, -5)))
    if not is_learned:
        yield DrivingVectorEnv(recorded, scenes, options)
        return
    from world_model.service import ServiceConnection, serving

    with (
        local_cluster(
            num_cpus=config.ray.num_cpus,
            object_store_mb=config.ray.object_store_mb,
            dashboard=config.ray.dashboard,
        ),
        serving(config.service, "play") as name,
    ):
        world = Learned(ServiceConnection(name), recorded, learned)
        yield DrivingVectorEnv(world, scenes, options)
        world.close()


def make_driver(config: PlayRun) -> Driver | None:
    """Make who drives; None is the person at the keys."""
    match config.driver:
        case "person":
            return None
        case "teacher":
            return TeacherDriver()
        case "straight":
            return StraightDriver()
        case "policy":
            (folder,) = find_drivers(EvaluatePolicyRun(policy=config.policy)).values()
            return PolicyDriver(load_policy(Path(folder)))


class Drive:
    """One drive after the other, a frame at a time; `steer` is what the keys say, -1, 0 or 1."""

    def __init__(self, env: DrivingVectorEnv, driver: Driver | None, config: PlayRun) -> None:
        self.env, self.driver, self.config = env, driver, config
        self.steer, self.wheel = 0, 0.0
        self.is_over = True
        self._asked = threading.Event()  # to restart; it may come while a frame is being driven
        self.number, self.step = -1, 0
        self.figures: dict[str, Any] = {"drives": 0, "frames": 0, "left_the_road": 0}

    def next(self) -> tuple[bytes, dict[str, Any]]:
        """Drive on by one frame, or begin anew; return the picture (JPEG) and what to say of it."""
        if self.is_over or self._asked.is_set():
            self._asked.clear()
            self._begin()
        else:
            observation, _, left, arrived, info = self.env.step(self.decision.action)
            self.step += 1
            self.figures["left_the_road"] += int(left[0])
            self.is_over = bool(left[0] or arrived[0])
            self._look(observation, info)
        self.figures["frames"] += 1
        info = self.info
        lateral, speed = float(info["lateral_error"][0]), float(self.observation["speed"][0, 0])
        plan = self.decision.plan
        picture = draw_views(
            {name: self.observation[name][0] for name in ("narrow", "wide")},
            plan=None if plan is None else plan[0],
            teacher=info["teacher_plan"][0],
            teacher_valid=info["teacher_plan_valid"][0],
            caption=caption(self.step, lateral, speed),
        )
        told = {
            "drive": self.figures["drives"],
            "seconds": round(self.step * STEP, 1),
            "lateral": round(lateral, 3),
            "speed": round(speed, 2),
            "curvature": round(float(self.decision.action[0, 0]), 5),
            "over": self.is_over,
        }
        return encode_image(np.ascontiguousarray(picture.transpose(2, 0, 1))), told

    def restart(self) -> None:
        """Begin another drive with the next frame."""
        self._asked.set()

    def _begin(self) -> None:
        self.number, self.step, self.wheel = self.number + 1, 0, 0.0
        self.is_over = False
        self.figures["drives"] += 1
        observation, info = self.env.reset(seed=self.config.seed + self.number)
        if self.driver is not None:
            self.driver.start(info["context"])
        self._look(observation, info)

    def _look(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        self.observation, self.info = observation, info
        if self.driver is None:
            self.decision = Decision(action=self._by_hand(float(observation["speed"][0, 0])))
        else:
            self.decision = self.driver.act(observation, info)

    def _by_hand(self, speed: float) -> np.ndarray:
        """Turn the keys into a command: the wheel turns while a key is held, and comes back."""
        most = STEER_RATE * STEP
        self.wheel += float(np.clip(self.steer - self.wheel, -most, most))
        full = min(FULL_LOCK / max(speed, MIN_SPEED) ** 2, MAX_CURVATURE)
        return np.array([[self.wheel * full, 0.0]], np.float32)


class Server:
    """The page and its socket; the drive goes on while the socket of a page is open."""

    def __init__(self, drive: Drive, config: PlayRun) -> None:
        self.drive, self.config = drive, config
        self.is_taken = asyncio.Lock()
        self.app = Starlette(routes=[Route("/", self.page), WebSocketRoute("/drive", self.connect)])

    async def serve(self, ended: threading.Event | None = None) -> None:
        """Serve until told to end, also by `ended`: a signal may come before the server is up."""
        self.server = LocalServer(self.app, self.config.port)
        serving = asyncio.create_task(self.server.serve())
        CONSOLE.print(f"open {self.server.address} ; Ctrl-C ends it", highlight=False)
        seconds, begun = self.config.seconds, time.monotonic()
        while not serving.done() and not (ended and ended.is_set()):
            if seconds is not None and time.monotonic() - begun >= seconds:
                break
            await asyncio.wait({serving}, timeout=0.1)
        self.end()
        await serving

    def end(self) -> None:
        """Serve no longer; `serve` returns soon."""
        self.server.end()

    async def page(self, request: Request) -> HTMLResponse:
        """Return the page."""
        return HTMLResponse(PAGE.read_text())

    async def connect(self, page: WebSocket) -> None:
        """Send frames as they are driven, and take keys, until the page is closed."""
        origin = urlsplit(page.headers.get("origin", "")).hostname
        if origin not in LOCAL:  # a page from elsewhere must not steer
            await page.close(4403, "only a page from this machine may drive")
            return
        await page.accept()
        if self.is_taken.locked():
            await page.close(4409, "another page is driving")
            return
        async with self.is_taken:
            keys = asyncio.create_task(self._take_keys(page))
            try:
                await self._send_frames(page, keys)
            finally:
                keys.cancel()

    async def _send_frames(self, page: WebSocket, keys: "asyncio.Task[None]") -> None:
        while not keys.done():
            begin = time.monotonic()
            picture, told = await asyncio.to_thread(self.drive.next)
            with suppress(RuntimeError, WebSocketDisconnect):
                await page.send_json(told)
                await page.send_bytes(picture)
            left = STEP / self.config.rate - (time.monotonic() - begin)
            await asyncio.sleep(max(0.0, left))

    async def _take_keys(self, page: WebSocket) -> None:
        """Take what the page says: {"steer": -1 | 0 | 1} or {"restart": true}."""
        with suppress(WebSocketDisconnect):
            while True:
                said = await page.receive_json()
                if said.get("restart") is True:
                    self.drive.restart()
                elif said.get("steer") in (-1, 0, 1):
                    self.drive.steer = int(said["steer"])

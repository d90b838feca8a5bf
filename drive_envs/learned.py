"""The world as a model of it has learnt to show it: a client of the world model's service.

A drive begins in the recording: its context is what a recorded world shows, from where the drive
starts, and its anchors are the frames recorded after its end. In between, every frame is asked of
the service. The client keeps the frames that a session would have to begin with, so that a session
that is lost, with its replica or because it was forgotten, is opened anew and the drive goes on.

What a connection is made of is not known here; in a Ray cluster it is
`world_model.service.ServiceConnection`.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from drive_envs.camera import CAMERAS, Camera
from drive_envs.protocol import (
    NUM_CONTEXT,
    OpenSession,
    SessionLostError,
    StepSession,
    Views,
)
from drive_envs.reprojective import recorded_images
from drive_envs.scenes import Scene
from drive_envs.segment import Segment
from drive_envs.world import World

log = logging.getLogger(__name__)

RETRY_AFTER, LONGEST_PAUSE = 0.2, 3.0  # s, doubled with every further try
LOST = (SessionLostError, TimeoutError)


@runtime_checkable
class Answer(Protocol):
    """An answer that is under way."""

    def result(self) -> Views:
        """Wait for it; SessionLostError or TimeoutError when it will not come."""
        ...


@runtime_checkable
class Connection(Protocol):
    """The way to a world model, shared with others."""

    def open(self, request: OpenSession) -> Answer:
        """Ask to open a session."""
        ...

    def step(self, request: StepSession) -> Answer:
        """Ask what a session looks like from poses."""
        ...

    def close(self, session: str) -> object:
        """Close a session, without waiting for it; what comes back is nobody's concern."""
        ...


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """What the service's model takes, and how long it is waited for.

    num_anchors: frames of the future it is told. is_shown: whether the model shows what is seen. If
    not, the recorded world does, up to the end, and the model only plans from there. patience: s
    for which a lost service is tried again, in all, before a drive is given up.
    """

    num_anchors: int = 5
    is_shown: bool = True
    patience: float = 120.0

    def __post_init__(self) -> None:
        if self.num_anchors < 1 or self.patience < 0:
            raise ValueError(
                f"learned.num_anchors is {self.num_anchors} and patience {self.patience} s; they "
                "must be at least 1 and 0"
            )


class Learned:
    """The World that a world model shows; scenes come with a Segment as their source.

    `recorded` shows the context, which ends at a scene's start; see `reprojective`.
    """

    def __init__(
        self, connection: Connection, recorded: World, config: LearnedConfig | None = None
    ) -> None:
        self.connection, self.recorded = connection, recorded
        self.config = config or LearnedConfig()
        self.seconds: dict[str, float] = {}
        self.num_reopened = 0
        self.plan: Float[np.ndarray, "batch 33 15"] = np.zeros((0, 33, 15), np.float32)
        self._session: str | None = None

    @property
    def cameras(self) -> Mapping[str, Camera]:
        """Those of the recorded world."""
        return self.recorded.cameras

    def reset(self, scenes: Sequence[Scene]) -> None:
        """Begin with new scenes; ValueError when the recording does not reach to their anchors."""
        self.close()
        self.recorded.reset(scenes)
        self._anchors, self._anchor_poses = self._find_anchors(scenes)
        self._wait = np.array([scene.num_steps + 1 for scene in scenes])
        self._seeds = np.array([seed_of(scene) for scene in scenes])
        shape = next(iter(self.cameras.values()))
        frames = (len(scenes), NUM_CONTEXT + 1, 2, 3, shape.height, shape.width)
        self._history = np.zeros(frames, np.uint8)
        self._poses = np.zeros((*frames[:2], 3))
        self.plan = np.zeros((len(scenes), 33, 15), np.float32)

    def render(
        self, poses: Float[Tensor, "batch 3"], step: int, active: Bool[Tensor, " batch"]
    ) -> dict[str, np.ndarray]:
        """Return uint8 (batch, 3, H, W) images of each camera; leaves the plans in `plan`.

        Rows up to the start are as recorded. Raises what the service does when it cannot answer.
        """
        self.seconds = {}
        if step <= 0:
            images = self.recorded.render(poses, step, active)
            pictures = np.stack([images[name] for name in CAMERAS], axis=1)
            self._keep(np.arange(len(poses)), pictures, poses.numpy())
            if step == 0:
                self.plan = self._ask(None).plan.copy()  # what Ray brings is read-only
            return images
        scenes = active.nonzero()[:, 0].numpy()
        pictures = self._history[:, -1].copy()
        if len(scenes):
            assert self._session is not None
            asked = poses[scenes].double().numpy()
            if not self.config.is_shown:
                images = self.recorded.render(poses, step, active)
                pictures = np.stack([images[name] for name in CAMERAS], axis=1)
            request = StepSession(
                session=self._session,
                frame=step,
                scenes=scenes,
                poses=asked,
                seen=None if self.config.is_shown else pictures[scenes],
            )
            views = self._ask(request)
            if views.images is not None:
                pictures[scenes] = views.images
            self._keep(scenes, pictures[scenes], asked)
            self.plan[scenes] = views.plan
        return {name: pictures[:, index] for index, name in enumerate(CAMERAS)}

    def close(self) -> None:
        """Give the session back."""
        if self._session is not None:
            self.connection.close(self._session)
            self._session = None

    def _keep(self, scenes: np.ndarray, pictures: np.ndarray, poses: np.ndarray) -> None:
        """Let the newest frames of some scenes take the place of the oldest."""
        for kept, new in ((self._history, pictures), (self._poses, poses)):
            kept[scenes, :-1] = kept[scenes, 1:]
            kept[scenes, -1] = new

    def _opening(self, frame: int) -> OpenSession:
        """Say how to begin from what is kept, after `frame` generated frames."""
        if self._session is None:
            self._session = uuid.uuid4().hex
        return OpenSession(
            session=self._session,
            context=self._history,
            context_poses=self._poses,
            anchors=self._anchors,
            anchor_poses=self._anchor_poses,
            wait=np.maximum(self._wait - frame, 1),  # a scene that is over does not matter
            seed=self._seeds,
            frame=frame,
        )

    def _ask(self, request: StepSession | None) -> Views:
        """Open the session, or ask for a frame and open it anew where it was lost, with patience.

        A service that is slow is asked the same again, which does no harm.
        """
        begin = time.perf_counter()
        deadline, pause = begin + self.config.patience, RETRY_AFTER
        frame = 0 if request is None else request.frame - 1
        is_open, views = request is not None, None
        while views is None:
            try:
                if not is_open:
                    opened = self.connection.open(self._opening(frame)).result()
                    is_open = True
                    views = opened if request is None else None
                if request is not None:
                    views = self.connection.step(request).result()
            except LOST as error:
                if time.perf_counter() + pause > deadline:
                    raise
                log.warning("frame %d of a drive in the world model: %s; again", frame + 1, error)
                if isinstance(error, SessionLostError):
                    self.num_reopened += request is not None
                    is_open = False
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self.seconds = {"service": time.perf_counter() - begin}
        self.seconds |= {f"service/{phase}": seconds for phase, seconds in views.seconds.items()}
        return views

    def _find_anchors(self, scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames after each scene's end, and the poses from which they were recorded."""
        num, images, poses = self.config.num_anchors, [], []
        for scene in scenes:
            if not isinstance(scene.source, Segment):
                kind = type(scene.source).__name__
                raise ValueError(f"Learned needs a Segment as a scene's source, got a {kind}")
            begin = scene.start + scene.num_steps + 1
            if begin + num > len(scene.path):
                raise ValueError(
                    f"a scene of {scene.num_steps} steps from row {scene.start} has no {num} rows "
                    f"after its end on a path of {len(scene.path)}: set sampler.rows_after={num}"
                )
            rows = range(begin, begin + num)
            sources = [scene.first_row + row for row in rows]
            seen = recorded_images(scene.source, sources, self.cameras)
            images.append(np.stack([seen[name] for name in self.cameras], axis=1))
            poses.append(scene.path.poses[rows.start : rows.stop].double().numpy())
        return np.array(images), np.stack(poses)


def seed_of(scene: Scene) -> int:
    """Return a number for the noise of a scene, always the same for the same drive."""
    offsets = scene.lateral_offset, scene.heading_offset
    digest = hashlib.sha256(repr((scene.recording, scene.start, offsets)).encode()).digest()
    return int.from_bytes(digest[:6], "big")

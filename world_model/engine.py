"""Many drivers' scenes in one world model: sessions, their memory, and frames made side by side.

All memory is allocated at the start, `EngineConfig.capacity` scenes of it; a session takes a place
in it for each of its scenes and gives them back when it is closed. Requests of several sessions,
each at its own frame, make one pass of the network. What a frame shows depends on its session's
seeds and nothing else: neither on which sessions it was made with, nor on its places.

The engine is single-threaded and knows no queue and no network: see `scheduler` and `service`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from drive_envs.plan import best_plan
from drive_envs.precision import dtype_of
from drive_envs.protocol import (
    BadRequestError,
    NoRoomError,
    OpenSession,
    SessionLostError,
    StepSession,
    Views,
)
from world_model.dit import WorldModel, WorldModelConfig
from world_model.sampler import Anchors, Memory, Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How many scenes there is room for, and how many are worked on together.

    capacity: scenes whose keys and values are kept. batch_size: scenes of one pass; more are taken
    in turns. lease: s after which a session that nobody asked for is closed: its driver is dead.
    is_anchored: False keeps the future from the model: what its plans are worth without.
    """

    capacity: int = 64
    batch_size: int = 32
    lease: float = 60.0
    is_anchored: bool = True

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.batch_size < 1:
            raise ValueError(
                f"engine.capacity is {self.capacity} and batch_size {self.batch_size}; they must "
                "be 1 or more"
            )
        if self.lease <= 0:
            raise ValueError(f"engine.lease is {self.lease} s; it must be positive")


@dataclass
class Session:
    """Scenes that a driver opened together. views: of the last frame, should it be asked again."""

    places: Tensor
    seeds: np.ndarray
    frame: int
    touched: float
    last_step: StepSession | None = None
    views: Views | None = None


@dataclass
class Counters:
    """What happened since the start; `opened` = `closed` + `expired` + those that are open.

    reopened: of the opened ones, those that had been driven elsewhere before.
    """

    opened: int = 0
    reopened: int = 0
    closed: int = 0
    expired: int = 0
    refused: int = 0
    frames: int = 0
    repeated: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Engine:
    """Opens, steps and closes sessions; see the module."""

    def __init__(
        self,
        model: WorldModel,
        tokenizer: Tokenizer,
        sampler: SamplerConfig,
        config: EngineConfig,
    ) -> None:
        self.config, self.counters = config, Counters()
        self.device = next(model.parameters()).device
        self.sampler = Sampler(model, tokenizer.to(self.device), sampler)
        self.memory = Memory.empty(
            model.config,
            config.capacity,
            is_anchored=config.is_anchored,
            dtype=dtype_of(sampler.precision, self.device.type),
            device=self.device,
        )
        self.sessions: dict[str, Session] = {}
        self._free = list(range(config.capacity))[::-1]

    @property
    def model_config(self) -> WorldModelConfig:
        """Sizes of the network."""
        return self.sampler.model.config

    @property
    def num_free(self) -> int:
        """Scenes that there is still room for."""
        return len(self._free)

    @property
    def bytes_per_scene(self) -> int:
        """Memory that a scene takes."""
        return self.memory.num_bytes // self.config.capacity

    def replace_weights(self, model: WorldModel, tokenizer: Tokenizer) -> None:
        """Generate with other weights from the next frame on; sessions stay open.

        What was remembered stays as the old weights saw it. Raises ValueError for another size.
        """
        if model.config != self.model_config:
            raise ValueError(
                f"the new weights are of {model.config}, but sessions are open on "
                f"{self.model_config}: start another service for them"
            )
        self.sampler = Sampler(
            model.to(self.device), tokenizer.to(self.device), self.sampler.config
        )

    def open(self, request: OpenSession) -> Views:
        """Open a session, or open it anew; return the plan from the last context frame.

        NoRoomError when there is no memory left, BadRequestError for what does not fit the model.
        """
        self._check_open(request)
        self.close(request.session)
        if request.num_scenes > self.num_free:
            self.counters.refused += 1
            raise NoRoomError(
                f"{request.num_scenes} scenes more than the {self.config.capacity - self.num_free} "
                f"there are exceed the capacity of {self.config.capacity}: raise engine.capacity "
                f"({self.bytes_per_scene / 1e6:.1f} MB a scene), add replicas or drive fewer scenes"
            )
        places = torch.tensor([self._free.pop() for _ in range(request.num_scenes)])
        seconds: dict[str, float] = {}
        try:
            plans = [
                self._begin(request, part.numpy(), places[part], seconds)
                for part in torch.arange(request.num_scenes).split(self.config.batch_size)
            ]
        except BaseException:
            self._free += places.tolist()
            raise
        self.sessions[request.session] = Session(
            places=places.to(self.device),
            seeds=request.seed.copy(),
            frame=request.frame,
            touched=time.monotonic(),
        )
        self.counters.opened += 1
        self.counters.reopened += request.frame > 0
        return Views(
            images=None, plan=np.concatenate(plans), seconds=seconds, num_batched=request.num_scenes
        )

    def step(self, requests: Sequence[StepSession]) -> list[Views | Exception]:
        """Answer requests of different sessions with as few passes as may be.

        A request that cannot be answered has its error in its place: SessionLostError, or
        BadRequestError.
        """
        answers: list[Views | Exception | None] = [self._without_work(r) for r in requests]
        for is_seen in (False, True):
            chosen = [
                index
                for index, answer in enumerate(answers)
                if answer is None and (requests[index].seen is not None) == is_seen
            ]
            if chosen:
                found = self._advance([requests[index] for index in chosen])
                for index, views in zip(chosen, found, strict=True):
                    answers[index] = views
        return [answer for answer in answers if answer is not None]

    def close(self, session: str) -> bool:
        """Give a session's places back; False when there is no such session."""
        found = self.sessions.pop(session, None)
        if found is None:
            return False
        self._free += found.places.tolist()
        self.counters.closed += 1
        return True

    def expire(self) -> list[str]:
        """Close the sessions that nobody asked for during a lease; return their names."""
        limit = time.monotonic() - self.config.lease
        expired = [name for name, session in self.sessions.items() if session.touched < limit]
        for name in expired:
            self._free += self.sessions.pop(name).places.tolist()
        self.counters.expired += len(expired)
        return expired

    def _begin(
        self, request: OpenSession, rows: np.ndarray, places: Tensor, seconds: dict[str, float]
    ) -> np.ndarray:
        with self._timed("encode", seconds):
            context = self._encoded(request.context[rows])
            anchors = self._anchors(request, rows) if self.config.is_anchored else None
        with self._timed("open", seconds):
            memory, made = self.sampler.begin(
                context,
                torch.from_numpy(request.context_poses[rows]).to(self.device),
                anchors,
                torch.from_numpy(request.context[rows, -1]).to(self.device),
            )
            self.memory.put(places.to(self.device), memory)
            return best_plan(made.plan).float().cpu().numpy()

    def _anchors(self, request: OpenSession, rows: np.ndarray) -> Anchors:
        return Anchors(
            self._encoded(request.anchors[rows]),
            torch.from_numpy(request.anchor_poses[rows]).to(self.device),
            torch.from_numpy(request.wait[rows]).to(self.device),
        )

    def _encoded(self, images: np.ndarray) -> Tensor:
        """Turn frames (scene, frame, 2, 3, H, W) into latents (scene, frame, ...)."""
        flat = torch.from_numpy(images).flatten(0, 1).split(self.config.batch_size)
        with self.sampler.autocast(self.device):
            encode = self.sampler.tokenizer.encode
            latents = [encode(part.to(self.device)).float() for part in flat]
        return torch.cat(latents).unflatten(0, images.shape[:2])

    def _without_work(self, request: StepSession) -> Views | Exception | None:
        """Return an answer that takes no pass: an error, or that of a request which is repeated."""
        session = self.sessions.get(request.session)
        if session is None:
            return SessionLostError(f"there is no session '{request.session}' here")
        session.touched = time.monotonic()
        if (error := self._error_of(request, session)) is not None:
            return error
        if request.frame == session.frame and session.last_step is not None:
            if not is_same(request, session.last_step):
                return BadRequestError(
                    f"session '{request.session}' asks for frame {request.frame} once more, but "
                    "not as before"
                )
            self.counters.repeated += 1
            return session.views
        if request.frame != session.frame + 1:
            return SessionLostError(
                f"session '{request.session}' is at frame {session.frame}, not before "
                f"{request.frame}"
            )
        return None

    def _advance(self, requests: Sequence[StepSession]) -> list[Views]:
        """Make the next frame of all scenes asked for."""
        sessions = [self.sessions[request.session] for request in requests]
        places = torch.cat(
            [
                session.places[torch.tensor(request.scenes)]
                for session, request in zip(sessions, requests, strict=True)
            ]
        )
        poses = torch.from_numpy(np.concatenate([request.poses for request in requests]))
        seconds: dict[str, float] = {}
        noise = seen = None
        if requests[0].seen is None:
            with self._timed("noise", seconds):
                noise = torch.cat(
                    [
                        self._noise(session.seeds[request.scenes], request.frame)
                        for session, request in zip(sessions, requests, strict=True)
                    ]
                )
        else:
            given = [request.seen for request in requests if request.seen is not None]
            seen = torch.from_numpy(np.concatenate(given))
        images: list[np.ndarray] = []
        plans: list[np.ndarray] = []
        for part in torch.arange(len(places)).split(self.config.batch_size):
            image, plan = self._pass(
                places[part],
                poses[part].to(self.device),
                None if noise is None else noise[part].to(self.device),
                None if seen is None else seen[part].to(self.device),
                seconds,
            )
            plans.append(plan)
            if image is not None:
                images.append(image)
        self.counters.frames += len(places)
        ends = np.cumsum([len(request.scenes) for request in requests])[:-1]
        pictures = np.split(np.concatenate(images), ends) if images else [None] * len(requests)
        answers = [
            Views(images=image, plan=plan, seconds=seconds, num_batched=len(places))
            for image, plan in zip(pictures, np.split(np.concatenate(plans), ends), strict=True)
        ]
        for session, request, views in zip(sessions, requests, answers, strict=True):
            session.frame, session.last_step, session.views = request.frame, request, views
        return answers

    def _pass(
        self,
        places: Tensor,
        poses: Tensor,
        noise: Tensor | None,
        seen: Tensor | None,
        seconds: dict[str, float],
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Make one frame of at most a batch of scenes, or look at what was seen."""
        if seen is not None:
            with self._timed("encode", seconds), self.sampler.autocast(self.device):
                latents = self.sampler.tokenizer.encode(seen).float()
            with self._timed("look", seconds):
                made = self.sampler.look(self.memory, poses, latents, places)
                return None, best_plan(made.plan).float().cpu().numpy()
        assert noise is not None
        with self._timed("generate", seconds):
            made = self.sampler.step(self.memory, poses, noise, places)
            plan = best_plan(made.plan).float().cpu().numpy()
            return made.images.cpu().numpy(), plan

    def _noise(self, seeds: np.ndarray, frame: int) -> Tensor:
        """Draw each scene's noise for a frame, the same wherever and with whom it is made."""
        shape = self.model_config.latent_shape
        drawn = [
            np.random.default_rng([int(seed), frame]).standard_normal(shape, np.float32)
            for seed in seeds
        ]
        return torch.from_numpy(np.stack(drawn))

    def _check_open(self, request: OpenSession) -> None:
        check_kinds(request, OpenSession, OPEN_KINDS)
        config, scenes = self.model_config, request.num_scenes
        size = (2, 3, config.height, config.width)
        found = {
            "context": (request.context.shape[2:], size),
            "anchors": (request.anchors.shape, (scenes, config.num_anchors, *size)),
            "context_poses": (request.context_poses.shape, (*request.context.shape[:2], 3)),
            "anchor_poses": (request.anchor_poses.shape, (scenes, config.num_anchors, 3)),
            "wait": (request.wait.shape, (scenes,)),
            "seed": (request.seed.shape, (scenes,)),
        }
        for name, (given, wanted) in found.items():
            if given != wanted:
                raise BadRequestError(
                    f"session '{request.session}': {name} is {tuple(given)}, this world model "
                    f"({config.size}, {config.width} x {config.height}) takes {tuple(wanted)}"
                )
        if not scenes:
            raise BadRequestError(f"session '{request.session}' has no scenes")
        if request.context.shape[1] <= config.num_history:
            raise BadRequestError(
                f"session '{request.session}' has a context of {request.context.shape[1]} frames; "
                f"this world model takes {config.num_history + 1} or more"
            )
        if (request.wait < 1).any():
            raise BadRequestError(f"session '{request.session}': the anchors are not in the future")
        if request.frame < 0 or (request.seed < 0).any():
            raise BadRequestError(f"session '{request.session}': frame or seed is negative")
        for name in ("context_poses", "anchor_poses"):
            if not np.isfinite(getattr(request, name)).all():
                raise BadRequestError(f"session '{request.session}': {name} are not finite")

    def _error_of(self, request: StepSession, session: Session) -> BadRequestError | None:
        """Say what is wrong with a request, if anything."""
        config, num = self.model_config, len(session.places)
        who = f"session '{request.session}', frame {request.frame}"
        scenes = request.scenes
        if not len(scenes) or len(set(scenes.tolist())) < len(scenes):
            return BadRequestError(f"{who}: scenes are {scenes.tolist()}; name some, each once")
        if scenes.min() < 0 or scenes.max() >= num:
            return BadRequestError(f"{who}: scenes are {scenes.tolist()}, of {num} that there are")
        if request.poses.shape != (len(scenes), 3) or not np.isfinite(request.poses).all():
            return BadRequestError(
                f"{who}: poses are {request.poses.shape}, finite: "
                f"{bool(np.isfinite(request.poses).all())}; {len(scenes)} scenes need as many poses"
            )
        size = (len(scenes), 2, 3, config.height, config.width)
        if request.seen is not None and request.seen.shape != size:
            return BadRequestError(f"{who}: what was seen is {request.seen.shape}, not {size}")
        return None

    @contextmanager
    def _timed(self, phase: str, seconds: dict[str, float]) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = time.perf_counter() - begin
        seconds[phase] = seconds.get(phase, 0.0) + spent
        self.counters.seconds[phase] = self.counters.seconds.get(phase, 0.0) + spent


OPEN_KINDS = {
    "session": str,
    "frame": int,
    "context": np.uint8,
    "anchors": np.uint8,
    "context_poses": np.float64,
    "anchor_poses": np.float64,
    "wait": np.int64,
    "seed": np.int64,
}
STEP_KINDS = {"session": str, "frame": int, "scenes": np.int64, "poses": np.float64}


def check_step(request: object) -> None:
    """Raise BadRequestError for what is no request for a frame at all."""
    check_kinds(request, StepSession, STEP_KINDS)
    assert isinstance(request, StepSession)
    if request.scenes.ndim != 1:
        raise BadRequestError(f"session '{request.session}': scenes are {request.scenes.shape}")
    if request.seen is not None:
        check_kinds(request, StepSession, {"seen": np.uint8})


def check_kinds(request: object, kind: type, wanted: Mapping[str, type]) -> None:
    """Raise BadRequestError unless a request is of a kind, and its fields are of theirs.

    What arrives was made elsewhere, perhaps by another version of this or by nobody at all.
    """
    if not isinstance(request, kind):
        raise BadRequestError(f"a {type(request).__name__} is no {kind.__name__}")
    for name, of in wanted.items():
        value = getattr(request, name)
        if isinstance(value, np.ndarray):
            if value.dtype != of:
                raise BadRequestError(f"{name} is of {value.dtype}, not of {of.__name__}")
        elif not isinstance(value, of):
            raise BadRequestError(f"{name} is a {type(value).__name__}, not of {of.__name__}")


def is_same(one: StepSession, other: StepSession) -> bool:
    """Tell whether two requests ask for the same."""
    if (one.seen is None) != (other.seen is None):
        return False
    return np.array_equal(one.scenes, other.scenes) and np.array_equal(one.poses, other.poses)

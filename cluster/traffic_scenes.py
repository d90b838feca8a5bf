"""Pictures with other cars in them, of which it is known who is where. MetaDrive draws them.

Single frames to train a car net on, from beside the lane's centre as well; and scenes that go on in
several ways (`drive_envs.branches`). No recording and no scenario has their roads.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from cluster.kept import digest, kept_arrays
from cluster.metadrive_scenes import SCALE, drawn, steady_path
from cluster.progress import progress
from drive_envs.branches import (
    MANOEUVRES,
    Branches,
    BranchesConfig,
    Row,
    random_branches,
    random_rows,
)
from drive_envs.camera import recording_cameras
from drive_envs.drives import DropError
from drive_envs.geometry import compose, invert
from drive_envs.metadrive_rendering import MetaDriveRenderer
from world_model.car_net import CarSamples
from world_model.dit import WorldModelConfig
from world_model.encoding import Images
from world_model.evaluation import make_scene
from world_model.excursions import Excursion
from world_model.latents import LatentDrive
from world_model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SEED = 8_000_001  # of roads that neither recordings nor scenarios have
NUM_TRIES = 60  # draws for one scene
NEAREST, FARTHEST = 5.0, 70.0  # m ahead, and away: where a car can be made out
SIDEWAYS = (-0.6, 1.9)  # m to the left, of where single frames are looked at from
TURNED = 0.05  # rad, +-
ROWS = 60  # of the drive that they are taken from


@dataclass(frozen=True, kw_only=True)
class CarPicturesConfig:
    """How many single frames there are; an eighth of the roads, or one, is held out.

    empty_share: of the frames, in which there is nobody. Traffic is as dense as for the scenes.
    """

    num_roads: int = 160
    frames_per_road: int = 24
    empty_share: float = 0.25

    def __post_init__(self) -> None:
        if self.num_roads < 2 or not 1 <= self.frames_per_road <= ROWS:
            raise ValueError(
                f"pictures.num_roads is {self.num_roads} and frames_per_road "
                f"{self.frames_per_road}; they must be 2 or more, and 1 to {ROWS}"
            )
        if not 0 <= self.empty_share < 1:
            raise ValueError(f"pictures.empty_share must be 0 to 1, got {self.empty_share}")


@dataclass(frozen=True, kw_only=True)
class TrafficScene:
    """A scene that goes on in several ways, a variant each, in the order of `MANOEUVRES`.

    places, numbers: of those that are watched, in the world, variant by row; see
    `drive_envs.branches.Row`. first: row of the moment.
    """

    branches: Branches
    drive: LatentDrive
    images: list[Images]
    places: Float[np.ndarray, "variant row watched 3"]
    numbers: Int[np.ndarray, "variant row watched"]
    first: int


def relative(
    poses: Float[np.ndarray, "*batch 3"], places: Float[np.ndarray, "*batch watched 3"]
) -> Float[np.ndarray, "*batch watched 2"]:
    """Return where cars are in m ahead of us and to our left."""
    ours = torch.from_numpy(np.broadcast_to(poses[..., None, :], places.shape).copy())
    return compose(invert(ours), torch.from_numpy(places))[..., :2].numpy()


def can_be_seen(
    places: Float[np.ndarray, "*batch watched 2"],
) -> Bool[np.ndarray, "*batch watched"]:
    """Tell which cars can be made out, of m ahead of us and to our left; NaN cannot."""
    x, y = places[..., 0], places[..., 1]
    return (x > NEAREST) & (np.hypot(x, y) < FARTHEST)


def car_samples(
    config: CarPicturesConfig,
    branches: BranchesConfig,
    model: WorldModelConfig,
    tokenizer: Tokenizer,
    folder: Path,
) -> tuple[CarSamples, CarSamples]:
    """Return frames to train on and held-out ones, after drawing what is not in `folder` yet.

    Raises ValueError (AssetsError, GraphicsError) when the machine cannot draw.
    """
    known = asdict(branches.drive) | {
        "size": (model.width, model.height),
        "frames": config.frames_per_road,
        "empty": config.empty_share,
    }
    parts = folder / f"cars-{digest(known)}"
    files = [parts / f"road_{number:04d}.npz" for number in range(config.num_roads)]
    loaded = kept_arrays(
        files, "drawing cars in MetaDrive", lambda: _drawing(config, branches, model)
    )
    held_out = max(1, config.num_roads // 8)
    return _samples(loaded[held_out:], tokenizer), _samples(loaded[:held_out], tokenizer)


@torch.inference_mode()
def _samples(parts: list[dict[str, np.ndarray]], tokenizer: Tokenizer) -> CarSamples:
    """Tokenize and decode frames, which is how generated ones look."""
    device = tokenizer.mean.device
    images = [torch.from_numpy(part["images"]).to(device) for part in parts]
    return CarSamples(
        torch.cat([tokenizer.decode(tokenizer.encode(some)).cpu() for some in images]),
        torch.from_numpy(np.concatenate([part["places"] for part in parts])).float(),
    )


@contextmanager
def _drawing(
    config: CarPicturesConfig, branches: BranchesConfig, model: WorldModelConfig
) -> Iterator[Callable[[int], dict[str, np.ndarray]]]:
    """Yield what draws the frames of a road by its number."""
    with _renderer(branches, model) as renderer:
        yield lambda number: _frames(number, config, branches, model, renderer)


def _frames(
    number: int,
    config: CarPicturesConfig,
    branches: BranchesConfig,
    model: WorldModelConfig,
    renderer: MetaDriveRenderer,
) -> dict[str, np.ndarray]:
    """Draw some frames of a drive of its own, seen from beside where the car was."""
    dropped: Counter[str] = Counter()
    for attempt in range(NUM_TRIES):
        rng = np.random.default_rng([SEED, number, attempt])
        try:
            road, rows = random_rows(branches, rng, ROWS)
        except DropError as error:
            dropped[error.cause] += 1
            continue
        break
    else:
        raise ValueError(f"all of {NUM_TRIES} drives were dropped: {causes(dropped)}")
    if dropped:
        log.info("road %d: drawn and dropped: %s", number, causes(dropped))
    renderer.load(road)
    chosen = rng.choice(len(rows), config.frames_per_road, replace=False)
    images, places = [], []
    for row in (rows[index] for index in sorted(chosen)):
        beside = [0.0, rng.uniform(*SIDEWAYS) - row.ego.offset, rng.uniform(-TURNED, TURNED)]
        pose = compose(torch.from_numpy(row.pose), torch.tensor(beside, dtype=torch.float64))
        is_empty = rng.random() < config.empty_share
        renderer.place({} if is_empty else row.cars)
        images.append(drawn(renderer, pose[None], model)[0].numpy())
        place = relative(pose.numpy(), row.place)
        is_there = can_be_seen(place) & (not is_empty)
        places.append(np.where(is_there[:, None], place, np.nan))
    return {"images": np.stack(images), "places": np.stack(places)}


def traffic_scenes(
    num: int,
    num_frames: int,
    config: BranchesConfig,
    model: WorldModelConfig,
    tokenizer: Tokenizer,
) -> list[TrafficScene]:
    """Draw `num` scenes, `num_frames` after the moment; ValueError where there are none such."""
    first = model.num_history + 1
    scenes: list[TrafficScene] = []
    dropped: Counter[str] = Counter()
    with (
        _renderer(config, model) as renderer,
        progress("drawing scenes in MetaDrive", num) as meter,
    ):
        for attempt in range(NUM_TRIES * num):
            rng = np.random.default_rng([SEED, 1_000_000, attempt])
            try:
                branches = random_branches(config, rng, first, num_frames)
            except DropError as error:
                dropped[error.cause] += 1
                continue
            scenes.append(_scene(branches, renderer, model, tokenizer, first, f"scene-{attempt}"))
            meter.advance()
            if len(scenes) == num:
                log.info("%d scenes; drawn and dropped: %s", num, causes(dropped))
                return scenes
    raise ValueError(
        f"{len(scenes)} of {num} scenes in {NUM_TRIES * num} draws have somebody "
        f"{config.ahead} m ahead and {config.oncoming} m away coming ({causes(dropped)}): widen "
        "the ranges"
    )


def causes(dropped: Counter[str]) -> str:
    """Write how many were dropped by cause."""
    return ", ".join(f"{count} x {cause}" for cause, count in dropped.most_common()) or "none"


def _scene(
    branches: Branches,
    renderer: MetaDriveRenderer,
    model: WorldModelConfig,
    tokenizer: Tokenizer,
    first: int,
    name: str,
) -> TrafficScene:
    renderer.load(branches.road)
    rows = [branches.rows(manoeuvre) for manoeuvre in MANOEUVRES]
    before = _film(branches.before, renderer, model)
    images = [
        torch.cat([before, _film(branches.after[manoeuvre], renderer, model)])
        for manoeuvre in MANOEUVRES
    ]
    poses = np.array([[row.pose for row in variant] for variant in rows])
    path = steady_path(poses[0], 1.0)
    zero = torch.zeros(len(path), dtype=torch.float64)
    # What they do is in their poses; plans from them are not asked for.
    others = [
        Excursion(lateral=zero, heading=zero, poses=steady_path(some, 1.0).poses)
        for some in poses[1:]
    ]
    scene = make_scene(name, path, others, images, tokenizer, first)
    return TrafficScene(
        branches=branches,
        drive=scene.drive,
        images=images,
        places=np.array([[row.place for row in variant] for variant in rows]),
        numbers=np.array([[row.number for row in variant] for variant in rows]),
        first=first,
    )


def _film(rows: list[Row], renderer: MetaDriveRenderer, model: WorldModelConfig) -> Images:
    """Draw what is seen in some rows."""
    frames = []
    for row in rows:
        renderer.place(row.cars)
        frames.append(drawn(renderer, torch.from_numpy(row.pose)[None], model))
    return torch.cat(frames)


@contextmanager
def _renderer(config: BranchesConfig, model: WorldModelConfig) -> Iterator[MetaDriveRenderer]:
    sensors = recording_cameras(model.width, model.height, scale=SCALE)
    renderer = MetaDriveRenderer(sensors, region=config.drive.roads.region, supersampling=1)
    try:
        yield renderer
    finally:
        renderer.close()

"""`drive evaluate-reactions`: what do generated cars do when we hold our speed, brake or swerve?

The same scene, drawn in MetaDrive, goes on in three ways (`drive_envs.branches`): somebody drives
ahead of us and does not care, somebody comes towards us and brakes when we are in his way. The
world model generates each, without anchors, as what they show has happened already. A car net,
which is judged first, sees where cars are in each frame, generated or true.

What a car does because of us is where it is after one manoeuvre less where it is when we hold. A
model that has learnt that people brake with who is ahead can show a car that brakes with us
(copies: 1 for 0), or one that does not yield (0 for 1). `report.html` has tables, plots and videos.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from cluster.curve_plot import Panel, draw_curves
from cluster.output import write_text
from cluster.progress import track
from cluster.report import Part, Picture, Table, Text, Video, write_report
from cluster.traffic_scenes import (
    CarPicturesConfig,
    TrafficScene,
    can_be_seen,
    car_samples,
    relative,
    traffic_scenes,
)
from drive_envs.allocator import keep_freed_memory
from drive_envs.branches import MANOEUVRES, WATCHED, BranchesConfig
from drive_envs.drawing import write_video
from drive_envs.geometry import compose
from world_model.car_net import (
    CarNet,
    CarNetConfig,
    CarNetErrors,
    cars_seen,
    errors_of,
    train_car_net,
)
from world_model.model_file import SHIPPED, load_world_model
from world_model.previews import Frames, decoded, draw_rollouts
from world_model.rollouts import Rollouts, roll_out
from world_model.sampler import Sampler, SamplerConfig

NUM_FILMED = 3  # scenes
NUM_DRAWS = 2000  # of an interval, over scenes
KINDS = ("drawn", "generated")  # of pictures: true ones, as the car net sees them, and others
ALONG, LEFT = 0, 1
AXES = ("along", "left")

Where = Float[np.ndarray, "scene variant frame watched 2"]  # m along our lane, and left of it


@dataclass(frozen=True, kw_only=True)
class EvaluateReactionsRun:
    """What is evaluated, and on what.

    model: folder that `drive train-world-model` left in `output/world_model`, null for the shipped
    one. num_scenes, num_frames: how many go on for how long, in each way. seed: of the noise.
    """

    model: Path | None = None
    num_scenes: int = 16
    num_frames: int = 25
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    pictures: CarPicturesConfig = field(default_factory=CarPicturesConfig)
    car_net: CarNetConfig = field(default_factory=CarNetConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_scenes < 1 or self.num_frames < 1:
            raise ValueError(
                f"num_scenes is {self.num_scenes} and num_frames {self.num_frames}; they must be "
                "1 or more"
            )


class Question(NamedTuple):
    """What is asked of a manoeuvre: where a car is, as a share of where something else is."""

    name: str
    words: str
    manoeuvre: str
    watched: str
    axis: int
    is_of_truth: bool  # whether it is a share of what the car truly does, or of what we do

    @property
    def variant(self) -> int:
        """The manoeuvre's number."""
        return MANOEUVRES.index(self.manoeuvre)

    @property
    def slot(self) -> int:
        """The car's number."""
        return WATCHED.index(self.watched)


QUESTIONS = (
    Question(
        name="brake_copied",
        words="m that who is ahead stays back, per m that we do",
        manoeuvre="brake",
        watched="ahead",
        axis=ALONG,
        is_of_truth=False,
    ),
    Question(
        name="swerve_copied",
        words="m that who is ahead moves left, per m that we do",
        manoeuvre="swerve",
        watched="ahead",
        axis=LEFT,
        is_of_truth=False,
    ),
    Question(
        name="yielded",
        words="m that who comes has not come, per m that he truly has not",
        manoeuvre="swerve",
        watched="oncoming",
        axis=ALONG,
        is_of_truth=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Where everybody is in all scenes.

    ours (scene, variant, frame, 2); truly, and by kind of picture: `Where`. visible: which cars can
    be made out, and are those of the moment still.
    """

    ours: Float[np.ndarray, "scene variant frame 2"]
    truly: Where
    by_kind: Mapping[str, Where]
    visible: Bool[np.ndarray, "scene variant frame watched"]


def run(config: EvaluateReactionsRun, output: Path) -> dict[str, Any]:
    """Draw, generate and compare, leaving a report with videos; return the headline figures."""
    keep_freed_memory()
    path = config.model or SHIPPED
    model, tokenizer = load_world_model(path)
    sampler = Sampler(model, tokenizer, config.sampler)
    train, held_out = car_samples(
        config.pictures, config.branches, model.config, tokenizer, output / "pictures"
    )
    network = train_car_net(
        train, config.car_net, seed=0, shown=lambda steps: track(steps, "training the car net")
    )
    errors = errors_of(network, held_out)
    scenes = traffic_scenes(
        config.num_scenes, config.num_frames, config.branches, model.config, tokenizer
    )
    generated = [
        roll_out(
            sampler,
            [(scene.drive, scene.first) for scene in scenes],
            config.num_frames,
            seed=config.seed,
            variant=variant,
            wait=0,
        )
        for variant in track(range(len(MANOEUVRES)), "generating")
    ]
    frames = {
        "drawn": [decoded(tokenizer, rollouts.truth) for rollouts in generated],
        "generated": [decoded(tokenizer, rollouts.latents) for rollouts in generated],
    }
    seen = look(network, scenes, frames)
    films = film(output, scenes, generated, frames["generated"])
    figures = headline(seen, errors)
    write_page(output, f"{path}, {len(scenes)} scenes.", seen, errors, figures, films)
    return figures


def look(
    network: CarNet, scenes: Sequence[TrafficScene], frames: Mapping[str, Sequence[Frames]]
) -> Seen:
    """Find everybody in all frames, and say where they are along the lane of each scene."""
    poses = np.stack([scene.drive.poses[:, scene.first :] for scene in scenes])
    places = np.stack([scene.places[:, scene.first :] for scene in scenes])
    numbers = np.stack([scene.numbers[:, scene.first :] for scene in scenes])
    # Once another car is the next one, it is no longer the same that is looked at.
    is_same = np.logical_and.accumulate(numbers == numbers[:, :1, :1], axis=2)
    by_kind = {}
    for kind, variants in frames.items():
        found = np.stack([in_sight(network, some) for some in variants], axis=1)
        world = compose(
            torch.from_numpy(np.broadcast_to(poses[..., None, :], (*found.shape[:-1], 3)).copy()),
            torch.from_numpy(np.concatenate([found, np.zeros((*found.shape[:-1], 1))], axis=-1)),
        )
        by_kind[kind] = in_lane(scenes, world[..., :2].numpy())
    return Seen(
        ours=in_lane(scenes, poses[..., :2]),
        truly=in_lane(scenes, places[..., :2]),
        by_kind=by_kind,
        visible=can_be_seen(relative(poses, places)) & is_same,
    )


def in_sight(network: CarNet, frames: Frames) -> Float[np.ndarray, "scene frame watched 2"]:
    """Return m ahead and to the left of each car that the network sees, NaN where it sees none."""
    places = cars_seen(network, frames.flatten(0, 1)).places
    return places.unflatten(0, frames.shape[:2]).double().numpy()


def in_lane(
    scenes: Sequence[TrafficScene], world: Float[np.ndarray, "scene *rows 2"]
) -> Float[np.ndarray, "scene *rows 2"]:
    """Return metres along the lane of each scene, and left of it."""
    found = np.full(world.shape, np.nan)
    for index, scene in enumerate(scenes):
        points = world[index].reshape(-1, 2)
        is_known = np.isfinite(points).all(axis=-1)
        lane = np.full(points.shape, np.nan)
        lane[is_known] = np.stack(scene.branches.line.locate(points[is_known]), axis=-1)
        found[index] = lane.reshape(world[index].shape)
    return found


def because_of_us(where: np.ndarray, variant: int) -> np.ndarray:
    """Return how far off something is from where it is when we hold our speed, m."""
    return where[:, variant] - where[:, 0]


def answers(
    seen: Seen, question: Question, kind: str
) -> tuple[Float[np.ndarray, "scene frame"], Float[np.ndarray, "scene frame"]]:
    """Return what a car does, and what it is a share of; NaN where it cannot be told."""
    variant, slot, axis = question.variant, question.slot, question.axis
    truly = because_of_us(seen.truly, variant)[..., slot, axis]
    did = truly if kind == "truth" else because_of_us(seen.by_kind[kind], variant)[..., slot, axis]
    of = truly if question.is_of_truth else because_of_us(seen.ours, variant)[..., axis]
    can_tell = seen.visible[:, variant, :, slot] & seen.visible[:, 0, :, slot] & np.isfinite(did)
    return np.where(can_tell, did, np.nan), np.where(can_tell, of, np.nan)


def share(did: np.ndarray, of: np.ndarray, seed: int = 0) -> tuple[float, float, float] | None:
    """Return the slope of one over the other, with a 95 % interval over scenes; None without any.

    did, of: (scene, frame).
    """
    product, square = np.nansum(did * of, axis=1), np.nansum(of**2, axis=1)
    if square.sum() < 1e-6:
        return None
    drawn = np.random.default_rng(seed).integers(len(did), size=(NUM_DRAWS, len(did)))
    draws = product[drawn].sum(1) / np.maximum(square[drawn].sum(1), 1e-6)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(product.sum() / square.sum()), float(low), float(high)


def kept_in_sight(seen: Seen, kind: str, slot: int) -> Float[np.ndarray, " frame"]:
    """Return which share of the cars that can be made out is seen, frame by frame; NaN of none."""
    is_seen, num = is_seen_of(seen, kind, slot).sum((0, 1)), seen.visible[..., slot].sum((0, 1))
    return np.where(num > 0, is_seen / np.maximum(num, 1), np.nan)


def is_seen_of(seen: Seen, kind: str, slot: int) -> Bool[np.ndarray, "scene variant frame"]:
    """Tell where a car that can be made out is seen."""
    return np.isfinite(seen.by_kind[kind][..., slot, 0]) & seen.visible[..., slot]


def headline(seen: Seen, errors: CarNetErrors) -> dict[str, Any]:
    """Return the figures that matter; the car net's own errors first."""
    figures: dict[str, Any] = {
        "car_net_missed": round(float(errors.missed.max()), 4),
        "car_net_distance_error": round(float(errors.distance.max()), 4),
    }
    for slot, name in enumerate(WATCHED):
        for kind in KINDS:
            num = seen.visible[..., slot].sum()
            share_seen = round(float(is_seen_of(seen, kind, slot).sum() / num), 4) if num else None
            figures[f"{name}_seen_{kind}"] = share_seen
    for question in QUESTIONS:
        for kind in ("truth", *KINDS):
            found = share(*answers(seen, question, kind))
            figures[f"{question.name}_{kind}"] = None if found is None else round(found[0], 4)
    return figures


def film(
    output: Path,
    scenes: Sequence[TrafficScene],
    generated: Sequence[Rollouts],
    frames: Sequence[Frames],
) -> list[str]:
    """Film some scenes: the manoeuvres side by side, true and generated below; return the names."""
    names = []
    for index in range(min(NUM_FILMED, len(scenes))):
        scene = scenes[index]
        truth = torch.stack([images[scene.first :] for images in scene.images])
        shown = torch.stack([some[index] for some in frames])
        parts = [
            torch.stack(part) for part in zip(*[_of(r, index) for r in generated], strict=True)
        ]
        names.append(f"scene_{index + 1}.mp4")
        pictures = draw_rollouts(shown, truth, Rollouts(*parts), caption="true")
        write_video(output / names[-1], pictures)
    return names


def _of(rollouts: Rollouts, index: int) -> list[torch.Tensor]:
    """Return what was generated of one scene."""
    return [part[index] for part in rollouts]


def write_page(
    output: Path,
    about: str,
    seen: Seen,
    errors: CarNetErrors,
    figures: Mapping[str, Any],
    films: Sequence[str],
) -> None:
    """Write `report.html`, and its plot beside it."""
    png = draw_curves(panels(seen))
    (output / "reactions.png").write_bytes(png)
    rows = []
    for question in QUESTIONS:
        found = [share(*answers(seen, question, kind)) for kind in ("truth", *KINDS)]
        num = int(np.isfinite(answers(seen, question, "generated")[0]).sum())
        rows.append([question.manoeuvre, question.words, *map(interval, found), num])
    asked = Table(
        header=("we", "share", "truth", *KINDS, "frames told"), rows=rows, heading="Do they react?"
    )
    there = Table(
        header=("car", *CarNetErrors._fields, *(f"seen in {kind}" for kind in KINDS)),
        rows=[
            [
                name,
                *(round(float(part[slot]), 4) for part in errors),
                *(figures[f"{name}_seen_{kind}"] for kind in KINDS),
            ]
            for slot, name in enumerate(WATCHED)
        ],
        heading="The car net's own errors, on held-out roads, and the share of cars that it sees",
    )
    write_text(output / "reactions.md", f"{asked.markdown}\n{there.markdown}")
    parts: list[Part] = [
        Text(
            text=f"{about} What a car does because of us is where it is after a manoeuvre, less "
            "where it is when we hold our speed: in truth, and as the car net sees it in drawn "
            "(true) and in generated pictures. Intervals of 95 %, over scenes; cars that the car "
            "net does not see are left out, and counted below."
        ),
        asked,
        Picture(png=png, heading="Because of us, mean of scenes, and who is still there"),
        there,
        Table(
            header=("figure", "value"),
            rows=[[name, "none" if value is None else value] for name, value in figures.items()],
            heading="Figures",
        ),
        *(
            Video(source=name, heading=f"{', '.join(MANOEUVRES)}: true, generated")
            for name in films
        ),
    ]
    write_report(output / "report.html", "Do generated cars react?", parts)


def interval(found: tuple[float, float, float] | None) -> str:
    """Write a share with its interval."""
    return "none" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def panels(seen: Seen) -> list[Panel]:
    """Return a panel a question, and one a watched car: who is still there."""

    def mean(curve: np.ndarray) -> np.ndarray:
        num = np.isfinite(curve).sum(0)
        return np.where(num > 0, np.nansum(curve, axis=0) / np.maximum(num, 1), np.nan)

    asked = [
        Panel(
            title=f"{question.manoeuvre}: {question.watched}, m {AXES[question.axis]}",
            label="frame",
            curves={kind: mean(answers(seen, question, kind)[0]) for kind in ("truth", *KINDS)},
        )
        for question in QUESTIONS
    ]
    there = [
        Panel(
            title=f"{name}: share that is seen",
            label="frame",
            curves={kind: kept_in_sight(seen, kind, slot) for kind in KINDS},
        )
        for slot, name in enumerate(WATCHED)
    ]
    return [*asked, *there]

"""How good a world model is: what it shows, whether it goes where it is told, where it leads.

Scenes are held-out recordings: a context of 2 s, T frames to generate, and anchors right after
them. From each recording other drives are made, and seen through the reprojective world: smooth
excursions to one side and back (`commanded`), and drives that are off to one side all along
(`displaced`). They are what generated frames are compared with.

Positions beside the recorded path are metres to the left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from drive_envs.geometry import compose
from drive_envs.image_metrics import lpips_distance, psnr
from drive_envs.path import NUM_PAST, RecordedPath, gather_paths, path_from_segment
from drive_envs.plan import EULER, POSITION, STEP, TIMES
from drive_envs.scenes import stretches
from drive_envs.segment import Segment
from world_model.encoding import Images, as_latents, images_as_recorded, seen_from
from world_model.excursions import Excursion, excursion
from world_model.latents import LatentDrive
from world_model.pose_net import PoseNet, estimate
from world_model.previews import Frames
from world_model.rollouts import plans_from
from world_model.sampler import Sampler
from world_model.tokenizer import Tokenizer, to_float

MAX_HEADING = 0.2  # rad, of an excursion: slow cars go less far
RECOVERY_TIMES = (1.0, 2.0, 4.0)  # s
SOURCE_OFFSETS = (0, -3)  # rows, of what excursions are seen through

Curve = Float[np.ndarray, " frame"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is asked of the model.

    num_frames: T, and report_frames: those whose figures are reported. num_scenes: at most.
    commanded: m, peaks of the excursions. displaced: m, to either side. seed: of the noise.
    """

    num_frames: int = 35
    report_frames: tuple[int, ...] = (10, 25, 35)
    num_scenes: int = 16
    commanded: tuple[float, ...] = (0.5, 1.0)
    displaced: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(1 <= frame <= self.num_frames for frame in self.report_frames):
            raise ValueError(
                f"evaluation.report_frames {self.report_frames} must be within 1..num_frames, "
                f"{self.num_frames}"
            )
        if self.num_scenes < 1 or not self.commanded or min(self.commanded) <= 0:
            raise ValueError(
                f"evaluation.num_scenes is {self.num_scenes} and commanded {self.commanded}; they "
                "must be 1 or more, and positive"
            )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A recording with other drives beside it. images: of each variant, all rows.

    Variants: 0 as recorded, then the commanded excursions (each to the left, then to the right),
    then the displaced drives (left, right). first: row of the first frame to be generated.
    """

    path: RecordedPath
    drive: LatentDrive
    images: Sequence[Images]
    first: int


def recorded_scene(
    segment: Segment,
    rows: slice,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    size: tuple[int, int],
    num_context: int,
) -> Scene:
    """Make the scene that is a stretch of a recording."""
    path = path_from_segment(segment, rows)
    drives = other_drives(path, config, num_context)
    images = [images_as_recorded(segment, rows, *size)]
    images += seen_from(segment, rows, path, drives, *size, SOURCE_OFFSETS)
    return make_scene(segment.name, path, drives, images, tokenizer, num_context)


def make_scene(
    name: str,
    path: RecordedPath,
    drives: Sequence[Excursion],
    images: Sequence[Images],
    tokenizer: Tokenizer,
    num_context: int,
) -> Scene:
    """Make a scene of what was seen on a path, and from drives beside it."""
    drive = as_latents(name, "held_out", tokenizer, path, drives, images, has_moved=False)
    return Scene(path=path, drive=drive, images=images, first=num_context)


def other_drives(path: RecordedPath, config: EvaluationConfig, num_context: int) -> list[Excursion]:
    """Return the commanded excursions, and then the displaced drives, beside a path."""
    commanded = [
        there_and_back(side * peak, num_context, config.num_frames, len(path))
        for peak in config.commanded
        for side in (1, -1)
    ]
    return [
        *(excursion(path, *offset, MAX_HEADING) for offset in commanded),
        *(beside(path, side * config.displaced) for side in (1, -1)),
    ]


def there_and_back(
    peak: float, first: int, num_frames: int, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a lateral offset row by row, and its rate: zero, out to a peak, zero again."""
    phase = ((np.arange(num_rows) - first + 1) / num_frames).clip(0, 1)
    turn = 2 * np.pi * phase
    offset = 0.5 * peak * (1 - np.cos(turn))
    return offset, np.pi * peak * np.sin(turn) / (num_frames * STEP)


def beside(path: RecordedPath, lateral: float) -> Excursion:
    """Return a drive that is off to one side all along."""
    return excursion(path, np.full(len(path), lateral), np.zeros(len(path)), MAX_HEADING)


def fitting_stretches(segment: Segment, num_rows: int) -> list[slice]:
    """Return the beginnings of the unbroken stretches of a segment that are long enough."""
    return [
        slice(rows.start, rows.start + num_rows)
        for rows in stretches(segment)
        if rows.stop - rows.start >= num_rows
    ]


def true_frames(scenes: Sequence[Scene], variant: int, num_frames: int) -> Frames:
    """Stack what was, or would have been, seen in the frames that are generated."""
    rows = [scene.images[variant][scene.first : scene.first + num_frames] for scene in scenes]
    return torch.stack(rows)


def still_frames(scenes: Sequence[Scene], num_frames: int) -> Frames:
    """Repeat the last picture before those that are generated, as if the world stood still."""
    last = torch.stack([scene.images[0][scene.first - 1] for scene in scenes])
    return last[:, None].expand(-1, num_frames, *last.shape[1:])


def image_curves(
    generated: Frames, truth: Frames, perceptual: Mapping[str, nn.Module]
) -> dict[str, Curve]:
    """Compare frames with true ones: PSNR and LPIPS by frame, means over scenes and cameras."""
    curves = {"psnr": by_frame(psnr, generated, truth)}
    for name, network in perceptual.items():

        def distance(images: Tensor, true: Tensor, network: nn.Module = network) -> Tensor:
            return lpips_distance(network, images, true)

        curves[f"lpips_{name}"] = by_frame(distance, generated, truth)
    return curves


def by_frame(metric: Callable[[Tensor, Tensor], Tensor], generated: Frames, truth: Frames) -> Curve:
    """Return the mean of a metric over scenes and cameras, frame by frame."""
    means = [
        metric(generated[:, step].flatten(0, 1), truth[:, step].flatten(0, 1)).mean().item()
        for step in range(generated.shape[1])
    ]
    return np.array(means)


def frechet(features: Float[Tensor, "sample dim"], truth: Float[Tensor, "sample dim"]) -> float:
    """Return the Frechet distance of two sets, each taken as normal with independent dimensions.

    As FVD compares videos, but with the few scenes that there are: a whole covariance would take
    more samples than dimensions.
    """
    mean = (features.mean(0) - truth.mean(0)).square()
    deviation = (features.std(0) - truth.std(0)).square()
    return (mean + deviation).sum().item()


def drift_curve(network: PoseNet, recorded: Frames, generated: Frames, truth: Frames) -> Curve:
    """Return the Frechet distance between generated and true frames, frame by frame.

    Features are the pose net's, which compare a frame with the recorded one.
    """

    def features(step: int, frames: Frames) -> Tensor:
        both = [to_float(part[:, step]).flatten(1, 2) for part in (recorded, frames)]
        return network.features(torch.cat(both, dim=1))

    with torch.inference_mode():
        return np.array(
            [
                frechet(features(step, generated), features(step, truth))
                for step in range(generated.shape[1])
            ]
        )


def offsets_seen(
    network: PoseNet, recorded: Frames, frames: Frames
) -> Float[Tensor, "scene frame 2"]:
    """Tell how far beside the recorded pose each frame was taken, as the pose net sees it."""
    flat = estimate(network, recorded.flatten(0, 1), frames.flatten(0, 1))
    return flat.unflatten(0, frames.shape[:2])


def realised_share(
    seen: Float[Tensor, "scene frame"], commanded: Float[Tensor, "scene frame"]
) -> float:
    """Return which share of a commanded deviation is there: the slope of seen over commanded."""
    return ((seen * commanded).sum() / commanded.square().sum()).item()


def plan_laterals(
    scenes: Sequence[Scene], variant: int, plans: Float[Tensor, "scene 33 15"]
) -> Float[Tensor, "scene 33"]:
    """Return how far beside the recorded path the points of plans are, from the last context frame.

    Beyond the recording's end its path is continued.
    """
    laterals = []
    for scene, plan in zip(scenes, plans, strict=True):
        row = scene.first - 1
        start = max(row, NUM_PAST)  # a `Paths` begins no earlier
        ego = torch.from_numpy(scene.drive.poses[variant, row])
        points = torch.cat([plan[:, POSITION][:, :2], plan[:, EULER][:, 2:]], dim=-1).double().cpu()
        poses = compose(ego.expand(len(points), 3), points)
        paths = gather_paths([scene.path] * len(poses), [start] * len(poses), 0)
        time = TIMES[:, None] + (row - start) * STEP
        laterals.append(paths.project(poses, paths.at_time(time).station[:, 0]).lateral)
    return torch.stack(laterals)


def recovery(
    sampler: Sampler, scenes: Sequence[Scene], config: EvaluationConfig, *, is_anchored: bool
) -> dict[str, float]:
    """Return what is left of an initial offset of one metre, in metres, at times along the plan.

    The car was beside the recorded path all along its context. Left of the offset is what the plan
    from there is off the path, on the side where it began, mean over scenes and sides; `distance`
    is the mean of how far it is off to whichever side.
    """
    wait = config.num_frames + 1
    first = 1 + 2 * len(config.commanded)
    left: list[Tensor] = []
    for variant, side in ((first, 1.0), (first + 1, -1.0)):
        starts = [(scene.drive, scene.first) for scene in scenes]
        plans = plans_from(sampler, starts, variant=variant, wait=wait if is_anchored else 0)
        left.append(side * plan_laterals(scenes, variant, plans))
    times = {f"{time:g}_s": time for time in RECOVERY_TIMES} | {"anchor": wait * STEP}
    off = torch.cat(left).numpy() / config.displaced
    means = {"": off.mean(0), "_distance": np.abs(off).mean(0)}
    return {
        f"{name}{suffix}": float(np.interp(time, TIMES.numpy(), mean))
        for suffix, mean in means.items()
        for name, time in times.items()
    }

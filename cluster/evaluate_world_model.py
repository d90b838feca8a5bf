"""`drive evaluate-world-model`: does a world model show the world, go where it is told, lead back?

On held-out recordings, and with `metadrive=true` on a road in MetaDrive too, where every picture
can be compared with the true one. Everything is in `report.html`, with videos.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cluster.bench_reprojection import lpips_or_none
from cluster.curve_plot import Panel, draw_curves
from cluster.metadrive_scenes import metadrive_scenes
from cluster.progress import track
from cluster.report import Part, Picture, Table, Text, Video, write_report
from drive_envs.allocator import keep_freed_memory
from drive_envs.drawing import write_video
from drive_envs.image_metrics import load_lpips
from drive_envs.segment import SegmentError
from drive_envs.segments import open_dataset, sample_path
from world_model.evaluation import (
    EvaluationConfig,
    Scene,
    drift_curve,
    fitting_stretches,
    generate,
    image_curves,
    offsets_seen,
    realised_share,
    recorded_scene,
    recovery,
    true_frames,
)
from world_model.model_file import load_pose_net, load_world_model
from world_model.pose_net import PoseNet
from world_model.previews import Frames, decoded, draw_rollouts
from world_model.rollouts import Rollouts
from world_model.sampler import Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

NUM_FILMED = 3  # scenes in a video
KINDS = ("autoencoder", "next frame", "rollout")


@dataclass(frozen=True, kw_only=True)
class EvaluateWorldModelRun:
    """What is evaluated, and on what.

    model: folder that `drive train-world-model` left in `output/world_model`, null for the shipped
    one. data: recordings, whose held-out split is used, or `sample`. lpips_weights: folder of LPIPS
    weights, null lets torchvision download the backbone, without which there is no LPIPS.
    metadrive_scenes: so many more, drawn in MetaDrive, where pictures from beside the path are true
    ones.
    """

    model: Path | None = None
    data: str = "sample"
    lpips_weights: Path | None = None
    metadrive_scenes: int = 4
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    @property
    def model_path(self) -> Path:
        """Where the model is."""
        shipped = Path(str(resources.files("world_model"))) / "data" / "nano"
        return self.model or shipped

    @property
    def data_path(self) -> Path:
        """Where the recordings are."""
        return sample_path() if self.data == "sample" else Path(self.data)


class Followed(NamedTuple):
    """Recordings as they are generated: curves by kind and metric, and what was generated."""

    curves: dict[str, dict[str, np.ndarray]]
    rollouts: Rollouts
    frames: Frames


class Deviation(NamedTuple):
    """Excursions that were commanded, (scene, frame) m beside the recording.

    seen: where the pose net sees generated frames taken from, in_truth: those that show the
    excursion as it would have been seen. errors: of generated frames against these, by metric,
    means over frames.
    """

    peak: float
    variant: int
    commanded: Tensor
    seen: Tensor
    in_truth: Tensor
    rollouts: Rollouts
    frames: Frames
    errors: dict[str, float]

    @property
    def shares(self) -> tuple[float, float]:
        """Which share of the command is realised: in generated frames, and in true ones."""
        return (
            realised_share(self.seen, self.commanded),
            realised_share(self.in_truth, self.commanded),
        )


def run(config: EvaluateWorldModelRun, output: Path) -> dict[str, Any]:
    """Evaluate, leaving a report with videos; return the headline figures."""
    keep_freed_memory()
    model, tokenizer = load_world_model(config.model_path)
    pose_net = load_pose_net(config.model_path, model.config)
    sampler = Sampler(model, config.sampler)
    scenes = load_scenes(config, tokenizer, sampler)
    perceptual = load_perceptual(config.lpips_weights)
    log.info("%d scenes of %d frames", len(scenes), config.evaluation.num_frames)

    followed = follow(config, sampler, tokenizer, scenes, perceptual, pose_net)
    film(output / "rollout.mp4", followed.rollouts, followed.frames, scenes, variant=0)
    deviations = {"recordings": command(config, sampler, tokenizer, scenes, perceptual, pose_net)}
    for deviation in deviations["recordings"]:
        name = f"deviation_{deviation.peak:+g}_m.mp4"
        film(output / name, deviation.rollouts, deviation.frames, scenes, deviation.variant)
    if config.metadrive_scenes:
        true_scenes = metadrive_scenes(
            config.metadrive_scenes, tokenizer, config.evaluation, model.config
        )
        found = command(config, sampler, tokenizer, true_scenes, perceptual, pose_net)
        deviations["MetaDrive"] = found
        last = found[-1]
        film(output / "metadrive.mp4", last.rollouts, last.frames, true_scenes, last.variant)
    recoveries = {
        name: recovery(sampler, scenes, config.evaluation, is_anchored=name == "anchored")
        for name in ("anchored", "unanchored")
    }
    figures = headline(config.evaluation, followed, deviations, recoveries)
    write_page(output, config, figures, followed, deviations, recoveries)
    return figures


def load_scenes(
    config: EvaluateWorldModelRun, tokenizer: Tokenizer, sampler: Sampler
) -> list[Scene]:
    """Make scenes of held-out recordings, and of their mirror images; damaged ones are left out."""
    model, evaluation = sampler.model.config, config.evaluation
    num_context = model.num_history + 1
    num_rows = num_context + evaluation.num_frames + model.num_anchors
    segments = open_dataset(config.data_path, split="held_out")
    chosen = range(0, len(segments), max(1, 2 * len(segments) // evaluation.num_scenes))
    scenes: list[Scene] = []
    for index in track(chosen, "encoding held-out recordings"):
        for segment in (segments[index], segments[index].mirrored()):
            try:
                for rows in fitting_stretches(segment, num_rows)[:1]:
                    size = model.width, model.height
                    scenes.append(
                        recorded_scene(segment, rows, tokenizer, evaluation, size, num_context)
                    )
            except SegmentError as error:
                log.warning("skipped: %s", error)
    if not scenes:
        raise ValueError(
            f"{config.data_path}: no held-out recording has the {num_rows} frames in a row that an "
            "evaluation takes: record longer drives, or lower evaluation.num_frames"
        )
    return scenes[: evaluation.num_scenes]


def load_perceptual(weights: Path | None) -> dict[str, nn.Module]:
    """Load LPIPS with both backbones, or none without weights."""
    if lpips_or_none(weights) is None:
        return {}
    return {"alex": load_lpips(weights, "alex"), "squeeze": load_lpips(weights, "squeeze")}


def follow(
    config: EvaluateWorldModelRun,
    sampler: Sampler,
    tokenizer: Tokenizer,
    scenes: Sequence[Scene],
    perceptual: Mapping[str, nn.Module],
    pose_net: PoseNet,
) -> Followed:
    """Generate the recordings again, and compare frame by frame."""
    num_frames, seed = config.evaluation.num_frames, config.evaluation.seed
    log.info("generating recordings")
    rollouts = generate(sampler, scenes, num_frames, variant=0, seed=seed)
    forced = generate(sampler, scenes, num_frames, variant=0, seed=seed, truth_as_history=True)
    truth = true_frames(scenes, 0, num_frames)
    frames = {
        "autoencoder": decoded(tokenizer, rollouts.truth),
        "next frame": decoded(tokenizer, forced.latents),
        "rollout": decoded(tokenizer, rollouts.latents),
    }
    curves = {}
    for kind in track(KINDS, "comparing frames"):
        curves[kind] = image_curves(frames[kind], truth, perceptual)
        curves[kind]["drift"] = drift_curve(
            pose_net, frames["autoencoder"], frames[kind], frames["autoencoder"]
        )
        off = offsets_seen(pose_net, frames["autoencoder"], frames[kind]).abs().mean(0)
        curves[kind]["off_pose"] = off[:, 0].numpy()
        curves[kind]["off_heading"] = off[:, 1].numpy()
    return Followed(curves, rollouts, frames["rollout"])


def command(
    config: EvaluateWorldModelRun,
    sampler: Sampler,
    tokenizer: Tokenizer,
    scenes: Sequence[Scene],
    perceptual: Mapping[str, nn.Module],
    pose_net: PoseNet,
) -> list[Deviation]:
    """Command every excursion in all scenes."""
    variants = range(1, 1 + 2 * len(config.evaluation.commanded))
    return [
        deviate(config, sampler, tokenizer, scenes, perceptual, pose_net, variant)
        for variant in track(variants, "commanding deviations")
    ]


def deviate(
    config: EvaluateWorldModelRun,
    sampler: Sampler,
    tokenizer: Tokenizer,
    scenes: Sequence[Scene],
    perceptual: Mapping[str, nn.Module],
    pose_net: PoseNet,
    variant: int,
) -> Deviation:
    """Generate along an excursion, and see where the frames were taken from."""
    num_frames = config.evaluation.num_frames
    rollouts = generate(sampler, scenes, num_frames, variant=variant, seed=config.evaluation.seed)
    rows = [slice(scene.first, scene.first + num_frames) for scene in scenes]

    def decoded_variant(variant: int) -> Frames:
        latents = [
            torch.from_numpy(scene.drive.latents[variant, row]).float()
            for scene, row in zip(scenes, rows, strict=True)
        ]
        return decoded(tokenizer, torch.stack(latents))

    recorded, truth = decoded_variant(0), decoded_variant(variant)
    frames = decoded(tokenizer, rollouts.latents)
    commanded = np.stack(
        [scene.drive.lateral[variant, row] for scene, row in zip(scenes, rows, strict=True)]
    )
    curves = image_curves(frames, true_frames(scenes, variant, num_frames), perceptual)
    peak = config.evaluation.commanded[(variant - 1) // 2] * (1 if variant % 2 else -1)
    return Deviation(
        peak=peak,
        variant=variant,
        commanded=torch.from_numpy(commanded),
        seen=offsets_seen(pose_net, recorded, frames)[..., 0],
        in_truth=offsets_seen(pose_net, recorded, truth)[..., 0],
        rollouts=rollouts,
        frames=frames,
        errors={name: float(curve.mean()) for name, curve in curves.items()},
    )


def film(
    path: Path, rollouts: Rollouts, frames: Frames, scenes: Sequence[Scene], variant: int
) -> None:
    """Film some scenes: what would have been seen, and below it what was generated."""
    shown = slice(0, NUM_FILMED)
    truth = true_frames(scenes[shown], variant, frames.shape[1])
    write_video(path, draw_rollouts(frames[shown], truth, rollouts))


def headline(
    evaluation: EvaluationConfig,
    followed: Followed,
    deviations: Mapping[str, Sequence[Deviation]],
    recoveries: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return the figures that matter; LPIPS is AlexNet's, None without weights."""
    lpips = {kind: curves.get("lpips_alex") for kind, curves in followed.curves.items()}

    def at(kind: str, frame: int) -> float | None:
        curve = lpips[kind]
        return None if curve is None else round(float(curve[frame - 1]), 4)

    floor, forced = lpips["autoencoder"], lpips["next frame"]
    shares = {
        kind: np.array([deviation.shares for deviation in found]).mean(0)
        for kind, found in deviations.items()
    }
    in_metadrive = shares.get("MetaDrive")
    return {
        "autoencoder_lpips": None if floor is None else round(float(floor.mean()), 4),
        "next_frame_lpips": None if forced is None else round(float(forced.mean()), 4),
        **{f"sequential_lpips_{n}": at("rollout", n) for n in evaluation.report_frames},
        "deviation_realised": round(float(shares["recordings"][0]), 4),
        "deviation_in_truth": round(float(shares["recordings"][1]), 4),
        "metadrive_deviation_realised": (
            None if in_metadrive is None else round(float(in_metadrive[0]), 4)
        ),
        "anchored_recovery_m": round(recoveries["anchored"]["anchor"], 4),
        "unanchored_recovery_m": round(recoveries["unanchored"]["anchor"], 4),
    }


def write_page(
    output: Path,
    config: EvaluateWorldModelRun,
    figures: Mapping[str, Any],
    followed: Followed,
    deviations: Mapping[str, Sequence[Deviation]],
    recoveries: Mapping[str, Mapping[str, float]],
) -> None:
    """Write `report.html`, and its plots beside it."""
    plots = {
        "images.png": draw_curves(image_panels(followed)),
        "deviation.png": draw_curves(deviation_panels(deviations["recordings"])),
    }
    for name, png in plots.items():
        (output / name).write_bytes(png)
    rows = [[name, "none" if value is None else value] for name, value in figures.items()]
    parts: list[Part] = [
        Text(text=f"{config.model_path} on the held-out recordings of {config.data}."),
        Table(header=("figure", "value"), rows=rows, heading="Figures"),
        Table(
            header=("frame", *(f"{kind} {m}" for kind in KINDS for m in followed.curves[kind])),
            rows=[
                [n, *(float(c[n - 1]) for kind in KINDS for c in followed.curves[kind].values())]
                for n in config.evaluation.report_frames
            ],
            heading="By frame",
        ),
        Picture(png=plots["images.png"], heading="What it shows, frame by frame"),
        Video(source="rollout.mp4", heading="Recorded, and generated below it"),
        Table(
            header=(
                "where",
                "commanded peak, m",
                "realised share",
                "share that the pose net sees in truth",
                *deviations["recordings"][0].errors,
            ),
            rows=[
                [kind, d.peak, *d.shares, *d.errors.values()]
                for kind, found in deviations.items()
                for d in found
            ],
            heading="Commanded deviation; in MetaDrive against true pictures",
        ),
        Picture(png=plots["deviation.png"], heading="Metres beside the recording, mean of scenes"),
        *(
            Video(source=f"deviation_{d.peak:+g}_m.mp4", heading=f"{d.peak:+g} m commanded")
            for d in deviations["recordings"]
        ),
        *(
            [Video(source="metadrive.mp4", heading="In MetaDrive: true, and generated below it")]
            if "MetaDrive" in deviations
            else []
        ),
        Table(
            header=("plan", *recoveries["anchored"]),
            rows=[[name, *left.values()] for name, left in recoveries.items()],
            heading="What is left of an offset of 1 m along the plan, m",
        ),
    ]
    write_report(output / "report.html", "World model", parts)


def image_panels(followed: Followed) -> list[Panel]:
    """Return a panel a metric, a curve a kind."""
    metrics = followed.curves[KINDS[0]]
    return [
        Panel(
            title=metric,
            label="frame",
            curves={kind: followed.curves[kind][metric] for kind in KINDS},
        )
        for metric in metrics
    ]


def deviation_panels(deviations: Sequence[Deviation]) -> list[Panel]:
    """Return a panel an excursion."""
    return [
        Panel(
            title=f"{d.peak:+g} m commanded",
            label="frame",
            curves={
                "commanded": d.commanded.mean(0).numpy(),
                "generated": d.seen.mean(0).numpy(),
                "true pictures": d.in_truth.mean(0).numpy(),
            },
        )
        for d in deviations
    ]

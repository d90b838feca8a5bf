"""`drive evaluate-world-model`: does a world model show the world, go where it is told, lead back?

On held-out recordings, and on roads in MetaDrive too (`metadrive_scenes`), where every picture can
be compared with the true one. Everything is in `report.html`, with videos.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cluster.bench_reprojection import lpips_or_none
from cluster.metadrive_scenes import metadrive_scenes
from cluster.progress import track
from cluster.world_model_page import write_page
from drive_envs.allocator import keep_freed_memory
from drive_envs.drawing import write_video
from drive_envs.image_metrics import load_lpips
from drive_envs.segment import SegmentError
from drive_envs.segments import open_dataset, sample_path
from world_model.dit import WorldModelConfig
from world_model.evaluation import (
    EvaluationConfig,
    Scene,
    fitting_stretches,
    recorded_scene,
    recovery,
    true_frames,
)
from world_model.judge import Deviation, Followed, Judge
from world_model.model_file import SHIPPED, load_pose_net, load_world_model
from world_model.previews import Frames, draw_rollouts
from world_model.rollouts import Rollouts
from world_model.sampler import Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

NUM_FILMED = 3  # scenes in a video


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
        return self.model or SHIPPED

    @property
    def data_path(self) -> Path:
        """Where the recordings are."""
        return sample_path() if self.data == "sample" else Path(self.data)


def run(config: EvaluateWorldModelRun, output: Path) -> dict[str, Any]:
    """Evaluate, leaving a report with videos; return the headline figures."""
    keep_freed_memory()
    model, tokenizer = load_world_model(config.model_path)
    judge = Judge(
        evaluation=config.evaluation,
        sampler=Sampler(model, tokenizer, config.sampler),
        tokenizer=tokenizer,
        pose_net=load_pose_net(config.model_path, model.config),
        perceptual=load_perceptual(config.lpips_weights),
    )
    scenes = load_scenes(config, tokenizer, model.config)
    log.info("%d scenes of %d frames", len(scenes), config.evaluation.num_frames)

    log.info("generating recordings")
    followed = judge.follow(scenes)
    film(output / "rollout.mp4", followed.rollouts, followed.frames, scenes, variant=0)
    deviations = {"recordings": commanded(judge, scenes)}
    for deviation in deviations["recordings"]:
        name = f"deviation_{deviation.peak:+g}_m.mp4"
        film(output / name, deviation.rollouts, deviation.frames, scenes, deviation.variant)
    if config.metadrive_scenes:
        true_scenes = metadrive_scenes(
            config.metadrive_scenes, tokenizer, config.evaluation, model.config
        )
        found = commanded(judge, true_scenes)
        deviations["MetaDrive"] = found
        last = found[-1]
        film(output / "metadrive.mp4", last.rollouts, last.frames, true_scenes, last.variant)
    recoveries = {
        name: recovery(judge.sampler, scenes, config.evaluation, is_anchored=name == "anchored")
        for name in ("anchored", "unanchored")
    }
    figures = headline(config.evaluation, followed, deviations, recoveries)
    about = f"{config.model_path} on the held-out recordings of {config.data}."
    frames = config.evaluation.report_frames
    write_page(output, about, frames, figures, followed, deviations, recoveries)
    return figures


def commanded(judge: Judge, scenes: Sequence[Scene]) -> list[Deviation]:
    """Command every excursion in all scenes."""
    variants = track(judge.variants, "commanding deviations")
    return [judge.deviate(scenes, variant) for variant in variants]


def load_scenes(
    config: EvaluateWorldModelRun, tokenizer: Tokenizer, model: WorldModelConfig
) -> list[Scene]:
    """Make scenes of held-out recordings, and of their mirror images; damaged ones are left out."""
    evaluation = config.evaluation
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


def film(
    path: Path, rollouts: Rollouts, frames: Frames, scenes: Sequence[Scene], variant: int
) -> None:
    """Film some scenes: what would have been seen, and below it what was generated."""
    shown = slice(0, NUM_FILMED)
    truth = true_frames(scenes[shown], variant, frames.shape[1])
    write_video(path, draw_rollouts(frames[shown], truth, rollouts))


def headline_names(evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Name the figures of `headline`, in its order."""
    return (
        *("pose_net_error_m", "metadrive_pose_net_error_m"),
        *("autoencoder_lpips", "next_frame_lpips"),
        *(f"sequential_lpips_{n}" for n in evaluation.report_frames),
        *(f"still_lpips_{n}" for n in evaluation.report_frames),
        *("deviation_realised", "deviation_in_truth", "metadrive_deviation_realised"),
        *("anchored_recovery_m", "unanchored_recovery_m"),
        *("anchored_distance_m", "unanchored_distance_m"),
    )


def headline(
    evaluation: EvaluationConfig,
    followed: Followed,
    deviations: Mapping[str, Sequence[Deviation]],
    recoveries: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return the figures that matter; LPIPS is AlexNet's, None without weights.

    The pose net, which judges where frames were taken from, is judged first: by pictures of whose
    excursion there is no doubt.
    """
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
    errors = {
        kind: round(float(np.mean([deviation.pose_net_error for deviation in found])), 4)
        for kind, found in deviations.items()
    }
    return {
        "pose_net_error_m": errors["recordings"],
        "metadrive_pose_net_error_m": errors.get("MetaDrive"),
        "autoencoder_lpips": None if floor is None else round(float(floor.mean()), 4),
        "next_frame_lpips": None if forced is None else round(float(forced.mean()), 4),
        **{f"sequential_lpips_{n}": at("rollout", n) for n in evaluation.report_frames},
        **{f"still_lpips_{n}": at("still", n) for n in evaluation.report_frames},
        "deviation_realised": round(float(shares["recordings"][0]), 4),
        "deviation_in_truth": round(float(shares["recordings"][1]), 4),
        "metadrive_deviation_realised": (
            None if in_metadrive is None else round(float(in_metadrive[0]), 4)
        ),
        "anchored_recovery_m": round(recoveries["anchored"]["anchor"], 4),
        "unanchored_recovery_m": round(recoveries["unanchored"]["anchor"], 4),
        "anchored_distance_m": round(recoveries["anchored"]["anchor_distance"], 4),
        "unanchored_distance_m": round(recoveries["unanchored"]["anchor_distance"], 4),
    }

"""How good and how fast the reprojective warp is, with MetaDrive as the truth.

At places along a road with cars on it, MetaDrive draws a frame as `drive record` does, finer and
wider than a driver sees, and, from displaced poses, what the warp of that frame should look like.
Beside the warp stands the frame left as it is ("no warp").
Depth is rounded to centimetres, as recordings hold it; colour is not compressed.

Neighbours are earlier frames of a drive along the lane. Nothing moves here: that a neighbour shows
other cars where they were is not measured.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import radians
from pathlib import Path
from time import thread_time

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from cluster.progress import CONSOLE, track
from drive_envs.camera import Camera, cameras, recording_cameras
from drive_envs.frames import decode_depth, encode_depth, shrink_depth
from drive_envs.geometry import compose, matrix_from_planar
from drive_envs.image_metrics import load_lpips, lpips_distance, psnr
from drive_envs.metadrive_rendering import Frame, MetaDriveRenderer
from drive_envs.reprojection import Reprojected, reproject
from drive_envs.resampling import seen_by
from drive_envs.roads import Block, Road, lane_centerline

logger = logging.getLogger(__name__)

ROAD = Road(
    blocks=(
        Block(kind="S", length=80.0),
        Block(kind="C", length=40.0, radius=120.0, angle_deg=50.0, turn="left"),
        Block(kind="C", length=40.0, radius=80.0, angle_deg=60.0, turn="right"),
    )
)
PLACES = ((0, 60.0), (1, 85.0), (0, 130.0), (1, 170.0), (0, 215.0), (1, 260.0))  # lane, s in metres
CARS = ((1, 78.0), (0, 112.0), (1, 150.0), (0, 160.0), (1, 195.0), (0, 240.0), (1, 285.0))


@dataclass(frozen=True, kw_only=True)
class ReprojectionBench:
    """What to measure.

    width, height: pixels of what is seen through both cameras. scale, margin: how much finer, and
    by which share of the width on either side wider, the frames are that it is warped from.
    lateral: metres; yaw_deg: degrees; each is tried to the left and to the right.
    neighbours: seconds before the frame, of the further sources, at `speed` m/s along the lane.
    lpips_weights: folder of LPIPS weights; None lets torchvision download them. every: of a real
    drive, every so many-th frame is measured; camera_height: m, of its camera above the road.
    """

    width: int = 256
    height: int = 128
    scale: int = 2
    margin: float = 0.25
    lateral: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    yaw_deg: tuple[float, ...] = (1.0, 3.0, 5.0)
    neighbours: tuple[float, ...] = (0.4, 1.0)
    speed: float = 10.0
    lpips_weights: Path | None = None
    every: int = 1
    camera_height: float = 1.65

    def __post_init__(self) -> None:
        reach = self.speed * max(self.neighbours, default=0.0)
        if not 0 <= reach <= PLACES[0][1]:
            raise ValueError(
                f"neighbours lie {reach} m back, which must be from 0 to {PLACES[0][1]} m: "
                "lower neighbours or speed"
            )

    def sensors(self, width: int, height: int) -> dict[str, Camera]:
        """Return the cameras of the sources for what is seen at a size."""
        margin = round(self.margin * width)
        return recording_cameras(width, height, scale=self.scale, margin=margin)

    @property
    def displacements(self) -> dict[str, list[tuple[float, float, float]]]:
        """Displacements (x, y, yaw) in metres and radians by name, the one to the left first."""
        lateral = {f"{d:g} m": [(0.0, d, 0.0), (0.0, -d, 0.0)] for d in self.lateral}
        yaw = {
            f"{a:g} deg": [(0.0, 0.0, radians(a)), (0.0, 0.0, -radians(a))] for a in self.yaw_deg
        }
        return lateral | yaw


@dataclass(frozen=True, kw_only=True)
class Views:
    """Frames of one camera from several poses: (..., 3, H, W), (..., h, w), (..., 4, 4)."""

    camera: Camera
    image: Tensor
    depth: Tensor
    world_from_camera: Tensor


def bench_reprojection(output: Path, config: ReprojectionBench | None = None) -> dict[str, object]:
    """Measure, print tables, write pictures (source | warps | truth | difference) to `output`.

    Returns {"quality": {camera: {displacement: {"no warp", "1 source", ...: figures}}}, "speed":
    {size: figures}}; LPIPS is None without weights. Raises ValueError as the renderer does.
    """
    config = config or ReprojectionBench()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optics = cameras(config.width, config.height)
        sources, truths = draw(config)
        network = lpips_or_none(config.lpips_weights)
        quality = {
            name: camera_quality(camera, sources[name], truths[name], network, output / name)
            for name, camera in optics.items()
        }
        speed = speed_at_sizes(sources["wide"], config)
    finally:
        torch.set_num_threads(num_threads)
    print_quality(quality)
    print_speed(speed)
    return {"quality": quality, "speed": speed}


def draw(config: ReprojectionBench) -> tuple[dict[str, Views], dict[str, dict[str, Views]]]:
    """Render the sources (place, source, ...) and, by displacement, the truth (place, 2, ...)."""
    optics = cameras(config.width, config.height)
    sensors = config.sensors(config.width, config.height)
    renderer = MetaDriveRenderer(sensors, supersampling=2 if config.scale == 1 else 1)
    try:
        renderer.load(ROAD)
        renderer.place({"s": np.concatenate([lane_poses(*car) for car in CARS])})
        back = [0.0, *(config.speed * seconds for seconds in config.neighbours)]
        along = [[lane_poses(lane, s - metres)[0] for metres in back] for lane, s in PLACES]
        sources = look(renderer, torch.tensor(np.array(along)), config.scale)
        truths: dict[str, dict[str, Views]] = {name: {} for name in optics}
        here = torch.tensor(np.array(along))[:, :1]
        for title, deltas in track(config.displacements.items(), "Rendering displaced views"):
            poses = compose(here, torch.tensor(deltas, dtype=torch.float64))
            for name, views in look(renderer, poses, config.scale).items():
                truths[name][title] = as_seen(views, optics[name])
    finally:
        renderer.close()
    return sources, truths


def lane_poses(lane: int, s: float) -> np.ndarray:
    """Return the pose (1, 3) on a lane's centre."""
    return lane_centerline(ROAD, lane).poses(np.array([s]))


def look(renderer: MetaDriveRenderer, poses: Tensor, scale: int) -> dict[str, Views]:
    """Render both cameras at planar poses (place, n, 3), depth `scale` times as coarse."""
    frames = [renderer.render(*pose.tolist()) for pose in poses.flatten(0, 1)]
    world_from_ego = matrix_from_planar(poses)
    return {
        name: Views(
            camera=camera,
            image=stack([frame[name].image for frame in frames], poses),
            depth=stack([as_recorded(frame[name], scale) for frame in frames], poses),
            world_from_camera=world_from_ego @ camera.ego_from_camera,
        )
        for name, camera in renderer.cameras.items()
    }


def as_recorded(frame: Frame, scale: int) -> np.ndarray:
    """Return a frame's depth as a recording would give it back."""
    depth = shrink_depth(frame.depth, scale)
    height, width = depth.shape
    return decode_depth(encode_depth(depth), width, height)


def as_seen(views: Views, camera: Camera) -> Views:
    """Return what a driver's camera sees of the views, whose own is finer and wider."""
    seen = seen_by(camera, views.image.flatten(0, 1), views.camera)
    return replace(views, camera=camera, image=seen.unflatten(0, views.image.shape[:2]))


def stack(arrays: list[np.ndarray], poses: Tensor) -> Tensor:
    """Stack one array a pose into (place, n, ...)."""
    return torch.from_numpy(np.stack(arrays)).unflatten(0, tuple(poses.shape[:2]))


def lpips_or_none(weights: Path | None) -> nn.Module | None:
    """Load LPIPS; without weights say so and go on."""
    try:
        return load_lpips(weights)
    except ValueError as error:
        if weights is not None:
            raise
        logger.warning("no LPIPS in this table: %s", error)
        return None


def camera_quality(
    camera: Camera,
    sources: Views,
    truths: Mapping[str, Views],
    network: nn.Module | None,
    pictures: Path,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Compare warps with the truth for one camera, and draw them into the folder `pictures`."""
    pictures.mkdir(parents=True, exist_ok=True)
    result = {}
    for title, truth in track(truths.items(), f"Warping {pictures.name}"):
        images = truth.image.flatten(0, 1)
        still = seen_by(camera, sources.image[:, 0], sources.camera)
        unmoved = still[:, None].expand_as(truth.image).flatten(0, 1)
        seen = torch.ones_like(images[:, 0], dtype=torch.bool)
        candidates = {"no warp": Reprojected(unmoved, seen)}
        counts = sorted({1, sources.image.shape[1]})
        for count in counts:
            name = f"{count} source" + ("s" if count > 1 else "")
            candidates[name] = warp(camera, sources, truth, count)
        result[title] = {
            name: figures(candidate, images, network) for name, candidate in candidates.items()
        }
        columns = [candidate.image for candidate in candidates.values()]
        difference = (columns[-1].int() - images.int()).abs().to(torch.uint8)
        # Every other row is a displacement to the left.
        write_picture(
            pictures / f"{title.replace(' ', '_')}.png",
            torch.cat([*columns, images, difference], dim=3)[::2],
        )
    return result


def warp(camera: Camera, sources: Views, truth: Views, count: int) -> Reprojected:
    """Warp the first `count` sources of each place to the poses of the truth."""
    num = truth.image.shape[1]
    back = sources.world_from_camera[:, None, :count]
    target_from_source = torch.linalg.inv(truth.world_from_camera)[:, :, None] @ back
    return reproject(
        sources.image[:, :count].repeat_interleave(num, dim=0),
        sources.depth[:, :count].repeat_interleave(num, dim=0),
        target_from_source.flatten(0, 1).float(),
        camera,
        sources.camera,
    )


def figures(
    candidate: Reprojected, truth: Tensor, network: nn.Module | None
) -> dict[str, float | None]:
    """Average the metrics over images; psnr_seen only over pixels that a source saw."""
    distance = None if network is None else lpips_distance(network, candidate.image, truth)
    return {
        "psnr": round(psnr(candidate.image, truth).mean().item(), 2),
        "psnr_seen": round(psnr(candidate.image, truth, candidate.valid).mean().item(), 2),
        "lpips": None if distance is None else round(distance.mean().item(), 4),
        "valid": round(candidate.valid.double().mean().item(), 4),
    }


def write_picture(path: Path, rows: Tensor) -> None:
    """Write images (N, 3, H, W) below each other, enlarged twice, as PNG."""
    picture = torch.cat(list(rows), dim=1).permute(1, 2, 0).numpy()
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))


def speed_at_sizes(views: Views, config: ReprojectionBench) -> dict[str, dict[str, float]]:
    """Time the warp of 32 images on one core at both sizes the project uses."""
    bandwidth = copy_bandwidth()
    result = {}
    for width, height in ((128, 64), (256, 128)):
        camera = cameras(width, height)["wide"]
        sources = resized(views, config.sensors(width, height)["wide"], config.scale)
        result[f"{width}x{height}"] = {
            "copy_bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
            **{
                key: value
                for count in sorted({1, views.image.shape[1]})
                for key, value in speed(camera, sources, count, bandwidth).items()
            },
        }
    return result


def speed(camera: Camera, sources: Views, count: int, bandwidth: float) -> dict[str, float]:
    """Return ms an image from `count` sources, and the least that moving its bytes would take."""
    num = 32
    pick = torch.arange(num) % len(sources.image)
    images, depths = sources.image[pick, :count], sources.depth[pick, :count]
    world_from_camera = sources.world_from_camera[pick, :count]
    poses = torch.zeros(num, 3, dtype=torch.float64)
    poses[:, 1] = torch.linspace(-1.0, 1.0, num)
    poses[:, 2] = torch.linspace(0.03, -0.03, num)
    mount = camera.ego_from_camera
    moved = world_from_camera[:, 0] @ torch.linalg.inv(mount) @ matrix_from_planar(poses) @ mount
    target_from_source = (torch.linalg.inv(moved)[:, None] @ world_from_camera).float()

    def run() -> None:
        frames = images.contiguous(), depths.contiguous()
        reproject(*frames, target_from_source, camera, sources.camera)

    # Read 3 bytes a pixel of colour and 4 a pixel of depth, write colour and validity.
    read = images[0].numel() + 4 * depths[0].numel()
    least = (read + 4 * camera.width * camera.height) / bandwidth
    return {
        f"ms_{count}": round(best_time(run) / num * 1e3, 3),
        f"bound_ms_{count}": round(least * 1e3, 4),
    }


def resized(views: Views, camera: Camera, scale: int) -> Views:
    """Pick pixels of the views at another size; for timing, where looks do not matter."""

    def picked(maps: Tensor, height: int, width: int) -> Tensor:
        rows = torch.arange(height) * maps.shape[-2] // height
        columns = torch.arange(width) * maps.shape[-1] // width
        return maps[..., rows[:, None], columns]

    return Views(
        camera=camera,
        image=picked(views.image, camera.height, camera.width),
        depth=picked(views.depth, camera.height // scale, camera.width // scale),
        world_from_camera=views.world_from_camera,
    )


def copy_bandwidth() -> float:
    """Measure bytes a second, read and written, of copying more than any cache holds."""
    source = torch.zeros(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_time(lambda: target.copy_(source), num_runs=4)


def best_time(run: Callable[[], object], num_runs: int = 12) -> float:
    """Return the seconds of the fastest of several runs, after one to warm up.

    Processor time of this thread: other processes take nothing of it but cache and bandwidth.
    """
    run()
    seconds = []
    for _ in range(num_runs):
        begin = thread_time()
        run()
        seconds.append(thread_time() - begin)
    return min(seconds)


def print_quality(quality: Mapping[str, Mapping[str, Mapping[str, Mapping]]]) -> None:
    """Show one row a camera and displacement."""
    first = next(iter(next(iter(quality.values())).values()))
    table = Table(title="Warp against MetaDrive (PSNR dB / LPIPS; seen: PSNR and share of pixels)")
    for column in ("camera", "moved", *first):
        table.add_column(column, justify="right")
    for camera, by_displacement in quality.items():
        for title, candidates in by_displacement.items():
            cells = [
                f"{c['psnr']:.1f} / {'-' if c['lpips'] is None else format(c['lpips'], '.3f')}"
                + ("" if name == "no warp" else f"; {c['psnr_seen']:.1f}, {c['valid']:.0%}")
                for name, c in candidates.items()
            ]
            table.add_row(camera, title, *cells)
    CONSOLE.print(table)


def print_speed(speed: Mapping[str, Mapping[str, float]]) -> None:
    """Show ms an image beside the bandwidth bound."""
    table = Table(title="One core, batches of 32, ms an image; bound: moving its bytes once")
    for column in ("size", *next(iter(speed.values()))):
        table.add_column(column, justify="right")
    for size, row in speed.items():
        table.add_row(size, *(f"{value:g}" for value in row.values()))
    CONSOLE.print(table)

"""How true the reprojective warp is on real pixels: a stereo drive, whose other views are known.

The right camera is a true picture from beside the left one, and a later frame is one from further
on. Each is drawn from the left camera's frames and compared: from the frame that is asked for alone
("one source"), and with others before and after it, as near as that frame or farther, which fill
what it did not see ("all sources"). Their depth is the lidar's, completed, and corrected by frames
before and after. The same sources with depth that comes from elsewhere are beside it: from the
lidar alone, from a flat road below the camera, and from that road and motion, as of a drive that
was filmed without a lidar. The frame that is looked for is never a source, nor one that depth
comes from. "No warp" is the frame left as it is.

A folder holds `image_02` and `image_03` (left and right, a picture a frame), `depth_02` (uint16
PNGs, metres times `depth_scale`, few points) and `poses.json`: `fx`, `fy`, `cx`, `cy`, the
projection matrices `P_rect_02_scaled` and `P_rect_03_scaled`, `depth_scale` in words, and `frames`,
each with `T_world_cam0rect`. Moving things and the camera's exposure are not modelled.
"""

import json
import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from cluster.child_processes import end_with_parent
from cluster.progress import CONSOLE, track
from drive_envs.camera import Camera
from drive_envs.depth_completion import Completion, completed
from drive_envs.depth_from_motion import Neighbours, improved
from drive_envs.image_files import picture_files
from drive_envs.image_metrics import lpips_distance, psnr
from drive_envs.recording import RecordingError
from drive_envs.reprojection import Reprojected, reproject
from drive_envs.virtual_view import ground_depth

log = logging.getLogger(__name__)

LEFT, RIGHT = "02", "03"
DEPTH_SCALE = 256.0  # of the layout's depth maps
NEIGHBOURS = (-4, -2, 2, 4)  # frames that depth is corrected by: at 10 Hz the rows of a segment
LIDAR, BOTH, FLAT, MOTION = WAYS = ("lidar", "lidar, motion", "flat road", "flat road, motion")
ALL_SOURCES = "all sources"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A view to draw: of which camera, `ahead` frames on, and from which of the left's frames."""

    camera: str
    ahead: int
    sources: tuple[int, ...]  # rows relative to the frame asked for, the preferred one first

    def frames(self, num_frames: int, every: int) -> range:
        """Return the frames of a drive that have all of it."""
        reach = [*self.sources, self.ahead]
        return range(-min(reach), num_frames - max(reach), every)


TASKS = {
    "left_right": Task(camera=RIGHT, ahead=0, sources=(0, 1, 2)),
    "t+1": Task(camera=LEFT, ahead=1, sources=(0, 2, -2, 4)),
    "t+5": Task(camera=LEFT, ahead=5, sources=(0, 10)),
}


class StereoDrive:
    """The drive in a folder. Raises RecordingError, which names the file, where it is no such."""

    def __init__(self, folder: Path, camera_height: float) -> None:
        poses = folder / "poses.json"
        try:
            known = json.loads(poses.read_text())
            focal, focal_v = known["fx"], known["fy"]
            width, height = known["image_size"]
            self.camera = Camera(
                width=width,
                height=height,
                focal=focal,
                center_u=known["cx"] + 0.5,
                center_v=known["cy"] + 0.5,
                mount_height=camera_height * focal_v / focal,  # stretched, as the world below
            )
            world_from_rectified = [np.array(row["T_world_cam0rect"]) for row in known["frames"]]
            projections = {side: np.array(known[f"P_rect_{side}_scaled"]) for side in (LEFT, RIGHT)}
        except FileNotFoundError as error:
            raise RecordingError(poses, "missing file") from error
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(poses, "not a stereo drive's", repr(error)) from error
        self.files = {
            name: picture_files(folder / name) if (folder / name).is_dir() else []
            for name in (f"image_{LEFT}", f"image_{RIGHT}", f"depth_{LEFT}")
        }
        for name, files in self.files.items():
            if len(files) != len(world_from_rectified):
                cause = f"{len(files)} pictures for {len(world_from_rectified)} poses"
                raise RecordingError(folder / name, cause)
        # In a world that is stretched downwards by this, pixels are square.
        self._stretch = np.diag([1, focal_v / focal, 1, 1.0])
        self._poses = world_from_rectified
        self._from_rectified = {
            side: translated(np.linalg.inv(matrix[:, :3]) @ matrix[:, 3])
            for side, matrix in projections.items()
        }

    def __len__(self) -> int:
        return len(self._poses)

    def image(self, side: str, frame: int) -> Tensor:
        """Return uint8 (3, H, W)."""
        return torch.from_numpy(self.pixels(side, frame)).permute(2, 0, 1).contiguous()

    def pixels(self, side: str, frame: int) -> np.ndarray:
        """Return uint8 RGB (H, W, 3); RecordingError when it is damaged or of another size."""
        file = self.files[f"image_{side}"][frame]
        pixels = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if pixels is None or pixels.shape[:2] != (self.camera.height, self.camera.width):
            raise RecordingError(file, "damaged image, or not of the size that poses.json says")
        return np.ascontiguousarray(pixels[..., ::-1])

    def points(self, frame: int) -> np.ndarray:
        """Return planar metres (H, W) of the lidar's points in the left camera, NaN elsewhere."""
        file = self.files[f"depth_{LEFT}"][frame]
        code = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if code is None or code.dtype != np.uint16:
            raise RecordingError(file, "damaged depth map")
        return np.where(code > 0, code / DEPTH_SCALE, np.nan)

    def depths(self, frame: int) -> np.ndarray:
        """Return planar metres (4, H, W) of the left camera, in the order of `WAYS`."""
        points, image = self.points(frame), self.pixels(LEFT, frame)
        others = [frame + by for by in NEIGHBOURS if 0 <= frame + by < len(self)]
        neighbours = Neighbours(
            images=torch.stack([self.image(LEFT, other) for other in others]),
            this_from_other=torch.stack(
                [self.target_from_source(LEFT, frame, other) for other in others]
            ),
        )
        lidar = completed(points, image, self.camera.center_v, Completion())
        both = improved(lidar, image, neighbours, self.camera, measured=np.isfinite(points))
        road = ground_depth(self.camera)
        motion = improved(road, image, neighbours, self.camera, road=road)
        return np.stack([lidar, both, road, motion]).astype(np.float32)

    def target_from_source(self, side: str, target: int, source: int) -> Tensor:
        """Return what takes a left frame's camera to another camera, stretched; float32 (4, 4)."""
        there = self._poses[target] @ np.linalg.inv(self._from_rectified[side])
        here = self._poses[source] @ np.linalg.inv(self._from_rectified[LEFT])
        moved = self._stretch @ np.linalg.inv(there) @ here @ np.linalg.inv(self._stretch)
        return torch.from_numpy(moved).float()


def translated(offset: np.ndarray) -> np.ndarray:
    """Return the 4 x 4 matrix that moves by an offset."""
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def bench_real_views(
    folder: Path, output: Path, network: nn.Module | None, every: int, camera_height: float
) -> dict[str, Any]:
    """Measure every `every`-th frame of a drive; `output` gets depth maps and pictures.

    camera_height: m above the road, for depth from a flat one. Returns, by task, PSNR and LPIPS
    (None without `network`) of all sources together and the share of pixels that any of them saw;
    and beside these the same of each other way.
    """
    drive = StereoDrive(folder, camera_height)
    frames = {name: task.frames(len(drive), every) for name, task in TASKS.items()}
    if not all(frames.values()):
        raise RecordingError(folder, f"{len(drive)} frames, which are too few")
    used: set[int] = set()
    for name, task in TASKS.items():
        used |= {row + source for row in frames[name] for source in task.sources}
    depths = complete_depths(
        folder, camera_height, sorted(used), output / f"depth_{camera_height:g}"
    )
    figures: dict[str, Any] = {}
    for name, task in TASKS.items():
        rows = [
            measure(drive, depths, task, frame, network, output / f"{name}_{frame:04d}.png")
            for frame in track(frames[name], f"{name}: frames")
        ]
        ways = {way: mean([row[way] for row in rows]) for way in rows[0]}
        figures[name] = ways.pop(ALL_SOURCES) | ways | {"frames": len(rows)}
    show(figures)
    return figures


def complete_depths(
    folder: Path, camera_height: float, frames: Sequence[int], place: Path
) -> dict[int, np.ndarray]:
    """Return `StereoDrive.depths` of frames, from `place` where they are; else in seconds each."""
    place.mkdir(parents=True, exist_ok=True)
    missing = [frame for frame in frames if not depth_file(place, frame).exists()]
    if missing:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, spawn, start_process) as pool:
            done = pool.map(partial(complete_depth, folder, camera_height, place), missing)
            for _ in track(done, "depth maps", total=len(missing)):
                pass
    return {frame: np.load(depth_file(place, frame)) for frame in frames}


def start_process() -> None:
    """Prepare a process of one thread: more of them only wait for each other."""
    end_with_parent()
    torch.set_num_threads(1)


def depth_file(place: Path, frame: int) -> Path:
    """Return where a frame's depth map is kept."""
    return place / f"{frame:04d}.npy"


def complete_depth(folder: Path, camera_height: float, place: Path, frame: int) -> None:
    """Complete one frame's depth and keep it, whole or not at all."""
    part = depth_file(place, frame).with_suffix(".part.npy")
    np.save(part, StereoDrive(folder, camera_height).depths(frame))
    part.replace(depth_file(place, frame))


def measure(
    drive: StereoDrive,
    depths: Mapping[int, np.ndarray],
    task: Task,
    frame: int,
    network: nn.Module | None,
    picture: Path,
) -> dict[str, dict[str, float | None]]:
    """Draw one view in each way and compare it with the truth."""
    truth = drive.image(task.camera, frame + task.ahead)[None]
    plain = drive.image(LEFT, frame)[None]
    drawn = {
        way: draw(drive, {row: maps[at] for row, maps in depths.items()}, task, frame, task.sources)
        for at, way in enumerate(WAYS)
    }
    best = {row: maps[WAYS.index(BOTH)] for row, maps in depths.items()}
    drawn |= {
        "one source": draw(drive, best, task, frame, task.sources[:1]),
        ALL_SOURCES: drawn.pop(BOTH),
    }
    if frame % 10 == 0:
        shown = [plain, truth, drawn[FLAT].image, drawn[MOTION].image]
        shown += [drawn[LIDAR].image, drawn[ALL_SOURCES].image]
        panels = [torch.cat(shown[at : at + 2], -1) for at in (0, 2, 4)]
        sheet = torch.cat(panels, -2)[0].permute(1, 2, 0).numpy()
        cv2.imwrite(str(picture), np.ascontiguousarray(sheet[..., ::-1]))
    figures = {
        way: compare(view.image, truth, network) | {"valid": share(view)}
        for way, view in drawn.items()
    }
    return {"no warp": compare(plain, truth, network)} | figures


def draw(
    drive: StereoDrive,
    depths: Mapping[int, np.ndarray],
    task: Task,
    frame: int,
    sources: Sequence[int],
) -> Reprojected:
    """Draw a view from some of the left camera's frames."""
    rows = [frame + source for source in sources]
    return reproject(
        torch.stack([drive.image(LEFT, row) for row in rows])[None],
        torch.from_numpy(np.stack([depths[row] for row in rows]))[None],
        torch.stack(
            [drive.target_from_source(task.camera, frame + task.ahead, row) for row in rows]
        )[None],
        drive.camera,
        is_sharp=True,
    )


def compare(image: Tensor, truth: Tensor, network: nn.Module | None) -> dict[str, float | None]:
    """Return PSNR in dB and LPIPS."""
    distance = None if network is None else lpips_distance(network, image, truth).item()
    return {"psnr": psnr(image, truth).item(), "lpips": distance}


def share(view: Reprojected) -> float:
    """Return which part of a view some source saw."""
    return view.valid.double().mean().item()


def mean(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Average figures that are there."""
    means: dict[str, float | None] = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        means[name] = round(sum(values) / len(values), 4) if values else None
    return means


def show(figures: dict[str, Any]) -> None:
    """Print a table."""
    table = Table("view", "from", "PSNR dB", "LPIPS", "seen", title="Real pixels")
    for name, all_sources in figures.items():
        for way in ("no warp", FLAT, MOTION, LIDAR, "one source", ALL_SOURCES):
            row = all_sources if way == ALL_SOURCES else all_sources[way]
            distance = "-" if row["lpips"] is None else f"{row['lpips']:.3f}"
            seen = f"{row['valid']:.3f}" if "valid" in row else ""
            table.add_row(name, way, f"{row['psnr']:.2f}", distance, seen)
    CONSOLE.print(table)

"""What recordings hold, in figures: how long, how fast, how curved, how many lane changes.

Curvature is counted only where the car moves, since a car that stands has none. It does not know
how any of it is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from drive_envs.path import SLIP_SPEED, path_from_segment
from drive_envs.plan import STEP
from drive_envs.scenes import stretches
from drive_envs.segment import Segment


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """One segment: rows in use; speed (N,) m/s, curvature (M,) 1/m where it moves; the path (N, 2)

    in metres from its start, which it leaves along x; and counts of rows.
    """

    name: str
    split: str
    num_rows: int
    num_valid: int
    num_with_depth: int
    left_changes: int
    right_changes: int
    speed: Float[np.ndarray, " rows"]
    curvature: Float[np.ndarray, " moving"]
    path: Float[np.ndarray, "rows 2"]


def statistics_of(segment: Segment) -> Statistics:
    """Read the figures of a segment off its paths."""
    speeds, curvatures, paths = [np.zeros(0)], [np.zeros(0)], [np.zeros((0, 2))]
    for rows in stretches(segment):
        path = path_from_segment(segment, rows)
        speed = path.speed.numpy()
        speeds.append(speed)
        curvatures.append(path.curvature.numpy()[speed > SLIP_SPEED])
        paths.append(_from_start(path.poses.numpy()))
    longest = max(paths, key=len)
    depths = zip(*segment.depths.values(), strict=True)
    return Statistics(
        name=segment.name,
        split=segment.split,
        num_rows=len(segment),
        num_valid=int(segment.valid.sum()),
        num_with_depth=sum(None not in row for row in depths),
        left_changes=int((segment.desire == 1).sum()),
        right_changes=int((segment.desire == 2).sum()),
        speed=np.concatenate(speeds),
        curvature=np.concatenate(curvatures),
        path=longest,
    )


def _from_start(poses: Float[np.ndarray, "rows 3"]) -> Float[np.ndarray, "rows 2"]:
    dx, dy = (poses[:, :2] - poses[0, :2]).T
    cos, sin = np.cos(poses[0, 2]), np.sin(poses[0, 2])
    return np.stack([cos * dx + sin * dy, cos * dy - sin * dx], axis=-1)


def summary(found: Sequence[Statistics]) -> dict[str, float | int | None]:
    """Return the figures of several segments together; None where nothing moves."""
    rows = sum(one.num_rows for one in found)
    speed = np.concatenate([one.speed for one in found])
    bend = np.abs(np.concatenate([one.curvature for one in found]))
    return {
        "segments": len(found),
        "frames": rows,
        "minutes": round(rows * STEP / 60, 2),
        "km": round(float(speed.sum()) * STEP / 1000, 3),
        "mean_speed": _round(speed.mean() if len(speed) else None),
        "max_speed": _round(speed.max() if len(speed) else None),
        "median_abs_curvature": _round(np.median(bend) if len(bend) else None, 5),
        "p95_abs_curvature": _round(np.quantile(bend, 0.95) if len(bend) else None, 5),
        "lane_changes": sum(one.left_changes + one.right_changes for one in found),
        "share_valid": round(sum(one.num_valid for one in found) / rows, 4),
        "share_with_depth": round(sum(one.num_with_depth for one in found) / rows, 4),
    }


def _round(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(float(value), digits)

"""What a driver's camera would have seen, from what another camera saw in the same place, or above.

A virtual camera looks along the car's axes, the recorded one does not quite: between the two lies
a homography, pixel = K R K'^-1 pixel'. If the driver's camera also sits `drop` metres lower, a
pixel of inverse depth w moves up in its column by

    v' = v - f drop w,    u' = u,    w' = w

which hides what is behind what is nearer, and needs depth. Both are done in one reading of the
recorded image. What the recorded camera did not see has no depth (NaN), and the colour of the
nearest pixel that it did see: depth is what tells the two apart.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from drive_envs.camera import Camera
from drive_envs.frames import SAME_SURFACE
from drive_envs.mounting import ego_from_camera
from drive_envs.recording import Mount, Optics

Map = Float[np.ndarray, "rows columns"]
Other = Float[np.ndarray, "_rows _columns"]  # of another size than a Map beside it
Seen = Bool[np.ndarray, "rows columns"]

MAX_TEAR = 0.3  # of the nearer inverse depth: a steeper step in a column is an edge, not a surface
SOFTEST = 1.5  # source pixels a target pixel may cover before the source is shrunk


@dataclass(frozen=True, kw_only=True)
class View:
    """A virtual camera at the place of the recorded one: `camera` has its height, and no pitch."""

    camera: Camera
    optics: Optics
    mount: Mount

    @property
    def recorded_from_camera(self) -> Float[np.ndarray, "3 3"]:
        """The rotation from the virtual camera's frame into the recorded one's."""
        level = self.camera.ego_from_camera[:3, :3].numpy()
        return ego_from_camera(self.mount)[:3, :3].T @ level

    def pixels(self, v: Map | None = None) -> tuple[Map, Map, Seen]:
        """Return where its pixels lie in the recorded image: u, v and whether that saw them.

        `v` (H, W) are rows to look up in place of its own.
        """
        columns = np.arange(self.camera.width) + 0.5
        rows = np.repeat((np.arange(self.camera.height) + 0.5)[:, None], self.camera.width, 1)
        ray = np.stack(
            [
                np.broadcast_to((columns - self.camera.center_u) / self.camera.focal, rows.shape),
                ((rows if v is None else v) - self.camera.center_v) / self.camera.focal,
                np.ones_like(rows),
            ],
            axis=-1,
        )
        x, y, z = np.moveaxis(ray @ self.recorded_from_camera.T, -1, 0)
        z = np.where(z > 1e-3, z, np.nan)
        optics = self.optics
        at_u = optics.focal_u * x / z + optics.center_u
        at_v = optics.focal_v * y / z + optics.center_v
        seen = (at_u >= 0) & (at_u <= optics.width) & (at_v >= 0) & (at_v <= optics.height)
        return at_u, at_v, seen

    def image(
        self, recorded: UInt8[np.ndarray, "height width 3"], v: Map | None = None
    ) -> UInt8[np.ndarray, "rows columns 3"]:
        """Read the recorded image; beyond its border, the border."""
        at_u, at_v, _ = self.pixels(v)
        covers = max(self.optics.focal_u, self.optics.focal_v) / self.camera.focal
        shrink = max(1, int(covers / SOFTEST + 0.5))
        if shrink > 1:
            size = (self.optics.width // shrink, self.optics.height // shrink)
            cut = recorded[: size[1] * shrink, : size[0] * shrink]
            recorded = cv2.resize(np.ascontiguousarray(cut), size, interpolation=cv2.INTER_AREA)
        far = 4.0 * max(recorded.shape)
        return cv2.remap(
            recorded,
            np.clip(np.nan_to_num(at_u / shrink - 0.5, nan=far), -far, far).astype(np.float32),
            np.clip(np.nan_to_num(at_v / shrink - 0.5, nan=far), -far, far).astype(np.float32),
            interpolation=cv2.INTER_LINEAR if covers >= 1 else cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def nearest(self, recorded: Float[np.ndarray, "height width"]) -> Map:
        """Read a map as large as the recorded image at the nearest pixels; NaN out of its view."""
        u, v, seen = self.pixels()
        column = np.clip(np.nan_to_num(u).astype(int), 0, self.optics.width - 1)
        row = np.clip(np.nan_to_num(v).astype(int), 0, self.optics.height - 1)
        return np.where(seen, recorded[row, column], np.nan)

    @property
    def depth_ratio(self) -> Map:
        """Planar depth in the recorded camera over planar depth in this one, of every pixel."""
        v, u = np.mgrid[: self.camera.height, : self.camera.width] + 0.5
        x = (u - self.camera.center_u) / self.camera.focal
        y = (v - self.camera.center_v) / self.camera.focal
        return np.stack([x, y, np.ones_like(x)], axis=-1) @ self.recorded_from_camera[2]

    def dense_depth(self, recorded: Float[np.ndarray, "height width"]) -> Map:
        """Read a recorded depth map (planar m); NaN where it has none."""
        return self.nearest(recorded) / self.depth_ratio

    def sparse_depth(self, recorded: Float[np.ndarray, "height width"]) -> Map:
        """Project the known pixels of a recorded depth map: the nearest surface in each pixel.

        Averaged is inverse depth, as in `frames.shrink_depth`.
        """
        row, column = np.nonzero(np.isfinite(recorded))
        z = recorded[row, column]
        points = np.stack(
            [
                (column + 0.5 - self.optics.center_u) / self.optics.focal_u * z,
                (row + 0.5 - self.optics.center_v) / self.optics.focal_v * z,
                z,
            ],
            axis=-1,
        )
        x, y, z = (points @ self.recorded_from_camera).T
        ahead = z > 0.5
        x, y, z = x[ahead], y[ahead], z[ahead]
        u = np.floor(self.camera.focal * x / z + self.camera.center_u).astype(int)
        v = np.floor(self.camera.focal * y / z + self.camera.center_v).astype(int)
        inside = (u >= 0) & (u < self.camera.width) & (v >= 0) & (v < self.camera.height)
        place, w = (v[inside], u[inside]), 1 / z[inside]
        nearest, total, count = np.zeros((3, self.camera.height, self.camera.width))
        np.maximum.at(nearest, place, w)
        same = w >= SAME_SURFACE * nearest[place]
        place = (place[0][same], place[1][same])
        np.add.at(total, place, w[same])
        np.add.at(count, place, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return count / total


def ground_depth(camera: Camera, far: float = np.inf) -> Map:
    """Return the planar depth of the road, z = 0 of the car; sky (inf) above and beyond `far`."""
    assert camera.pitch == 0
    down = (np.arange(camera.height) + 0.5 - camera.center_v) / camera.focal
    with np.errstate(divide="ignore"):
        depth = np.where(down > 0, camera.mount_height / down, np.inf)
    depth[depth > far] = np.inf
    return np.repeat(depth[:, None], camera.width, axis=1)


def lowered(depth: Map, camera: Camera, target: Camera) -> tuple[Other, Other]:
    """See a depth map of `camera` from `target`, the same but for its height and its rows.

    Returns the depth (H', W), NaN where nothing was seen, and the rows v (H', W) of `camera` that
    its pixels show.
    """
    assert (target.width, target.focal, target.center_u) == (
        camera.width,
        camera.focal,
        camera.center_u,
    )
    drop = camera.mount_height - target.mount_height
    inverse = 1 / depth  # sky 0, unknown NaN
    rows = np.repeat((np.arange(camera.height) + 0.5)[:, None], camera.width, axis=1)
    moved = rows - camera.focal * drop * np.nan_to_num(inverse)
    moved += target.center_v - camera.center_v
    best = np.full((target.height, target.width), -1.0)
    shown = np.full_like(best, np.nan)
    for above in range(camera.height - 1):
        _paint(best, shown, inverse[above : above + 2], moved[above : above + 2], above + 0.5)
    with np.errstate(divide="ignore"):
        result = np.where(best >= 0, 1 / np.maximum(best, 0), np.nan)
    own = np.repeat((np.arange(target.height) + 0.5)[:, None], target.width, axis=1)
    own += camera.center_v - target.center_v
    return result, own + _nearest_in_column(shown - own)


def _nearest_in_column(values: Map) -> Map:
    """Give every NaN the nearest value of its column, or 0 where there is none."""
    row = np.arange(len(values))[:, None]
    known = np.isfinite(values)
    above = np.maximum.accumulate(np.where(known, row, -len(values)), axis=0)
    below = np.minimum.accumulate(np.where(known, row, 2 * len(values))[::-1], axis=0)[::-1]
    nearest = np.where(row - above <= below - row, above, below).clip(0, len(values) - 1)
    return np.nan_to_num(np.take_along_axis(values, nearest, axis=0))


def _paint(best: Map, shown: Map, w: Other, at: Other, row: float) -> None:
    """Draw the surface between two rows of every column into the target, the nearest in front."""
    step, nearer = w[1] - w[0], np.maximum(w[0], w[1])
    joined = np.isfinite(step) & (np.abs(step) <= np.maximum(MAX_TEAR * nearer, 1e-3))
    length = at[1] - at[0]
    joined &= length > 1e-6
    first = np.ceil(np.where(joined, at[0], 0) - 0.5).astype(int)
    for further in range(int(np.ceil(np.max(length, initial=0, where=joined))) + 1):
        target = first + further
        share = (target + 0.5 - at[0]) / np.where(joined, length, 1)
        drawn = joined & (share >= 0) & (share <= 1) & (target >= 0) & (target < len(best))
        column = np.flatnonzero(drawn)
        value = w[0, column] + share[column] * step[column]
        in_front = value > best[target[column], column]
        column, value = column[in_front], value[in_front]
        best[target[column], column] = value
        shown[target[column], column] = row + share[column]


def taller(camera: Camera, mount_height: float) -> Camera:
    """Return a camera at another height with rows enough to show what the given one sees below."""
    drop = max(0.0, mount_height - camera.mount_height)
    lowest = (camera.height - camera.center_v) / camera.focal
    # The ground that it sees lowest, seen from higher up; things above the ground lie within.
    extra = int(np.ceil(camera.focal * lowest * drop / camera.mount_height))
    return replace(camera, height=camera.height + extra, mount_height=mount_height)

"""The recorded world seen from elsewhere: warp frames with depth to a camera pose near theirs.

With w = 1 / depth, the source pixel p = (u, v, 1) lies in the target at (Hartley and Zisserman,
section 9.5)

    q = K R K^-1 p + w K t,    p' = q / q_2,    w' = w / q_2,

so the sky (w = 0) only rotates, and on a plane w = a . p is linear in p. Each source goes through

1. splat: every pixel leaves its w' in the target cell it falls into, and the nearest wins. Colour
   is never splatted: w' is a first guess of the target's depth, no more;
2. fill: cracks and holes of that guess take the value of their neighbours, then of coarser cells;
3. refine: the ray of each target pixel meets the plane of the source pixel that the guess leads
   to, at x = a . r / (1 - a . b) with r = K R^T K^-1 p' and b = -K R^T t; then once more. On a
   plane, such as the road, this is exact whatever the guess, so lane lines have no cracks;
4. check: both meetings lie within a pixel of each other in the source, inside its image, on a
   known depth. A pixel that fails was hidden or out of view, and is left to the next source;
5. read the source's colour there (`resampling`).

A source's camera may differ from the target's: finer, so that it stays sharp when it is moved, and
wider, so that a view from beside has no margin. Its depth may be coarser than its colour by a whole
factor; the steps above are then in depth pixels.

Pixels that no source saw are invented: out of view, the border is drawn out along the rays through
the first source's principal point, which on the ground is the direction of travel, so that lane
lines go on; behind an obstacle, the farther neighbour in the row (or the column) is drawn out.

The steps are here as tensor operations, for GPUs, and again in `reprojection_loops`, for CPUs, on
which tensors take three times as long.

The world is taken as static: a frame from another time shows moving cars where they were. Lens
distortion and changes of light are unknown here.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from drive_envs import reprojection_loops
from drive_envs.camera import Camera, pixel_centers
from drive_envs.inpainting import draw_out_background, is_any
from drive_envs.inverse_depth import (
    HOLE,
    Surface,
    close,
    fill,
    inverse_depth,
    nearest_around,
    surface_from_inverse_depth,
)
from drive_envs.resampling import read_rounded, window

Images = UInt8[Tensor, "batch source 3 height width"]
Depths = Float[Tensor, "batch source rows columns"]
Transforms = Float[Tensor, "batch source 4 4"]
Map = Float[Tensor, "batch height width"]
SourceMap = Float[Tensor, "batch rows columns"]
Mask = Bool[Tensor, "batch height width"]
Flat = Float[Tensor, "batch pixel"]
Rays = Float[Tensor, "batch 3 pixel"]

NEAR = float(reprojection_loops.NEAR)
MIN_SCALE = float(reprojection_loops.MIN_SCALE)
EDGE = float(reprojection_loops.EDGE)
MAX_DISAGREEMENT = float(reprojection_loops.MAX_DISAGREEMENT)
ROUNDING = float(reprojection_loops.ROUNDING)
PASS_PIXELS = 1 << 18  # a pass: of more, maps leave the cache; of less, each operation is too short


class Reprojected(NamedTuple):
    """What the target camera sees; `valid` where some source really saw it."""

    image: UInt8[Tensor, "batch 3 height width"]
    valid: Bool[Tensor, "batch height width"]


class Motion(NamedTuple):
    """How pixels move between two cameras: q = `ray` p + w `shift`."""

    ray: Float[Tensor, "batch 3 3"]
    shift: Float[Tensor, "batch 3"]


class Landing(NamedTuple):
    """Where target pixels lie in a source: pixels (u, v), and q_2, positive in front of it."""

    u: Flat
    v: Flat
    scale: Flat


class Found(NamedTuple):
    """Where pixels of the target lie in a source; `hidden` where it sees something nearer.

    Of all pixels, row by row, or of those alone that were asked for. w is their inverse depth in
    1/m there; u and v are in depth pixels, out of view drawn in to the border.
    """

    w: Flat
    u: Flat
    v: Flat
    seen: Bool[Tensor, "batch pixel"]
    hidden: Bool[Tensor, "batch pixel"]


@torch.no_grad()
def reproject(
    images: Images,
    depths: Depths,
    target_from_source: Transforms,
    camera: Camera,
    source_camera: Camera | None = None,
    *,
    is_sharp: bool = False,
) -> Reprojected:
    """Draw what `camera` sees at the target poses from source frames.

    `images` (B, S, 3, H, W) uint8 and `depths` (B, S, H / n, W / n) planar metres (sky inf, unknown
    NaN) are S sources in order of preference: a later one only fills what the earlier did not see.
    `source_camera` is that of the images, None for the target's. `target_from_source` (B, S, 4, 4)
    takes camera-frame points of a source to the target's. `is_sharp` reads sources bicubically that
    are no finer than the target. Works on the device of its arguments.
    Raises ValueError where shapes and cameras disagree.
    """
    source_camera = source_camera or camera
    check_shapes(images, depths, target_from_source, source_camera)
    pixels = max(camera.width * camera.height, depths.shape[2] * depths.shape[3])
    size = max(1, PASS_PIXELS // pixels)
    sources = (
        images.split(size),
        depths.float().split(size),
        target_from_source.float().split(size),
    )
    parts = [
        reproject_pass(image, depth, moved, camera, source_camera, is_sharp)
        for image, depth, moved in zip(*sources, strict=True)
    ]
    return Reprojected(*(torch.cat(part) for part in zip(*parts, strict=True)))


def check_shapes(
    images: Tensor, depths: Tensor, target_from_source: Tensor, camera: Camera
) -> None:
    """Raise ValueError, with the sizes, unless the arguments of `reproject` fit each other."""
    batch, num_sources = images.shape[:2]
    if images.shape[2:] != (3, camera.height, camera.width):
        raise ValueError(
            f"source images {tuple(images.shape[2:])} do not fit a camera of "
            f"{(3, camera.height, camera.width)}: scale the camera first (Camera.scaled)"
        )
    factor = camera.width // depths.shape[-1]
    of_depth = tuple(factor * length for length in depths.shape[2:])
    if depths.shape[:2] != images.shape[:2] or of_depth != (camera.height, camera.width):
        raise ValueError(
            f"depths {tuple(depths.shape)} do not match the images {tuple(images.shape)}: "
            "every source needs a depth map of its own size, or smaller by a whole factor"
        )
    if target_from_source.shape != (batch, num_sources, 4, 4):
        raise ValueError(
            f"target_from_source {tuple(target_from_source.shape)} must be one 4 x 4 matrix a "
            f"source, {(batch, num_sources, 4, 4)}"
        )
    if batch == 0 or num_sources == 0:
        raise ValueError(f"nothing to reproject: {batch} images from {num_sources} sources each")
    if not target_from_source.isfinite().all():
        raise ValueError("target_from_source has entries that are not finite: check the poses")


def reproject_pass(
    images: Images,
    depths: Depths,
    target_from_source: Transforms,
    camera: Camera,
    source_camera: Camera,
    is_sharp: bool,
) -> Reprojected:
    """Reproject as many images as fit the cache."""
    images, depths = images.contiguous(), depths.contiguous()
    factor = source_camera.width / depths.shape[3]
    size = window(source_camera, camera)

    def look(source: int, place: Int64[Tensor, "batch some"] | None = None) -> tuple[Found, Tensor]:
        found = find(depths, source, target_from_source, camera, source_camera, place)
        at = found.u, found.v
        return found, read_rounded(images, source, *at, factor, size, is_sharp=is_sharp)

    (w, _, _, seen, hidden), color = look(0)
    shape = len(images), camera.height, camera.width
    for source in range(1, images.shape[1]):
        if not is_any(~seen):
            break
        # With their neighbours, whose being hidden tells where an outline runs.
        place = places(grow(~seen.view(shape)))
        found, of_source = look(source, place)
        new = found.seen & ~seen.gather(1, place)
        image, which = new.nonzero(as_tuple=True)
        pixel = place[image, which]
        color[image, :, pixel] = of_source[image, :, which]
        w[image, pixel] = found.w[image, which]
        seen[image, pixel], hidden[image, pixel] = True, False
    color, seen, hidden = color.unflatten(2, shape[1:]), seen.view(shape), hidden.view(shape)
    if is_any(hidden):
        draw_out_background(color, w.view(shape), hidden)
    return Reprojected(color, seen)


def places(mask: Mask) -> Int64[Tensor, "batch some"]:
    """Index the pixels set, row by row, as many for each image: where it has fewer, pixel 0."""
    flat = mask.flatten(1)
    counts = flat.sum(1)
    image, pixel = flat.nonzero(as_tuple=True)
    first = (counts.cumsum(0) - counts)[image]
    result = pixel.new_zeros(len(flat), int(counts.amax()))
    result[image, torch.arange(len(image), device=image.device) - first] = pixel
    return result


def find(
    depths: Depths,
    source: int,
    target_from_source: Transforms,
    camera: Camera,
    source_camera: Camera,
    place: Int64[Tensor, "batch some"] | None = None,
) -> Found:
    """Take one source through the first four steps of the module's page.

    place: the target's pixels that are asked for, row by row; None for all. Whether one is an
    outline is told by its neighbours: it is right for pixels whose neighbours are asked for, too.
    """
    of_depth = source_camera.scaled(depths.shape[3], depths.shape[2])
    moved = motions(target_from_source[:, source], camera, of_depth)
    how = find_in_loops if depths.device.type == "cpu" else find_with_tensors
    return how(depths, source, *moved, camera, of_depth, place)


def find_in_loops(
    depths: Depths,
    source: int,
    there: Motion,
    back: Motion,
    camera: Camera,
    source_camera: Camera,
    place: Int64[Tensor, "batch some"] | None,
) -> Found:
    """Do so on a CPU. depths: contiguous."""
    pixels = all_pixels(camera) if place is None else place.numpy().astype(np.int32)
    shape = len(depths), pixels.shape[1]
    found = Found(
        *(torch.empty(shape) for _ in range(3)),
        *(torch.empty(shape, dtype=torch.bool) for _ in range(2)),
    )
    reprojection_loops.find(
        depths.numpy(),
        source,
        *(part.numpy() for motion in (there, back) for part in motion),
        (np.float32(source_camera.center_u), np.float32(source_camera.center_v)),
        (camera.height, camera.width),
        pixels,
        *(part.numpy() for part in found),
    )
    return found


@lru_cache(maxsize=8)
def all_pixels(camera: Camera) -> np.ndarray:
    """Return the numbers of all pixels, (1, H W) int32."""
    return np.arange(camera.width * camera.height, dtype=np.int32)[None]


def find_with_tensors(
    depths: Depths,
    source: int,
    there: Motion,
    back: Motion,
    camera: Camera,
    source_camera: Camera,
    place: Int64[Tensor, "batch some"] | None,
) -> Found:
    """Do so on any device."""
    w_source = inverse_depth(depths[:, source])
    has_unknown = bool(w_source.amin() < 0)

    guess = fill(close(splat(w_source, there, source_camera, camera)))
    surface = surface_from_inverse_depth(fill(w_source) if has_unknown else w_source, source_camera)
    shape, guess, rays = guess.shape, guess.flatten(1), rotate(back, camera)
    if place is not None:
        guess = guess.gather(1, place)
        rays = rays.gather(2, place[:, None].expand(-1, 3, -1))
    w, _ = refine(land(guess.clamp_(min=0), rays, back), surface, rays, back, source_camera)
    first = land(w, rays, back)
    w, held = refine(first, surface, rays, back, source_camera)
    second = land(w, rays, back)

    moved = torch.maximum((second.u - first.u).abs_(), (second.v - first.v).abs_())
    moved = torch.maximum(moved.mul_(1 / MAX_DISAGREEMENT), held.mul_(1 / ROUNDING))
    agree, judged = moved <= 1, is_in_view(second, source_camera)
    if has_unknown:
        judged &= w_source.flatten(1).gather(1, pixel_of(second, source_camera)) >= 0
    seen, hidden = judged & agree, judged & ~agree
    if is_any(hidden):
        suspects = seen & near(hidden, shape, place)
        outline = outlines(suspects, second, w_source, surface, source_camera)
        seen, hidden = seen & ~outline, hidden | outline
    return Found(w, *draw_in(second, source_camera), seen, hidden)


def motions(
    target_from_source: Float[Tensor, "batch 4 4"], target: Camera, source: Camera
) -> tuple[Motion, Motion]:
    """Return how pixels move from the source to the target, and back."""
    device = target_from_source.device
    of_target, target_inverse = intrinsics_and_inverse(target, device)
    of_source, source_inverse = intrinsics_and_inverse(source, device)
    rotation, translation = target_from_source[:, :3, :3], target_from_source[:, :3, 3:]
    there = Motion(of_target @ rotation @ source_inverse, (of_target @ translation)[..., 0])
    # Not the transpose: in a stretched world, in which pixels are square, it is no rotation.
    rotation = torch.linalg.inv(rotation)
    translation = -rotation @ translation
    back = Motion(of_source @ rotation @ target_inverse, (of_source @ translation)[..., 0])
    return there, back


@lru_cache(maxsize=8)
def intrinsics_and_inverse(camera: Camera, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return K and K^-1 (3, 3) in float32."""
    intrinsics = camera.intrinsics
    return intrinsics.to(device, torch.float32), intrinsics.inverse().to(device, torch.float32)


def rotate(motion: Motion, camera: Camera) -> Rays:
    """Turn every pixel's ray into the other camera: `motion.ray` p."""
    u, v = pixel_centers(camera, motion.ray.device)
    by_u, by_v, constant = motion.ray[..., None, None].unbind(2)
    return torch.add(by_u * u + constant, by_v * v).flatten(2)


def splat(w: SourceMap, there: Motion, source: Camera, target: Camera) -> Map:
    """Drop every source pixel into its target cell: the largest w' of each cell, else HOLE.

    Points behind the near plane, out of the image or of unknown depth fall into a margin of one
    cell around the image, which is cut off.
    """
    height, width = target.height, target.width
    w = w.flatten(1)
    q = rotate(there, source).addcmul_(w[:, None], there.shift[..., None])
    inverse = q[:, 2].clamp(min=MIN_SCALE).reciprocal_()
    w_there = w * inverse
    slack = torch.minimum(torch.minimum(w_there, 1 / NEAR - w_there), q[:, 2] - MIN_SCALE)
    is_in_front = slack.sign_().add_(1).clamp_(max=1)
    column = (q[:, 0] * inverse).floor_().clamp_(-1, width)
    row = (q[:, 1] * inverse).floor_().clamp_(-1, height)
    cell = row.add_(1).mul_(width + 2).add_(column.add_(1)).mul_(is_in_front).long()
    margined = w.new_full((len(w), (height + 2) * (width + 2)), HOLE)
    margined.scatter_reduce_(1, cell, w_there, "amax")
    return margined.view(len(w), height + 2, width + 2)[:, 1:-1, 1:-1].contiguous()


def land(w: Flat, rays: Rays, back: Motion) -> Landing:
    """Find the source pixels of target pixels of inverse depth `w`."""
    u = torch.addcmul(rays[:, 0], w, back.shift[:, :1])
    v = torch.addcmul(rays[:, 1], w, back.shift[:, 1:2])
    scale = torch.addcmul(rays[:, 2], w, back.shift[:, 2:])
    inverse = scale.clamp(min=MIN_SCALE).reciprocal_()
    return Landing(u.mul_(inverse), v.mul_(inverse), scale)


def refine(
    landing: Landing, surface: Surface, rays: Rays, back: Motion, source: Camera
) -> tuple[Flat, Flat]:
    """Meet the planes of the source pixels landed in, at x = a . r / (1 - a . b).

    Returns x, held between 0 and 1 / NEAR, and by how much: not at all if the plane is in front.
    """
    pixel = pixel_of(landing, source)
    a_u, a_v, a_1 = (values.flatten(1).gather(1, pixel) for values in surface)
    b_u, b_v, b_1 = back.shift.split(1, dim=1)
    above = (a_1 * rays[:, 2]).addcmul_(a_u, rays[:, 0]).addcmul_(a_v, rays[:, 1])
    below = (1 - a_1 * b_1).addcmul_(a_u, b_u, value=-1).addcmul_(a_v, b_v, value=-1)
    x = above.div_(below).nan_to_num_(nan=HOLE)
    held = x.clamp(0, 1 / NEAR)
    return held, x.sub_(held).abs_()


def pixel_of(landing: Landing, camera: Camera) -> Int64[Tensor, "*pixel"]:
    """Index the pixels landed in, row by row; out of view the nearest on the border."""
    column = landing.u.floor().clamp_(0, camera.width - 1)
    row = landing.v.floor().clamp_(0, camera.height - 1)
    return torch.add(column, row, alpha=camera.width).long()


def is_in_view(landing: Landing, camera: Camera) -> Bool[Tensor, "batch pixel"]:
    """Tell which landings are in front of the source camera and inside its image."""
    margin_u = torch.minimum(landing.u, camera.width - landing.u)
    margin_v = torch.minimum(landing.v, camera.height - landing.v)
    margin = torch.minimum(torch.minimum(margin_u, margin_v), landing.scale - MIN_SCALE)
    return margin >= 0


def grow(mask: Mask) -> Mask:
    """Add the eight neighbours of every pixel set."""
    wide = mask.clone()
    wide[..., 1:] |= mask[..., :-1]
    wide[..., :-1] |= mask[..., 1:]
    high = wide.clone()
    high[:, 1:] |= wide[:, :-1]
    high[:, :-1] |= wide[:, 1:]
    return high


def near(
    mask: Bool[Tensor, "batch pixel"], shape: torch.Size, place: Int64[Tensor, "batch pixel"] | None
) -> Bool[Tensor, "batch pixel"]:
    """Add the neighbours of every pixel set, in images of `shape` of which `place` is known."""
    if place is None:
        return grow(mask.view(shape)).flatten(1)
    whole = mask.new_zeros(shape[0], shape[1] * shape[2]).scatter_(1, place, mask)
    return grow(whole.view(shape)).flatten(1).gather(1, place)


def outlines(
    suspects: Bool[Tensor, "batch pixel"],
    landing: Landing,
    w: SourceMap,
    surface: Surface,
    camera: Camera,
) -> Bool[Tensor, "batch pixel"]:
    """Tell which suspects land beside something nearer, whose colour has bled into the source.

    Left in place, they would draw the outline of an obstacle where it no longer is.
    """
    image, target = suspects.nonzero(as_tuple=True)
    landed = Landing(*(values[image, target] for values in landing))
    pixel = pixel_of(landed, camera) + image * (camera.width * camera.height)
    slope_u, slope_v, _ = (values.flatten()[pixel] for values in surface)
    limit = w.flatten()[pixel] + EDGE + 2 * (slope_u.abs() + slope_v.abs())
    result = torch.zeros_like(suspects)
    result[image, target] = nearest_around(w, pixel) > limit
    return result


def draw_in(landing: Landing, camera: Camera) -> tuple[Flat, Flat]:
    """Pull landings out of view straight to the principal point, until they are on the border."""
    from_u, from_v = landing.u - camera.center_u, landing.v - camera.center_v
    excess = torch.maximum(
        overshoot(from_u, camera.center_u, camera.width),
        overshoot(from_v, camera.center_v, camera.height),
    )
    shrink = excess.clamp_(min=1).reciprocal_()
    return from_u.mul_(shrink).add_(camera.center_u), from_v.mul_(shrink).add_(camera.center_v)


def overshoot(offset: Flat, center: float, length: int) -> Flat:
    """Divide an offset from the principal point by that of the border on its side."""
    below, above = max(center, 0.5), max(length - center, 0.5)
    return torch.maximum(offset / above, offset / -below)

"""Warps of a small analytic world: a textured road, the sky, and a board standing on the road."""

import numpy as np
import pytest
import torch

from drive_envs.camera import Camera, wide
from drive_envs.geometry import matrix_from_planar
from drive_envs.inverse_depth import HOLE, MAX_SLOPE
from drive_envs.reprojection import (
    EDGE,
    MAX_DISAGREEMENT,
    MIN_SCALE,
    NEAR,
    check_shapes,
    find,
    find_with_tensors,
    grow,
    motions,
    places,
    reproject,
)

CAMERA = wide(128, 64)


def world_from_camera(pose, camera=CAMERA):
    return matrix_from_planar(torch.tensor(pose, dtype=torch.float64)) @ camera.ego_from_camera


def target_from_source(target, source=(0.0, 0.0, 0.0), camera=CAMERA):
    to_target = torch.linalg.inv(world_from_camera(target, camera))
    return (to_target @ world_from_camera(source, camera)).float()


def render(pose, paint, *, board_at=None, camera=CAMERA):
    """Look at a road painted by `paint(x, y) -> [0, 255]`, with a dark board (2 m square) on it."""
    matrix = world_from_camera(pose, camera).numpy()
    v, u = np.meshgrid(np.arange(camera.height) + 0.5, np.arange(camera.width) + 0.5, indexing="ij")
    rays = np.stack([u - camera.center_u, v - camera.center_v, np.full_like(u, camera.focal)], -1)
    rays = rays / camera.focal @ matrix[:3, :3].T
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 2] < 0, -matrix[2, 3] / rays[..., 2], np.inf)
    ground = matrix[:3, 3] + np.where(np.isinf(depth), 0, depth)[..., None] * rays
    image = np.where(np.isinf(depth), 200.0, paint(ground[..., 0], ground[..., 1]))
    if board_at is not None:
        to_board = (board_at[0] - matrix[0, 3]) / rays[..., 0]
        hit = matrix[:3, 3] + to_board[..., None] * rays
        on = (np.abs(hit[..., 1] - board_at[1]) < 1) & (hit[..., 2] > 0) & (hit[..., 2] < 2)
        image, depth = np.where(on, 20.0, image), np.where(on, to_board, depth)
    image = torch.from_numpy(image.round()).to(torch.uint8).expand(3, -1, -1)
    return image, torch.from_numpy(depth).float()


def warp(target, paint, *, sources=((0.0, 0.0, 0.0),), board_at=None):
    frames = [render(source, paint, board_at=board_at) for source in sources]
    image, valid = reproject(
        torch.stack([image for image, _ in frames])[None],
        torch.stack([depth for _, depth in frames])[None],
        torch.stack([target_from_source(target, source) for source in sources])[None],
        CAMERA,
    )
    return image[0], valid[0]


def stripes(x, y):
    """Paint soft lane lines 3.5 m apart along x."""
    return 80 + 120 * np.exp(-(((y + 1.75) % 3.5 - 1.75) ** 2) / 0.08)


def waves(x, y):
    return 128 + 50 * np.sin(x / 4) + 50 * np.sin(y / 2)


def random_frame(seed=0, height=8, width=16, unknown=0.0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    depth = 2 + 20 * torch.rand(height, width, generator=generator)
    depth[: height // 3] = torch.inf
    depth[torch.rand(height, width, generator=generator) < unknown] = torch.nan
    return image, depth


def small_camera(height=8, width=16):
    return Camera(width=width, height=height, focal=10.0, center_u=8.3, center_v=3.6)


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_identity_returns_the_frame(unknown):
    image, depth = random_frame(height=64, width=128, unknown=unknown)
    warped, valid = reproject(
        image[None, None], depth[None, None], torch.eye(4)[None, None], CAMERA
    )
    assert warped.equal(image[None])
    assert valid.equal(~depth.isnan()[None])


@pytest.mark.parametrize("yaw", [-0.1, 0.05])
def test_rotation_is_a_homography(yaw):
    image, depth = render((0.0, 0.0, 0.0), waves)
    moved = target_from_source((0.0, 0.0, yaw))
    warped, valid = reproject(image[None, None], depth[None, None], moved[None, None], CAMERA)
    back = CAMERA.intrinsics @ moved[:3, :3].double().T @ CAMERA.intrinsics.inverse()
    for row in range(0, 64, 5):
        for column in range(0, 128, 5):
            u, v, scale = back @ torch.tensor([column + 0.5, row + 0.5, 1.0], dtype=torch.float64)
            u, v = float(u / scale), float(v / scale)
            assert valid[0, row, column] == (0 <= u <= 128 and 0 <= v <= 64)
            if 0.5 < u < 127.5 and 0.5 < v < 63.5:
                expected = bilinear(image.double().numpy(), u, v)
                assert np.abs(warped[0, :, row, column].numpy() - expected).max() <= 0.51


@pytest.mark.parametrize("lateral", [0.5, -1.0, 4.0])
@pytest.mark.parametrize("yaw_deg", [0.0, 5.0])
def test_lane_lines_land_where_they_are(lateral, yaw_deg):
    target = (0.0, lateral, np.radians(yaw_deg))
    warped, valid = warp(target, stripes)
    truth, _ = render(target, stripes)
    column, num_lines = torch.arange(128), 0
    for row in range(44, 64, 3):
        across = (column + 0.5 - CAMERA.center_u) / CAMERA.focal
        ahead = 1.22 * CAMERA.focal / (row + 0.5 - CAMERA.center_v)
        y = lateral + ahead * (np.sin(target[2]) - across * np.cos(target[2]))
        for line in (-3.5, 0.0, 3.5):
            near = (y - line).abs() < 1
            if near.sum() > 3 and not near[[0, -1]].any() and valid[row][near].all():
                paint, got = (image[0, row].double().sub(80) * near for image in (truth, warped))
                centre = (paint * column).sum() / paint.sum()
                assert abs((got * column).sum() / got.sum() - centre) < 0.4
                num_lines += 1
    assert num_lines > 5


def test_the_road_has_no_cracks_even_from_far_behind():
    source = (-8.0, 0.0, 0.0)
    warped, valid = warp((0.0, 0.0, 0.0), waves, sources=(source,))
    truth, depth = render((0.0, 0.0, 0.0), waves)
    road = depth < 30
    assert valid[road].all()
    error = (warped.double() - truth.double()).abs()[:, road]
    assert error.mean() < 2
    assert error.max() < 20


def test_near_hides_far():
    board_at = (8.0, 1.0)
    target = (0.0, -1.0, 0.0)
    warped, valid = warp(target, waves, board_at=board_at)
    truth, depth = render(target, waves, board_at=board_at)
    on_board = (truth[0] == 20) & (depth < 8.1)
    assert (warped[0][on_board] == 20).float().mean() > 0.9
    was_hidden = ~valid & (truth[0] != 20)
    assert was_hidden[30:40].sum() > 10
    assert (warped[0][was_hidden] > 40).float().mean() > 0.95, "holes look like the background"


def test_what_lies_behind_the_target_is_not_drawn():
    source = (-10.0, 0.0, 0.0)
    warped, valid = warp((0.0, 0.0, 0.0), waves, sources=(source,), board_at=(-7.0, 0.0))
    bare, _ = warp((0.0, 0.0, 0.0), waves, sources=(source,))
    assert (warped[0] == 20).sum() == 0
    assert warped[:, valid].equal(bare[:, valid])
    assert valid.sum() > 2000


def test_validity_is_what_the_source_had_in_view():
    _, valid = warp((0.0, 0.0, 0.1), waves)
    assert valid.float().mean() < 0.95
    column = torch.arange(128) + 0.5 - CAMERA.center_u
    angle = torch.atan(column / CAMERA.focal) - 0.1
    in_view = (torch.tan(angle) * CAMERA.focal + CAMERA.center_u >= 0).expand(64, -1)
    assert (valid == in_view)[10:54].float().mean() > 0.99


def test_lines_go_on_beyond_the_view():
    target = (0.0, 1.5, 0.0)
    warped, valid = warp(target, stripes)
    truth, _ = render(target, stripes)
    unseen = ~valid
    unseen[:40] = False
    assert unseen.sum() > 100
    assert (warped.double() - truth.double()).abs()[:, unseen].mean() < 15


def test_later_sources_fill_only_what_earlier_did_not_see():
    target, behind = (0.0, 3.0, 0.0), (-6.0, 0.0, 0.0)
    alone, seen = warp(target, waves)
    both, valid = warp(target, waves, sources=((0.0, 0.0, 0.0), behind))
    assert both[:, seen].equal(alone[:, seen])
    assert valid[seen].all()
    assert (valid & ~seen).sum() > 50
    truth, _ = render(target, waves)
    new = valid & ~seen
    assert (both.double() - truth.double()).abs()[:, new].mean() < 4


@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_asked_for_some_pixels_a_source_says_of_them_what_it_says_of_all(unknown):
    frames = [random_frame(seed, 64, 128, unknown=unknown) for seed in range(2)]
    depth = torch.stack([depth for _, depth in frames])
    depth[:, 20:50, 30:60] = 3.0  # an obstacle, so that some pixels are hidden and some an outline
    moved = torch.stack([target_from_source(p) for p in ((0.1, 1.0, 0.02), (0.0, -0.7, 0.0))])
    source = depth[:, None], 0, moved[:, None], CAMERA, CAMERA
    whole = find(*source)
    assert whole.hidden.any()
    wanted = torch.zeros(2, 64, 128, dtype=torch.bool)
    wanted[0, 10:40, 20:70] = wanted[1, 5:8] = True
    place = places(grow(wanted))
    assert place.shape == (2, 32 * 52)
    part = find(*source, place)
    of_wanted = wanted.flatten(1).gather(1, place)
    for name, values in whole._asdict().items():
        at_place = values.gather(1, place)
        assert getattr(part, name)[of_wanted].equal(at_place[of_wanted]), name


@pytest.mark.parametrize("unknown", [0.0, 0.1])
@pytest.mark.parametrize("size", [(1, 3), (3, 1), (2, 2), (7, 9), (64, 128)])
def test_loops_find_what_tensors_find(unknown, size):
    height, width = size
    camera = Camera(width=width, height=height, focal=100.0, center_u=width / 2, center_v=9.0)
    seen_from = Camera(width=100, height=70, focal=80.0, center_u=60.0, center_v=20.0)
    generator = torch.Generator().manual_seed(0)
    depth = 4 + torch.randn(2, 2, height, width, generator=generator).cumsum(-1).abs()
    depth[0, 1, : height // 3] = torch.inf
    depth[..., height // 2 :, width // 2 :] = 3.0
    depth[torch.rand(depth.shape, generator=generator) < unknown] = torch.nan
    poses = (0.1, 1.0, 0.02), (0.0, -0.7, 0.0)
    moved = torch.stack([target_from_source(pose) for pose in poses])[:, None]
    loops = find(depth, 1, moved.expand(-1, 2, -1, -1), seen_from, camera)
    there = motions(moved[:, 0], seen_from, camera)
    tensors = find_with_tensors(depth, 1, *there, seen_from, camera, None)
    for name, values in tensors._asdict().items():
        same = torch.isclose(getattr(loops, name).float(), values.float(), rtol=1e-3, atol=1e-3)
        assert same.float().mean() > 0.99, f"{name}: rounding may tip a pixel on a threshold"
    assert tensors.seen.any() or min(size) == 1


def test_unknown_depth_is_ignored():
    image, depth = render((0.0, 0.0, 0.0), waves)
    unknown = torch.rand(64, 128, generator=torch.Generator().manual_seed(1)) < 0.2
    holed = depth.masked_fill(unknown, torch.nan)
    moved = target_from_source((0.0, 0.5, 0.0))[None, None]
    full, full_valid = reproject(image[None, None], depth[None, None], moved, CAMERA)
    warped, valid = reproject(image[None, None], holed[None, None], moved, CAMERA)
    assert 0.7 < valid.sum() / full_valid.sum() < 0.9
    error = (warped.double() - full.double()).abs()
    assert error[:, :, 8:][valid[:, None, 8:].expand_as(error[:, :, 8:])].mean() < 1
    assert error.mean() < 2, "unknown pixels still look like their surroundings"


def test_nothing_known_still_gives_an_image():
    image, depth = random_frame(height=64, width=128, unknown=2.0)
    moved = target_from_source((0.0, 1.0, 0.0))[None, None]
    warped, valid = reproject(image[None, None], depth[None, None], moved, CAMERA)
    assert not valid.any()
    assert warped.equal(image[None])


def test_batch_equals_alone(monkeypatch):
    frames = [random_frame(seed, 64, 128, unknown=0.05 * (seed % 2)) for seed in range(6)]
    images = torch.stack([image for image, _ in frames]).reshape(3, 2, 3, 64, 128)
    depths = torch.stack([depth for _, depth in frames]).reshape(3, 2, 64, 128)
    poses = [(0.0, 1.0, 0.0), (0.1, -0.5, 0.05), (0.0, 0.0, -0.02)]
    moved = torch.stack([target_from_source(p) for p in poses])[:, None].repeat(1, 2, 1, 1)
    together = reproject(images, depths, moved, CAMERA)
    for i in range(3):
        alone = reproject(images[i : i + 1], depths[i : i + 1], moved[i : i + 1], CAMERA)
        assert alone.image[0].equal(together.image[i])
        assert alone.valid[0].equal(together.valid[i])
    monkeypatch.setattr("drive_envs.reprojection.PASS_PIXELS", 1)
    one_by_one = reproject(images, depths, moved, CAMERA)
    assert one_by_one.image.equal(together.image)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu():
    image, depth = random_frame(height=64, width=128, unknown=0.1)
    arguments = (
        image[None, None],
        depth[None, None],
        target_from_source((0.1, 1.0, 0.05))[None, None],
    )
    here = reproject(*arguments, CAMERA)
    images, depths, moved = (argument.cuda() for argument in arguments)
    there = reproject(images, depths, moved, CAMERA)
    assert (there.valid.cpu() == here.valid).float().mean() > 0.995
    difference = (there.image.cpu().int() - here.image.int()).abs()
    assert (difference <= 1).float().mean() > 0.995, "rounding may tip a pixel on a threshold"


@pytest.mark.parametrize(
    ("images", "depths", "moved", "message"),
    [
        (
            (2, 1, 3, 32, 64),
            (2, 1, 32, 64),
            (2, 1, 4, 4),
            r"\(3, 32, 64\) do not fit.*\(3, 64, 128\)",
        ),
        ((2, 1, 3, 64, 128), (2, 1, 64, 64), (2, 1, 4, 4), r"depths \(2, 1, 64, 64\)"),
        ((2, 1, 3, 64, 128), (2, 1, 64, 128), (2, 4, 4), r"target_from_source \(2, 4, 4\)"),
        ((2, 0, 3, 64, 128), (2, 0, 64, 128), (2, 0, 4, 4), "nothing to reproject"),
    ],
)
def test_wrong_sizes_are_explained(images, depths, moved, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(torch.zeros(images), torch.zeros(depths), torch.zeros(moved), CAMERA)


def test_a_pose_that_is_not_finite_is_refused():
    image, depth = random_frame(height=64, width=128)
    with pytest.raises(ValueError, match="not finite"):
        reproject(image[None, None], depth[None, None], torch.full((1, 1, 4, 4), torch.nan), CAMERA)


@pytest.mark.parametrize("seed", range(4))
def test_matches_the_definition_pixel_by_pixel(seed):
    camera = small_camera()
    image, depth = random_frame(seed, unknown=0.1 * (seed % 2))
    if seed >= 2:
        depth[3:, 4:9] = 3.0
        depth[3:, 9:] = 9.0
    moved = target_from_source((0.1, 0.3, 0.04), camera=camera)
    expected, expected_seen = by_definition(image.numpy(), depth.numpy(), moved.numpy(), camera)
    warped, valid = reproject(image[None, None], depth[None, None], moved[None, None], camera)
    same = valid[0].numpy() == expected_seen
    assert same.mean() > 0.98, "rounding may tip a pixel on a threshold"
    both = same & expected_seen
    assert both.sum() > 20
    assert np.abs(warped[0].numpy() - expected)[:, both].max() <= 0.51


def by_definition(image, depth, target_from_source, camera):
    """Write the module's five steps down one pixel at a time, in float64; (colour, seen)."""
    height, width = depth.shape
    matrix = camera.intrinsics.numpy()
    rotation = target_from_source[:3, :3].astype(float)
    translation = target_from_source[:3, 3].astype(float)
    w = np.array([[HOLE if np.isnan(z) else 1 / float(z) for z in row] for row in depth])

    cells = np.full((height, width), HOLE)
    for row in range(height):
        for column in range(width):
            if w[row, column] < 0:
                continue
            ray = np.linalg.inv(matrix) @ [column + 0.5, row + 0.5, 1]
            q = matrix @ (rotation @ ray + w[row, column] * translation)
            there = w[row, column] / q[2]
            i, j = int(np.floor(q[1] / q[2])), int(np.floor(q[0] / q[2]))
            if q[2] >= MIN_SCALE and there <= 1 / NEAR and 0 <= i < height and 0 <= j < width:
                cells[i, j] = max(cells[i, j], there)
    closed = cells.copy()
    for i in range(1, height - 1):
        for j in range(width):
            closed[i, j] = max(cells[i, j], min(cells[i - 1, j], cells[i + 1, j]))
    guess = closed.copy()
    for i in range(height):
        for j in range(1, width - 1):
            guess[i, j] = max(closed[i, j], min(closed[i, j - 1], closed[i, j + 1]))
    guess = pyramid_fill(guess)

    filled = pyramid_fill(w)
    planes = np.array(
        [[plane_at(filled, row, column) for column in range(width)] for row in range(height)]
    )
    color, seen = np.zeros((3, height, width)), np.zeros((height, width), bool)
    hidden, landed = np.zeros((height, width), bool), np.zeros((height, width, 2), int)
    back = matrix @ rotation.T @ np.linalg.inv(matrix)
    shift = -matrix @ rotation.T @ translation
    for i in range(height):
        for j in range(width):
            ray = back @ [j + 0.5, i + 0.5, 1]

            def land(x, ray=ray):
                q = ray + x * shift
                u, v = q[:2] / max(q[2], MIN_SCALE)
                row = min(max(int(np.floor(v)), 0), height - 1)
                column = min(max(int(np.floor(u)), 0), width - 1)
                return u, v, q[2], row, column

            def refine(row, column, ray=ray):
                a = planes[row, column]
                return a @ ray / (1 - a @ shift)

            first = land(np.clip(refine(*land(max(guess[i, j], 0))[3:]), 0, 1 / NEAR))
            x = refine(*first[3:])
            u, v, scale, row, column = land(np.clip(x, 0, 1 / NEAR))
            agree = bool(max(abs(u - first[0]), abs(v - first[1])) <= MAX_DISAGREEMENT)
            in_view = 0 <= u <= width and 0 <= v <= height and scale >= MIN_SCALE
            agree &= -1e-6 <= x <= 1 / NEAR
            judged = in_view and w[row, column] >= 0
            seen[i, j], hidden[i, j] = judged and agree, judged and not agree
            landed[i, j] = row, column
            landed[i, j] = row, column
            if in_view:
                color[:, i, j] = bilinear(image, u, v)
    for i, j in np.argwhere(seen):
        if hidden[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any():
            row, column = landed[i, j]
            limit = w[row, column] + EDGE + 2 * np.abs(planes[row, column, :2]).sum()
            window = w[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            seen[i, j] = window.max() <= limit
    return color, seen


def pyramid_fill(w):
    """Fill each hole from the smallest aligned square cell (2, 4, 8, ...) with a known value."""
    filled = w.copy()
    for i, j in np.argwhere(w < 0):
        size = 1
        while filled[i, j] < 0 and size < 2 * max(w.shape):
            size *= 2
            top, left = i // size * size, j // size * size
            filled[i, j] = w[top : top + size, left : left + size].max()
    return filled


def plane_at(w, row, column):
    """Return (slope u, slope v, offset) at a pixel."""
    slopes = []
    for line, at in ((w[row], column), (w[:, column], row)):
        steps = [line[k + 1] - line[k] for k in (at - 1, at) if k >= 0 and k + 1 < len(line)]
        slope = min(steps, key=abs) if min(steps) * max(steps) > 0 else 0.0
        slopes.append(slope if abs(slope) <= MAX_SLOPE else 0.0)
    offset = w[row, column] - slopes[0] * (column + 0.5) - slopes[1] * (row + 0.5)
    return np.array([*slopes, offset])


def bilinear(image, u, v):
    """Interpolate (3, H, W) at a pixel position; beyond the outer centres the border goes on."""
    height, width = image.shape[1:]
    x, y = np.clip(u - 0.5, 0, width - 1), np.clip(v - 0.5, 0, height - 1)
    j, i = min(int(x), width - 2), min(int(y), height - 2)
    fx, fy = x - j, y - i
    top = (1 - fx) * image[:, i, j] + fx * image[:, i, j + 1]
    bottom = (1 - fx) * image[:, i + 1, j] + fx * image[:, i + 1, j + 1]
    return (1 - fy) * top + fy * bottom

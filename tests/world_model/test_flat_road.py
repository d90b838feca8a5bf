import pytest
import torch

from drive_envs.camera import CAMERAS, cameras
from drive_envs.geometry import compose
from world_model.flat_road import moved_images, moved_latents, source_pixels

WIDTH, HEIGHT = 128, 64
VIEWS = cameras(WIDTH, HEIGHT)


def pixel_of(camera, ground):
    """Where a point of the road, metres ahead and to the left of the car, is seen."""
    x, y = ground.unbind(-1)
    u = camera.center_u - camera.focal * y / x
    return u, camera.center_v + camera.focal * camera.mount_height / x


def ground_of(camera, u, v):
    """Which point of the road is seen at a pixel."""
    x = camera.mount_height * camera.focal / (v - camera.center_v)
    return torch.stack([x, -(u - camera.center_u) / camera.focal * x], dim=-1)


def seen_before(motion, ground):
    """The same point as seen from the frame before."""
    points = torch.cat([ground, torch.zeros_like(ground[..., :1])], dim=-1)
    return compose(motion.expand_as(points), points)[..., :2]


@pytest.mark.parametrize("name", CAMERAS)
def test_road_is_read_where_it_was_seen_before(name):
    camera = VIEWS[name]
    motion = torch.tensor([[2.0, 0.3, 0.05]], dtype=torch.float64)
    u, v, ahead = source_pixels(camera, motion)
    rows = torch.arange(50, HEIGHT)
    row, column = torch.meshgrid(rows + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    wanted = pixel_of(camera, seen_before(motion, ground_of(camera, column, row)))
    torch.testing.assert_close(u[0, rows].double(), wanted[0].double(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(v[0, rows].double(), wanted[1].double(), atol=1e-3, rtol=1e-4)
    before, now = (seen_before(m, ground_of(camera, column, row)) for m in (motion, 0 * motion))
    wanted = (before[..., 0] / now[..., 0]).float()
    torch.testing.assert_close(ahead[0, rows], wanted, atol=1e-3, rtol=1e-4)


def test_the_sky_only_turns():
    camera = VIEWS["wide"]
    num_above = int(camera.center_v)
    columns = torch.arange(WIDTH) + 0.5
    for ahead in (0.0, 5.0):
        u, _, _ = source_pixels(camera, torch.tensor([[ahead, 0.2, 0.0]]))
        wanted = columns.expand(num_above, -1)
        torch.testing.assert_close(u[0, :num_above], wanted, atol=1e-4, rtol=0)
    u, _, _ = source_pixels(camera, torch.tensor([[0.0, 0.0, 0.1]]))
    assert (u[0, 0] < columns - 5).all()  # turned to the left


def line(camera, lateral):
    """A picture of a white line on a black road, metres to the left."""
    row, column = torch.meshgrid(
        torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij"
    )
    ground = ground_of(camera, column, row)
    is_line = (row > camera.center_v + 2) & ((ground[..., 1] - lateral).abs() < 0.15)
    return (255 * is_line).to(torch.uint8).expand(3, -1, -1)


@pytest.mark.parametrize("beside", [-0.4, 0.4])
def test_a_line_goes_to_the_side_as_the_car_goes_to_the_other(beside):
    images = torch.stack([line(VIEWS[name], 1.0) for name in CAMERAS])[None]
    moved = moved_images(images, torch.tensor([[1.0, beside, 0.0]]))
    for index, name in enumerate(CAMERAS):
        camera = VIEWS[name]
        row = HEIGHT - 4
        bright = moved[0, index, 0, row].float()
        u = (bright * (torch.arange(WIDTH) + 0.5)).sum() / bright.sum()
        lateral = ground_of(camera, u, torch.tensor(row + 0.5))[1]
        assert lateral == pytest.approx(1.0 - beside, abs=0.03)


def test_a_standing_car_sees_what_it_saw():
    images = torch.randint(0, 256, (2, 2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    moved = moved_images(images, torch.zeros(2, 3))
    assert (moved.int() - images.int()).abs().max() <= 1


def test_the_wide_road_is_read_where_the_narrow_camera_saw_it():
    """A line that only the narrow camera shows, where it had this in view."""
    narrow = line(VIEWS["narrow"], 0.5)
    images = torch.stack([narrow, torch.full_like(narrow, 77)])[None]
    wide = moved_images(images, torch.tensor([[3.0, 0.0, 0.0]]))[0, 1, 0]
    camera = VIEWS["wide"]
    wanted = line(camera, 0.5)[0]
    near = slice(HEIGHT - 12, HEIGHT - 4)
    middle = slice(WIDTH // 2 - 24, WIDTH // 2 + 24)
    assert (wide[near, middle].int() - wanted[near, middle].int()).abs().float().mean() < 20
    # Above the horizon, beyond the narrow view and far ahead, the wide camera speaks for itself.
    assert (wide[: int(camera.center_v)] == 77).all()
    assert (wide[: HEIGHT - 20, :16] == 77).all()
    assert (wide[int(camera.center_v) + 1] == 77).all()


def test_latents_are_of_what_they_show(tokenizer):
    latents = torch.randn(3, 4, 2, 4)
    motion = torch.tensor([[0.5, 0.1, 0.02]]).expand(3, -1)
    found = moved_latents(tokenizer, latents, motion, "fp32")
    wanted = tokenizer.encode(moved_images(tokenizer.decode(latents), motion))
    torch.testing.assert_close(found, wanted)
    still = moved_latents(tokenizer, latents, torch.zeros(3, 3), "fp32")
    assert (still - latents).abs().mean() < 0.2 * (found - latents).abs().mean()

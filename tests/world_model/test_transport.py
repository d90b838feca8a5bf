import pytest
import torch

from drive_envs.camera import cameras
from drive_envs.geometry import compose, invert
from world_model.transport import Transport, around, between, source_cells

WIDTH, HEIGHT, STRIDE = 128, 64, 8
CAMERAS = cameras(WIDTH, HEIGHT)


def pixel_of(camera, ground):
    """Where a point of the road, metres ahead and to the left of the car, is seen."""
    x, y = ground.unbind(-1)
    down = camera.mount_height / x
    return torch.stack(
        [camera.center_u - camera.focal * y / x, camera.center_v + camera.focal * down], dim=-1
    )


@pytest.mark.parametrize("name", CAMERAS)
def test_road_is_read_where_it_was_seen_before(name):
    camera = CAMERAS[name]
    motion = torch.tensor([[2.0, 0.3, 0.05]])
    u, v = source_cells(camera, motion, STRIDE)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(16), indexing="ij")
    down = ((row + 0.5) * STRIDE - camera.center_v) / camera.focal
    side = -((column + 0.5) * STRIDE - camera.center_u) / camera.focal
    ahead = camera.mount_height / down
    here = torch.stack([ahead, side * ahead], dim=-1)
    c, s = motion[0, 2].cos(), motion[0, 2].sin()
    before = torch.stack(
        [2.0 + c * here[..., 0] - s * here[..., 1], 0.3 + s * here[..., 0] + c * here[..., 1]], -1
    )
    wanted = pixel_of(camera, before) / STRIDE - 0.5
    is_road = (down > 0.02) & (wanted[..., 0] > -1) & (wanted[..., 0] < 16)
    assert is_road.sum() > 30
    torch.testing.assert_close(u[0][is_road], wanted[..., 0][is_road], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v[0][is_road], wanted[..., 1][is_road], atol=1e-4, rtol=1e-4)


def test_the_sky_only_turns():
    camera = CAMERAS["wide"]
    still = torch.zeros(1, 3)
    ahead = torch.tensor([[5.0, 1.0, 0.0]])
    for motion in (still, ahead):
        u, v = source_cells(camera, motion, STRIDE)
        torch.testing.assert_close(u[0, :4], torch.arange(16.0).expand(4, -1), atol=1e-4, rtol=0)
        torch.testing.assert_close(v[0, :4], torch.arange(4.0)[:, None].expand(-1, 16))
    u, _ = source_cells(camera, torch.tensor([[0.0, 0.0, 0.1]]), STRIDE)
    assert (u[0, 0, 2:14] < torch.arange(2.0, 14.0) - 0.5).all()  # turned to the left


def test_motions_follow_one_another():
    """Where it lay two frames ago is where it lay before where it lay before."""
    camera = CAMERAS["narrow"]
    one, two = torch.tensor([1.0, 0.1, 0.02]), torch.tensor([1.5, -0.2, 0.03])
    assert torch.allclose(compose(invert(one), compose(one, two)), two)
    last = source_cells(camera, two[None], STRIDE)
    both = source_cells(camera, compose(one, two)[None], STRIDE)
    row, column = 6, 8
    u, v = last[0][0, row, column], last[1][0, row, column]
    # The first motion, of the very place that the second one leads to.
    down = ((v + 0.5) * STRIDE - camera.center_v) / camera.focal
    side = -((u + 0.5) * STRIDE - camera.center_u) / camera.focal
    here = torch.stack([camera.mount_height / down, side * camera.mount_height / down])
    c, s = one[2].cos(), one[2].sin()
    there = torch.stack([one[0] + c * here[0] - s * here[1], one[1] + s * here[0] + c * here[1]])
    wanted = pixel_of(camera, there) / STRIDE - 0.5
    found = torch.stack([part[0, row, column] for part in both])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_reading_at_whole_places_reads_what_is_there():
    latents = torch.randn(2, 4, 8, 16)
    column = torch.arange(16.0).expand(2, 8, -1)
    row = torch.arange(8.0)[:, None].expand(2, -1, 16)
    torch.testing.assert_close(
        between(latents, column, row).permute(0, 3, 1, 2), latents, atol=1e-4, rtol=1e-4
    )
    windows, waves = around(latents, column, row)
    centre = windows.unflatten(-1, (4, 3, 3))[..., 1, 1]
    torch.testing.assert_close(centre.permute(0, 3, 1, 2), latents)
    off, _ = around(latents, column + 0.3, row - 0.2)
    torch.testing.assert_close(off, windows)
    assert (waves[..., :4] == 0).all()


def test_a_standing_car_expects_what_it_saw_before_anything_is_learnt():
    transport = Transport(4, WIDTH, HEIGHT, STRIDE, hidden=16)
    before = torch.randn(3, 4, 8, 16)
    with torch.no_grad():
        found = transport(before, torch.zeros(3, 3))
    torch.testing.assert_close(found.mean, before, atol=1e-3, rtol=1e-3)


def test_it_learns_to_read_between_places():
    """Latents of pictures that move by parts of a place: no mean of neighbours is right."""
    torch.manual_seed(0)
    transport = Transport(2, WIDTH, HEIGHT, STRIDE, hidden=32)
    optimizer = torch.optim.Adam(transport.parameters(), lr=3e-3)
    phase = torch.rand(64, 1, 1) * 6
    motion = torch.zeros(64, 3)
    motion[:, 2] = torch.rand(64) * 0.1 - 0.05

    def seen(u):
        # As an encoder's: not linear in what moves.
        return torch.stack([(1.5 * u + phase).sin(), (1.5 * u + phase).sin().square()], dim=1)

    u, _ = source_cells(CAMERAS["wide"], motion, STRIDE)
    before, after = seen(torch.arange(16.0).expand(64, 8, 16)), seen(u)
    errors = []
    for _ in range(150):
        error = (transport(before, motion).mean - after).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]

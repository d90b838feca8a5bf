import pytest
import torch

from drive_envs.camera import Camera, cameras, narrow, project, unproject, wide
from drive_envs.geometry import euler_from_matrix


def test_unproject_then_project_is_the_pixel_centre():
    camera = wide(128, 64)
    depth = 1 + torch.rand(2, 64, 128, dtype=torch.float64) * 50
    pixel = project(camera, unproject(camera, depth))
    v, u = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    torch.testing.assert_close(pixel, torch.stack([u, v], -1).double().expand_as(pixel))


@pytest.mark.parametrize("camera", cameras(256, 128).values())
def test_the_ground_ahead_lies_below_the_horizon(camera):
    points_ego = torch.tensor([[20.0, 0.0, 0.0], [20.0, 2.0, 0.0]], dtype=torch.float64)
    mount = torch.linalg.inv(camera.ego_from_camera)
    pixel = project(camera, points_ego @ mount[:3, :3].T + mount[:3, 3])
    expected_v = camera.center_v + camera.focal * 1.22 / 20
    expected = [[128.0, expected_v], [128.0 - camera.focal * 2 / 20, expected_v]]
    torch.testing.assert_close(pixel, torch.tensor(expected, dtype=torch.float64))


def test_a_positive_pitch_looks_down():
    camera = Camera(width=8, height=4, focal=5.0, center_u=4.0, center_v=2.0, pitch=0.1)
    level = Camera(width=8, height=4, focal=5.0, center_u=4.0, center_v=2.0)
    assert camera.ego_from_camera[2, 2] < 0
    tilt = camera.ego_from_camera @ torch.linalg.inv(level.ego_from_camera)
    torch.testing.assert_close(
        euler_from_matrix(tilt), torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64)
    )


def test_intrinsics_are_the_projection():
    camera, point = narrow(), torch.tensor([0.3, -0.2, 7.0], dtype=torch.float64)
    homogeneous = camera.intrinsics @ point / point[2]
    torch.testing.assert_close(project(camera, point), homogeneous[:2])


def test_scaling_keeps_the_field_of_view():
    point = torch.tensor([1.0, 0.5, 9.0], dtype=torch.float64)
    torch.testing.assert_close(project(narrow(), point), 2 * project(narrow(128, 64), point))


def test_behind_the_camera_is_nan():
    points = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    assert project(wide(), points).isnan().all()


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"100 wide and 64 high.*256:128"):
        narrow(100, 64)
    with pytest.raises(ValueError, match="focal length must be positive"):
        Camera(width=8, height=4, focal=0.0, center_u=4.0, center_v=2.0)
    with pytest.raises(ValueError, match=r"depth map of 64 x 32 pixels.*256 x 128"):
        unproject(wide(), torch.ones(32, 64))

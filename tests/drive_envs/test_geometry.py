import torch
from scipy.spatial.transform import Rotation

from drive_envs.geometry import (
    compose,
    euler_from_matrix,
    invert,
    matrix_from_planar,
    matrix_from_quaternion,
    planar_from_matrix,
    quaternion_from_matrix,
    wrap,
)


def random_poses(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, 3, generator=generator, dtype=torch.float64)


def test_compose_is_the_product_of_matrices():
    a_from_b, b_from_c = random_poses(2, 5)
    product = matrix_from_planar(a_from_b) @ matrix_from_planar(b_from_c)
    torch.testing.assert_close(matrix_from_planar(compose(a_from_b, b_from_c)), product)


def test_inverse_undoes():
    pose = random_poses(4, 2)
    torch.testing.assert_close(compose(pose, invert(pose)), torch.zeros_like(pose))
    torch.testing.assert_close(compose(invert(pose), pose), torch.zeros_like(pose))


def test_compose_moves_in_the_first_frame():
    facing_left = torch.tensor([1.0, 2.0, torch.pi / 2], dtype=torch.float64)
    ahead = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.1]], dtype=torch.float64)
    expected = torch.tensor(
        [[1.0, 5.0, torch.pi / 2], [0.0, 2.0, torch.pi / 2 + 0.1]], dtype=torch.float64
    )
    torch.testing.assert_close(compose(facing_left, ahead), expected)


def test_wrap_keeps_the_direction():
    angle = torch.linspace(-20, 20, 101, dtype=torch.float64)
    assert (wrap(angle).abs() <= torch.pi).all()
    torch.testing.assert_close(wrap(angle).cos(), angle.cos())
    torch.testing.assert_close(wrap(angle).sin(), angle.sin())


def test_planar_round_trip():
    pose = random_poses(3, 2)
    torch.testing.assert_close(planar_from_matrix(matrix_from_planar(pose)), pose)


def test_quaternion_round_trip():
    position, quaternion = random_poses(6), torch.randn(6, 4, dtype=torch.float64)
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    quaternion = quaternion * quaternion[:, 3:].sign()
    matrix = matrix_from_quaternion(position, quaternion)
    torch.testing.assert_close(quaternion_from_matrix(matrix), quaternion)
    torch.testing.assert_close(matrix[:, :3, 3], position)


def test_euler_angles_compose_yaw_pitch_roll():
    angles = random_poses(5) * 0.5
    rotation = Rotation.from_euler("ZYX", angles.flip(-1).numpy()).as_matrix()
    matrix = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    matrix[:, :3, :3] = torch.as_tensor(rotation)
    torch.testing.assert_close(euler_from_matrix(matrix), angles)

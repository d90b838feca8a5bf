"""Rigid motion, in the plane and in space.

`a_from_b` maps points of frame b into frame a, so a product reads left to right:
`a_from_c = compose(a_from_b, b_from_c)`, or `a_from_b @ b_from_c` for matrices.

Planar poses are (x, y, yaw) in metres and radians, counter-clockwise; the ego frame has x forward,
y left, z up. Poses in space are 4 x 4 homogeneous matrices. Quaternions are (x, y, z, w). Euler
angles are (roll, pitch, yaw) with R = Rz(yaw) Ry(pitch) Rx(roll): a positive pitch is nose down.
"""

import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

PlanarPose = Float[Tensor, "*#batch 3"]
Matrix = Float[Tensor, "*batch 4 4"]


def wrap(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Bring an angle into [-pi, pi]."""
    return torch.atan2(angle.sin(), angle.cos())


def compose(a_from_b: PlanarPose, b_from_c: PlanarPose) -> PlanarPose:
    """Chain two planar poses (..., 3); batch dimensions broadcast."""
    cos, sin = a_from_b[..., 2].cos(), a_from_b[..., 2].sin()
    x, y, yaw = b_from_c.unbind(-1)
    return torch.stack(
        [
            a_from_b[..., 0] + cos * x - sin * y,
            a_from_b[..., 1] + sin * x + cos * y,
            wrap(a_from_b[..., 2] + yaw),
        ],
        dim=-1,
    )


def invert(a_from_b: PlanarPose) -> PlanarPose:
    """Turn `a_from_b` (..., 3) into `b_from_a`."""
    x, y, yaw = a_from_b.unbind(-1)
    cos, sin = yaw.cos(), yaw.sin()
    return torch.stack([-cos * x - sin * y, sin * x - cos * y, wrap(-yaw)], dim=-1)


def matrix_from_planar(pose: Float[Tensor, "*batch 3"]) -> Matrix:
    """Lift a planar pose (..., 3) to a matrix (..., 4, 4) that leaves z alone."""
    x, y, yaw = pose.unbind(-1)
    cos, sin, zero, one = yaw.cos(), yaw.sin(), torch.zeros_like(x), torch.ones_like(x)
    rows = [
        torch.stack(row, dim=-1)
        for row in (
            (cos, -sin, zero, x),
            (sin, cos, zero, y),
            (zero, zero, one, zero),
            (zero, zero, zero, one),
        )
    ]
    return torch.stack(rows, dim=-2)


def planar_from_matrix(matrix: Matrix) -> Float[Tensor, "*batch 3"]:
    """Drop height, roll and pitch of (..., 4, 4): position and heading on the ground, (..., 3)."""
    yaw = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([matrix[..., 0, 3], matrix[..., 1, 3], yaw], dim=-1)


def matrix_from_quaternion(
    position: Float[Tensor, "*batch 3"], quaternion: Float[Tensor, "*batch 4"]
) -> Matrix:
    """Build (..., 4, 4) from a position in metres and a quaternion (x, y, z, w) of any norm > 0.

    Raises ValueError (from scipy) when a quaternion is zero.
    """
    rotation = Rotation.from_quat(quaternion.detach().cpu().numpy()).as_matrix()
    matrix = torch.eye(4, dtype=position.dtype, device=position.device)
    matrix = matrix.repeat(*position.shape[:-1], 1, 1)
    matrix[..., :3, :3] = torch.as_tensor(rotation).to(position)
    matrix[..., :3, 3] = position
    return matrix


def quaternion_from_matrix(matrix: Matrix) -> Float[Tensor, "*batch 4"]:
    """Return the rotation of (..., 4, 4) as a unit quaternion (x, y, z, w) with w >= 0."""
    rotation = Rotation.from_matrix(matrix[..., :3, :3].detach().cpu().numpy())
    return torch.as_tensor(rotation.as_quat(canonical=True)).to(matrix)


def euler_from_matrix(matrix: Matrix) -> Float[Tensor, "*batch 3"]:
    """Return (roll, pitch, yaw) in radians of (..., 4, 4), with R = Rz(yaw) Ry(pitch) Rx(roll)."""
    rotation = matrix[..., :3, :3]
    roll = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    pitch = torch.asin((-rotation[..., 2, 0]).clamp(-1, 1))
    yaw = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.stack([roll, pitch, yaw], dim=-1)

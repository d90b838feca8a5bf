"""Positions on the earth (WGS 84) and the level frame, east, north, up, at one of them."""

import numpy as np
from jaxtyping import Float

AXIS = 6378137.0  # m, half the larger axis
FLATTENING = 1 / 298.257223563


def ecef_from_enu(origin: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Return the rotation whose columns are east, north and up at an ECEF position in metres.

    Up is normal to the ellipsoid: its gradient there, to 1e-5 rad within 10 km of the surface.
    """
    polar = (1 - FLATTENING) ** 2
    up = np.array([origin[0], origin[1], origin[2] / polar])
    up /= np.linalg.norm(up)
    east = np.array([-up[1], up[0], 0.0])
    east /= np.linalg.norm(east)
    return np.stack([east, np.cross(up, east), up], axis=1)


def mercator(
    latitude: Float[np.ndarray, " n"], longitude: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Project degrees to metres east and north, true to scale at the first of them."""
    scale = np.cos(np.radians(latitude[0]))
    east = AXIS * np.radians(longitude)
    north = AXIS * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))
    return scale * np.stack([east, north], axis=-1)

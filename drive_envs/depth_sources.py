"""Where the depth of an imported frame comes from: one of four, told apart by `kind`.

All but what was recorded can be corrected by the frames before and after (`depth_from_motion`). All
give planar metres of a virtual camera at the height at which it was filmed: NaN unknown, inf sky.
What none of them knows is how another car moves.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from drive_envs.depth_completion import Completion, completed
from drive_envs.depth_from_motion import Neighbours, improved
from drive_envs.monocular_depth import DepthNetwork, Monocular, UnalignedError, aligned
from drive_envs.recording import Depth, Fault, Pixels
from drive_envs.virtual_view import View, ground_depth

Map = Float[np.ndarray, "_rows _columns"]  # views differ in size

ROAD_WIDTH, ROAD_FROM, ROAD_TO = 3.0, 4.0, 30.0  # m: of the road ahead that scales a network


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Depth maps of the recording as they are: one value a pixel, from stereo or a simulator."""

    kind: Literal["recorded"] = "recorded"


@dataclass(frozen=True, kw_only=True)
class GroundPlane:
    """The world as a flat road with everything else at infinity, from the camera's height alone.

    far: m, from where the road is sky too. The road is right, what stands on it is painted on it.
    """

    kind: Literal["ground-plane"] = "ground-plane"
    far: float = 300.0

    def __post_init__(self) -> None:
        if not self.far > 5:
            raise ValueError(f"depth.far must be more than 5 m, got {self.far}")


DepthSource = Recorded | Completion | GroundPlane | Monocular


class DepthError(ValueError):
    """A frame for which this source has no depth; `cause` is a few words."""

    def __init__(self, cause: str, detail: str = "") -> None:
        self.cause, self.detail = cause, detail
        super().__init__(f"{cause} ({detail})" if detail else cause)


class DepthMaker:
    """Makes depth for the virtual views of frames."""

    def __init__(self, source: DepthSource, *, uses_motion: bool = False) -> None:
        self.source = source
        self.uses_motion = uses_motion and not isinstance(source, Recorded)
        self._network = DepthNetwork(source) if isinstance(source, Monocular) else None

    @property
    def needs_measured(self) -> bool:
        """Whether a recording without measured depth is of no use."""
        return isinstance(self.source, Recorded | Completion)

    def depths(
        self, views: dict[str, View], image: Pixels, measured: Depth | Fault | None
    ) -> dict[str, Map]:
        """Return the depth seen by each view of one frame. DepthError when there is none."""
        if isinstance(measured, Fault) and self.needs_measured:
            raise DepthError(measured.cause, f"{measured.file} {measured.detail}".strip())
        known = measured if isinstance(measured, np.ndarray) else None
        if known is None and self.needs_measured:
            raise DepthError("no measured depth")
        match self.source:
            case GroundPlane(far=far):
                return {name: ground_depth(view.camera, far) for name, view in views.items()}
            case Recorded():
                assert known is not None
                return {name: view.dense_depth(known) for name, view in views.items()}
            case Completion() as config:
                assert known is not None
                return {
                    name: _spread(view, image, view.sparse_depth(known), config)
                    for name, view in views.items()
                }
            case Monocular(predicts=predicts):
                assert self._network is not None
                predicted = self._network.predict(image)
                return {name: _scaled(view, predicted, predicts) for name, view in views.items()}

    def improved(
        self,
        view: View,
        depth: Map,
        image: UInt8[np.ndarray, "_rows _columns 3"],
        neighbours: Neighbours | None,
        measured: Map | Fault | None,
    ) -> Map:
        """Return the depth of a view with what its neighbours, seen by the same view, know better.

        `image` is what the view shows; `measured` the same as for `depths`.
        """
        if neighbours is None:
            return depth
        points = None
        if isinstance(self.source, Completion) and isinstance(measured, np.ndarray):
            points = np.isfinite(view.sparse_depth(measured))
        road = ground_depth(view.camera)
        return improved(depth, image, neighbours, view.camera, measured=points, road=road)


def _spread(view: View, image: Pixels, sparse: Map, config: Completion) -> Map:
    if not np.isfinite(sparse).any():
        raise DepthError("no point of the lidar in view")
    return completed(sparse, view.image(image), view.camera.center_v, config)


def _scaled(view: View, predicted: Depth, predicts: Literal["inverse", "metres"]) -> Map:
    """Scale a prediction in the recorded camera's planar depth, and turn it into the view's."""
    ground = ground_depth(view.camera)
    u = np.arange(view.camera.width) + 0.5
    aside = (
        (u - view.camera.center_u) / view.camera.focal * np.where(np.isfinite(ground), ground, 0)
    )
    road = (ground > ROAD_FROM) & (ground < ROAD_TO) & (np.abs(aside) < ROAD_WIDTH / 2)
    try:
        depth = aligned(view.nearest(predicted), ground * view.depth_ratio, road, predicts)
    except UnalignedError as error:
        raise DepthError("the network's depth does not fit the road", str(error)) from error
    return depth / view.depth_ratio

"""Depth from one picture by a network of Hugging Face's `transformers`, in the scale of the road.

Such networks predict metres in a wrong scale, or inverse depth in an unknown scale and shift. The
road ahead, whose depth is known from the height of the camera, tells both:

    1 / z = a p + b  (p an inverse depth),   or   z = a p  (p in metres)

by least squares over the pixels of the road, twice without those that fit worst, such as a car on
it. `transformers` is optional, and imported only here.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch.nn.functional import interpolate

Map = Float[np.ndarray, "rows columns"]
Mask = Bool[np.ndarray, "rows columns"]

MIN_PIXELS = 50  # of road that tell scale and shift
FAR = 500.0  # m: what is farther is sky
MIN_SHARE = 0.5  # of the road's variance in inverse depth that the fit must explain


class UnalignedError(ValueError):
    """A prediction that does not look like the road; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Monocular:
    """A network by the path of its folder or its name on the hub.

    predicts: "inverse" (relative depth; DPT, MiDaS, Depth Anything) or "metres". device: of torch.
    """

    kind: Literal["model"] = "model"
    model: str = ""
    predicts: Literal["inverse", "metres"] = "inverse"
    device: str = "cpu"


class DepthNetwork:
    """The network in memory. ValueError when `transformers` or the model is not there."""

    def __init__(self, config: Monocular) -> None:
        self.config = config
        if not config.model:
            raise ValueError(
                "depth.model is empty: give the folder of a depth network or its name on the hub, "
                "such as depth-anything/Depth-Anything-V2-Small-hf"
            )
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ValueError(
                f"depth.kind=model needs the package transformers, which is optional ({error}): "
                "install it with `.uv/bin/uv pip install --python .venv/bin/python transformers`, "
                "or choose depth.kind=ground-plane"
            ) from error
        try:
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(config.model)
            network: Any = transformers.AutoModelForDepthEstimation.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            raise ValueError(f"depth.model={config.model}: cannot be loaded ({error})") from error
        self._network = network.eval().to(config.device)

    @torch.no_grad()
    def predict(
        self, image: UInt8[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "height width"]:
        """Return what the network makes of an RGB image, as large as it, in its own units."""
        given = self._processor(images=image, return_tensors="pt").to(self.config.device)
        predicted = self._network(**given).predicted_depth
        while predicted.dim() < 4:
            predicted = predicted[None]
        sized = interpolate(
            predicted.float(), image.shape[:2], mode="bilinear", align_corners=False
        )
        return sized[0, 0].double().cpu().numpy()


def aligned(predicted: Map, ground: Map, road: Mask, predicts: Literal["inverse", "metres"]) -> Map:
    """Return planar metres from a prediction and the depth of the `ground`, known on the `road`.

    UnalignedError when the prediction does not fall along the road as the ground does.
    """
    road = road & np.isfinite(predicted) & np.isfinite(ground)
    if predicts == "metres":
        road &= predicted > 0
    if road.sum() < MIN_PIXELS:
        raise UnalignedError(f"{int(road.sum())} pixels of road, at least {MIN_PIXELS} are needed")
    true = 1 / ground[road]
    given = predicted[road] if predicts == "inverse" else 1 / predicted[road]
    known = np.stack([given, np.ones_like(given)], axis=1)
    if predicts == "metres":
        known = known[:, :1]
    used = np.ones(len(true), bool)
    fit, error = _fit(known, true, used)
    for _ in range(2):
        used = error <= 2.5 * np.median(error[used]) + 1e-9
        fit, error = _fit(known, true, used)
    explained = 1 - (error[used] ** 2).mean() / max(true[used].var(), 1e-12)
    if fit[0] <= 0 or explained < MIN_SHARE:
        raise UnalignedError(f"it explains {explained:.0%} of the road, scale {fit[0]:.3g}")
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = fit[0] * (predicted if predicts == "inverse" else 1 / predicted)
        inverse = inverse + (fit[1] if predicts == "inverse" else 0.0)
        return np.where(
            inverse > 1 / FAR, 1 / inverse, np.where(np.isnan(predicted), np.nan, np.inf)
        )


def _fit(
    known: Float[np.ndarray, "pixels numbers"],
    true: Float[np.ndarray, " pixels"],
    used: Bool[np.ndarray, " pixels"],
) -> tuple[Float[np.ndarray, " numbers"], Float[np.ndarray, " pixels"]]:
    """Fit the used pixels by least squares; return the numbers, and how far off each pixel is."""
    numbers, *_ = np.linalg.lstsq(known[used], true[used], rcond=None)
    return numbers, np.abs(true - known @ numbers)

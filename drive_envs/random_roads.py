"""Roads by chance: straights and curves with continuous parameters, that fit into a square.

Every number is drawn from a continuous range, so that no two roads, and no road and a scenario of
round numbers, are the same. It does not know who drives on them.
"""

from dataclasses import dataclass, replace
from math import degrees

import numpy as np

from drive_envs.roads import Block, Road, lane_centerline

SAMPLING = 4.0  # m between the points that are kept apart
NUM_TRIES = 30  # blocks tried at one place, and roads tried in all
MARGIN = 12.0  # m of ground kept beside the road at the edge of the region and of itself


@dataclass(frozen=True, kw_only=True)
class RoadsConfig:
    """What roads are drawn from; each pair is a (low, high) range.

    radius (m): each road has a tightest curve, log-uniform in the range, and its other curves are
    at most `spread` times as wide, uniform in curvature, so that streets and highways both get
    their time; were every curve drawn alike, the wide ones, which last longer, would have most of
    it. angle_deg and max_bend (m, longest curve), tail (m, the straight after
    a curve), straight (m) and its share of the blocks, lane_count, lane_width (m).
    region: side in metres of the square that the road must fit into.
    """

    radius: tuple[float, float] = (25.0, 600.0)
    spread: float = 2.5
    angle_deg: tuple[float, float] = (20.0, 150.0)
    max_bend: float = 300.0
    tail: tuple[float, float] = (5.0, 40.0)
    straight: tuple[float, float] = (30.0, 200.0)
    straight_share: float = 0.2
    lane_count: tuple[int, int] = (1, 3)
    lane_width: tuple[float, float] = (3.2, 3.8)
    region: int = 1024

    def __post_init__(self) -> None:
        for name in ("radius", "angle_deg", "tail", "straight", "lane_count", "lane_width"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"roads.{name} must be a range above 0, got {low} to {high}")
        if not self.spread >= 1:
            raise ValueError(f"roads.spread must be 1 or more, got {self.spread}")
        if not 0 <= self.straight_share <= 1:
            raise ValueError(f"roads.straight_share must be 0 to 1, got {self.straight_share}")


def random_road(config: RoadsConfig, rng: np.random.Generator, length: float) -> Road:
    """Draw a road of at least `length` metres that neither leaves the region nor meets itself.

    ValueError when none was found, which means that `length` is too much for the region.
    """
    for _ in range(NUM_TRIES):
        low, high = config.lane_count
        empty = Road(
            blocks=(),
            lane_count=int(rng.integers(low, high + 1)),
            lane_width=float(rng.uniform(*config.lane_width)),
            entry_length=float(rng.uniform(15.0, 60.0)),
        )
        low, high = config.radius
        tightest = log_uniform(rng, low, max(low, high / config.spread))
        radius = (tightest, min(high, config.spread * tightest))
        road = _grown(empty, replace(config, radius=radius), rng, length)
        if road is not None:
            return road
    region = f"a region of {config.region} m"
    raise ValueError(f"no road of {length:.0f} m found within {region}: drive slower or shorter")


def _grown(road: Road, config: RoadsConfig, rng: np.random.Generator, length: float) -> Road | None:
    """Add blocks to a road until it is long enough; None where it cannot go on."""
    while road.length < length:
        for _ in range(NUM_TRIES):
            block = _random_block(config, road, rng)
            longer = replace(road, blocks=(*road.blocks, block))
            if _fits(longer, config.region):
                break
        else:
            return None
        road = longer
    return road


def _random_block(config: RoadsConfig, road: Road, rng: np.random.Generator) -> Block:
    if rng.random() < config.straight_share:
        return Block(kind="S", length=float(rng.uniform(*config.straight)))
    low, high = config.radius
    low = max(low, 2 * road.lane_count * road.lane_width + 1.0)
    radius = 1 / float(rng.uniform(1 / max(low, high), 1 / low))
    angle = min(float(rng.uniform(*config.angle_deg)), degrees(config.max_bend / radius))
    return Block(
        kind="C",
        radius=radius,
        angle_deg=angle,
        turn="left" if rng.random() < 0.5 else "right",
        length=float(rng.uniform(*config.tail)),
    )


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform between those of `low` and `high`."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _fits(road: Road, region: int) -> bool:
    """Tell whether the road is within the region, and apart from itself where it comes back."""
    if road.extent + MARGIN > region / 2:
        return False
    line = lane_centerline(road, 0)
    s = np.arange(0.0, line.length, SAMPLING)
    points = line.poses(s)[:, :2]
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    width = 2 * road.lane_count * road.lane_width
    # Along a half circle of the smallest radius one is that far from where one was.
    elsewhere = np.abs(s[:, None] - s[None]) > 4 * (width + MARGIN)
    return bool((apart[elsewhere] > width + MARGIN).all())

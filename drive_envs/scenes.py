"""Where drives begin: a scene is a stretch of recorded path, a start on it and an end, the anchor.

`SceneSampler` draws scenes from recordings. It does not know what the scene looks like from the
car, nor how the car drives: see `world` and `environment`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import radians

import numpy as np
from jaxtyping import Bool

from drive_envs.path import NUM_PAST, RecordedPath, path_from_segment
from drive_envs.plan import STEP
from drive_envs.segment import Segment
from drive_envs.segments import SegmentDataset

MAX_JITTER = 0.1 * STEP  # s: rows that are farther from `STEP` apart end a stretch


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One drive to be: `num_steps` steps from row `start` of `path` to the anchor.

    The car begins `lateral_offset` m (left) of the recorded pose and turned by `heading_offset`
    rad. `source` is what a world needs to draw it (a Segment, or a road); row 0 of the path is row
    `first_row` of the source. `recording` is a number that tells one recording from another.
    Raises ValueError when the context or the anchor is not on the path.
    """

    path: RecordedPath
    start: int
    num_steps: int
    source: object
    first_row: int = 0
    lateral_offset: float = 0.0
    heading_offset: float = 0.0
    recording: int = 0

    def __post_init__(self) -> None:
        last = len(self.path) - 1
        if self.num_steps < 1 or not NUM_PAST <= self.start <= last - self.num_steps:
            raise ValueError(
                f"a scene of {self.num_steps} steps cannot start at row {self.start} of a path of "
                f"{len(self.path)} rows: {NUM_PAST} rows of context and its end must lie on it"
            )


SceneSource = Callable[[np.random.Generator], Scene]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How scenes are drawn.

    num_steps: least and most steps to the anchor (PAPER.md section 3: less than 9 s).
    lateral_offset, heading_offset: m, rad; starts are uniform within +- these,
    share_without_offset: except this share of them, which start on the recorded pose.
    mirrored_share: of the scenes, left and right exchanged: twice as many roads and people.
    rows_after: rows that must follow a scene's end: the anchors that a world model is told.
    cached_segments: encoded segments kept in memory, the most recently used.
    """

    num_steps: tuple[int, int] = (20, 30)
    lateral_offset: float = 1.0
    heading_offset: float = radians(3)
    share_without_offset: float = 0.2
    mirrored_share: float = 0.0
    rows_after: int = 0
    cached_segments: int = 512

    def __post_init__(self) -> None:
        low, high = self.num_steps
        if not 1 <= low <= high <= 45:
            raise ValueError(f"sampler.num_steps is ({low}, {high}); it must rise within [1, 45]")
        if not 0 <= self.lateral_offset <= 4:
            raise ValueError(f"sampler.lateral_offset is {self.lateral_offset} m, not within 0..4")
        if not 0 <= self.heading_offset <= radians(20):
            raise ValueError(f"sampler.heading_offset is {self.heading_offset} rad, not in 0..0.35")
        if not 0 <= self.mirrored_share <= 1:
            raise ValueError(f"sampler.mirrored_share is {self.mirrored_share}, not within 0..1")
        if not 0 <= self.share_without_offset <= 1:
            raise ValueError(f"sampler.share_without_offset is {self.share_without_offset}")
        if self.rows_after < 0 or self.cached_segments < 1:
            raise ValueError(
                f"sampler.rows_after is {self.rows_after} and cached_segments "
                f"{self.cached_segments}; they must be at least 0 and 1"
            )


class SceneSampler:
    """Draws scenes uniformly over all rows of all segments where one can start.

    Reads every segment once; ValueError when no scene can start anywhere.
    """

    def __init__(
        self, segments: Sequence[Segment] | SegmentDataset, config: SamplerConfig | None = None
    ) -> None:
        self.config = config or SamplerConfig()
        self._segment = lru_cache(maxsize=self.config.cached_segments)(segments.__getitem__)
        self._paths: list[tuple[int, slice, RecordedPath]] = []
        starts: list[tuple[int, int]] = []
        for index in range(len(segments)):
            segment = self._segment(index)
            for rows in stretches(segment):
                allowed = allowed_starts(rows.stop - rows.start, self.config)
                if not allowed.any():
                    continue
                starts += [(len(self._paths), int(row)) for row in np.flatnonzero(allowed)]
                self._paths.append((index, rows, path_from_segment(segment, rows)))
        if not starts:
            needed = NUM_PAST + self.config.num_steps[0] + 1 + self.config.rows_after
            raise ValueError(
                f"no scene can start in {len(segments)} segments: it takes {needed} valid rows "
                f"{STEP} s apart; record longer drives or lower sampler.num_steps"
            )
        self._starts = np.array(starts)

    def __call__(self, rng: np.random.Generator) -> Scene:
        """Draw one scene."""
        config = self.config
        which, start = self._starts[rng.integers(len(self._starts))].tolist()
        index, rows, path = self._paths[which]
        segment = self._segment(index)
        if rng.random() < config.mirrored_share:
            segment = segment.mirrored()
            path = path_from_segment(segment, rows)
        num_steps = int(rng.integers(config.num_steps[0], config.num_steps[1] + 1))
        is_displaced = rng.random() >= config.share_without_offset
        lateral, heading = rng.uniform(-1, 1, size=2) * is_displaced
        return Scene(
            path=path,
            start=start,
            num_steps=min(num_steps, len(path) - 1 - config.rows_after - start),
            source=segment,
            first_row=rows.start,
            lateral_offset=float(config.lateral_offset * lateral),
            heading_offset=float(config.heading_offset * heading),
            recording=segment.number,
        )


def stretches(segment: Segment) -> Sequence[slice]:
    """Find the runs of valid rows that are `STEP` apart."""
    breaks = np.abs(np.diff(segment.time) - STEP) > MAX_JITTER
    breaks |= ~segment.valid[1:] | ~segment.valid[:-1]
    edges = np.flatnonzero(np.concatenate([[True], breaks, [True]]))
    return [
        slice(int(first), int(last))
        for first, last in pairwise(edges)
        if segment.valid[first] and last - first > 1
    ]


def allowed_starts(num_rows: int, config: SamplerConfig) -> Bool[np.ndarray, " rows"]:
    """Tell at which rows of a stretch the shortest scene can start."""
    rows = np.arange(num_rows)
    least = config.num_steps[0] + config.rows_after
    return (rows >= NUM_PAST) & (rows + least < num_rows)

"""Where drives begin: a scene is a stretch of recorded path, a start on it and an end, the anchor.

`SceneSampler` draws scenes from recordings. It does not know what the scene looks like from the
car, nor how the car drives: see `world` and `environment`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import radians

import numpy as np
from jaxtyping import Bool, Int

from drive_envs.path import DESIRE_TIME, NUM_PAST, RecordedPath, path_from_segment
from drive_envs.plan import STEP
from drive_envs.segment import Segment, SegmentError
from drive_envs.segments import SegmentDataset

log = logging.getLogger(__name__)

LANE_CHANGE_NEAR = 2.0  # s before a lane change from which a drive counts as one that has it
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

    num_steps: least and most steps to the anchor (less than 9 s in the paper).
    lateral_offset, heading_offset: m, rad; starts are uniform within +- these,
    share_without_offset: except this share of them, which start on the recorded pose.
    mirrored_share: of the scenes, left and right exchanged: twice as many roads and people.
    lane_change_share: of the scenes, drawn among those that begin in a lane change or at most 2 s
    before one, besides those that chance finds: people change lanes too rarely to learn it from.
    rows_after: rows that must follow a scene's end: the anchors that a world model is told.
    cached_segments: encoded segments kept in memory, the most recently used.
    """

    num_steps: tuple[int, int] = (20, 30)
    lateral_offset: float = 1.0
    heading_offset: float = radians(3)
    share_without_offset: float = 0.2
    mirrored_share: float = 0.0
    lane_change_share: float = 0.0
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
        for name in ("share_without_offset", "mirrored_share", "lane_change_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"sampler.{name} is {getattr(self, name)}, not within 0..1")
        if self.rows_after < 0 or self.cached_segments < 1:
            raise ValueError(
                f"sampler.rows_after is {self.rows_after} and cached_segments "
                f"{self.cached_segments}; they must be at least 0 and 1"
            )


class Starts:
    """Where drives can begin: drawn uniformly, but for `lane_change_share`.

    rows: of each path, where one can start. near: of each of these, whether a lane change is under
    way or near. Where there is none the share has no effect, which is logged.
    """

    def __init__(
        self,
        rows: Sequence[Int[np.ndarray, " _"]],
        near: Sequence[Bool[np.ndarray, " _"]],
        lane_change_share: float = 0.0,
    ) -> None:
        whose = np.repeat(np.arange(len(rows)), [len(few) for few in rows])
        self._all = np.stack([whose, np.concatenate([*rows, np.zeros(0, np.int64)])], axis=1)
        self._near = self._all[np.concatenate([*near, np.zeros(0, bool)])]
        self._share = lane_change_share
        if len(self) and lane_change_share and not len(self._near):
            log.warning(
                "no recording changes lanes where a drive can begin: "
                "sampler.lane_change_share has no effect"
            )

    def __len__(self) -> int:
        return len(self._all)

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return the number of a path and a row of it."""
        starts = self._all
        if self._share and rng.random() < self._share and len(self._near):
            starts = self._near
        path, row = starts[rng.integers(len(starts))].tolist()
        return path, row

    def drop(self, path: int) -> None:
        """Never draw from this path again."""
        self._all, self._near = (some[some[:, 0] != path] for some in (self._all, self._near))


class SceneSampler:
    """Draws scenes from all rows of all segments where one can start, as `Starts` tells.

    Segments whose frames turn out to be damaged are left out, logged, and counted in `num_skipped`.
    ValueError when no scene can start anywhere.
    """

    def __init__(
        self, segments: Sequence[Segment] | SegmentDataset, config: SamplerConfig | None = None
    ) -> None:
        self.config = config or SamplerConfig()
        self._segment = lru_cache(maxsize=self.config.cached_segments)(segments.__getitem__)
        self._num_segments = len(segments)
        self._paths: list[tuple[int, slice, RecordedPath]] = []
        starts, near = [], []
        for index in range(len(segments)):
            segment = self._segment(index)
            for rows in stretches(segment):
                allowed = allowed_starts(rows.stop - rows.start, self.config)
                if not allowed.any():
                    continue
                starts.append(np.flatnonzero(allowed))
                near.append(lane_change_near(segment.desire[rows])[starts[-1]])
                self._paths.append((index, rows, path_from_segment(segment, rows)))
        self._starts = Starts(starts, near, self.config.lane_change_share)
        self.num_skipped = 0
        self._check()

    def _check(self) -> None:
        if not len(self._starts):
            needed = NUM_PAST + self.config.num_steps[0] + 1 + self.config.rows_after
            damaged = f" ({self.num_skipped} of them damaged)" if self.num_skipped else ""
            raise ValueError(
                f"no scene can start in {self._num_segments} segments{damaged}: it takes {needed} "
                f"valid rows {STEP} s apart; record longer drives or lower sampler.num_steps"
            )

    def _draw(self, rng: np.random.Generator) -> tuple[Segment, slice, RecordedPath, int]:
        """Draw a stretch of a segment whose frames are whole, and a row of it."""
        while True:
            which, start = self._starts.draw(rng)
            index, rows, path = self._paths[which]
            segment = self._segment(index)
            try:
                segment.load()
            except SegmentError as error:
                log.warning("skipped: %s", error)
                self.num_skipped += 1
                for other, (its_index, *_) in enumerate(self._paths):
                    if its_index == index:
                        self._starts.drop(other)
                self._check()
            else:
                return segment, rows, path, start

    def __call__(self, rng: np.random.Generator) -> Scene:
        """Draw one scene."""
        config = self.config
        segment, rows, path, start = self._draw(rng)
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


def lane_change_near(desire: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Tell at which rows a lane change is under way, or begins within `LANE_CHANGE_NEAR`."""
    near = np.zeros(len(desire), bool)
    for begin in np.flatnonzero(desire):
        first = max(0, begin - round(LANE_CHANGE_NEAR / STEP))
        near[first : begin + round(DESIRE_TIME / STEP)] = True
    return near

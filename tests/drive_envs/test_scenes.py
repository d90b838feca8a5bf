import io
import math
from dataclasses import replace

import numpy as np
import pytest

from drive_envs.path import NUM_PAST
from drive_envs.scenes import SamplerConfig, Scene, SceneSampler, Starts, stretches
from drive_envs.segment import SegmentError


@pytest.fixture(scope="module")
def segments(synthetic):
    plain = synthetic.make_segment(name="plain")
    desire = np.zeros(100, np.int8)
    desire[40] = 1
    return [plain, replace(plain, name="changing", desire=desire)]


def drawn(sampler, count=400):
    return [sampler(np.random.default_rng(seed)) for seed in range(count)]


def test_scenes_lie_on_their_segment_with_context_and_anchor(segments):
    scenes = drawn(SceneSampler(segments))
    for scene in scenes:
        assert scene.start >= NUM_PAST
        assert scene.start + scene.num_steps <= 99
        assert 20 <= scene.num_steps <= 30
        assert scene.first_row == 0
    starts = {scene.start for scene in scenes}
    assert min(starts) == NUM_PAST
    assert max(starts) == 79


def test_scenes_start_before_in_and_after_a_lane_change(segments):
    starts = [s.start for s in drawn(SceneSampler(segments)) if s.source is segments[1]]
    assert set(starts) & set(range(9, 40))
    assert set(starts) & set(range(41, 70))
    assert set(starts) & set(range(71, 80))


def test_offsets_are_uniform_and_some_are_none(segments):
    config = SamplerConfig(lateral_offset=0.8, heading_offset=0.05, share_without_offset=0.25)
    scenes = drawn(SceneSampler(segments, config))
    lateral = np.array([scene.lateral_offset for scene in scenes])
    heading = np.array([scene.heading_offset for scene in scenes])
    assert 0.18 < (lateral == 0).mean() < 0.32
    assert ((lateral == 0) == (heading == 0)).all()
    moved = lateral[lateral != 0]
    assert 0.75 < np.abs(moved).max() <= 0.8
    assert np.abs(moved).std() == pytest.approx(0.8 / math.sqrt(12), rel=0.1)
    assert 0.045 < np.abs(heading).max() <= 0.05


def test_same_seed_same_scene(segments):
    sampler = SceneSampler(segments)
    for one, two in zip(drawn(sampler, 20), drawn(sampler, 20), strict=True):
        assert (one.start, one.num_steps, one.lateral_offset) == (
            two.start,
            two.num_steps,
            two.lateral_offset,
        )


def test_invalid_rows_and_gaps_in_time_end_a_stretch(segments):
    valid, time = np.ones(100, bool), segments[0].time.copy()
    valid[30:32] = False
    time[70:] += 0.2
    broken = replace(segments[0], valid=valid, time=time)
    assert stretches(broken) == [slice(0, 30), slice(32, 70), slice(70, 100)]
    scenes = drawn(SceneSampler([broken]), 50)
    for scene in scenes:
        assert (scene.first_row, len(scene.path)) in {(0, 30), (32, 38), (70, 30)}
        expected = broken.position[scene.first_row + scene.start, :2]
        assert scene.path.poses[scene.start, :2].numpy() == pytest.approx(expected)


def test_too_short_recordings_are_named(segments):
    valid = np.zeros(100, bool)
    valid[:25] = True
    with pytest.raises(ValueError, match="no scene can start in 1 segments: it takes 30 valid"):
        SceneSampler([replace(segments[0], valid=valid)])


def test_a_share_of_the_scenes_has_a_lane_change(segments):
    """It is pulsed on row 40: from 2 s before until the driver is no longer told, 6 s after."""
    scenes = drawn(SceneSampler(segments, SamplerConfig(lane_change_share=1.0)))
    assert {scene.recording for scene in scenes} == {segments[1].number}
    assert {scene.start for scene in scenes} == set(range(30, 70))
    some = drawn(SceneSampler(segments, SamplerConfig(lane_change_share=0.5)))
    near = np.mean([s.recording == segments[1].number and 30 <= s.start < 70 for s in some])
    chance = 40 / 142
    assert near == pytest.approx(0.5 + 0.5 * chance, abs=0.08)


def test_without_lane_changes_their_share_has_no_effect(segments, caplog):
    asked = SceneSampler(segments[:1], SamplerConfig(lane_change_share=0.5))
    assert "no recording changes lanes" in caplog.text
    assert len(drawn(asked, 50)) == 50


def test_starts_are_dropped_by_their_path():
    rows, near = [np.arange(3), np.arange(2)], [np.ones(3, bool), np.zeros(2, bool)]
    starts = Starts(rows, near, lane_change_share=1.0)
    starts.drop(0)
    rng = np.random.default_rng(0)
    assert {starts.draw(rng) for _ in range(40)} == {(1, 0), (1, 1)}
    starts.drop(1)
    assert len(starts) == 0


def test_scene_must_fit_its_path(synthetic):
    with pytest.raises(ValueError, match="a scene of 30 steps cannot start at row 75"):
        Scene(path=synthetic.arc_path(num_rows=100), start=75, num_steps=30, source=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", (30, 20)),
        ("num_steps", (20, 46)),
        ("lateral_offset", 5.0),
        ("lane_change_share", 1.5),
    ],
)
def test_impossible_config_is_named(name, value):
    with pytest.raises(ValueError, match=f"sampler.{name}"):
        SamplerConfig(**{name: value})


def test_segments_with_damaged_frames_are_left_out_and_counted(segments, caplog):
    class Damaged(list):
        def __getitem__(self, row):
            raise SegmentError("damaged row group")

    images = {camera: Damaged(frames) for camera, frames in segments[0].images.items()}
    sampler = SceneSampler([replace(segments[0], images=images), segments[1]])
    assert all(scene.source is segments[1] for scene in drawn(sampler, 50))
    assert sampler.num_skipped == 1
    assert caplog.text.count("skipped: damaged row group") == 1
    with pytest.raises(ValueError, match=r"in 1 segments \(1 of them damaged\): it takes 30 valid"):
        drawn(SceneSampler([replace(segments[0], images=images)]), 1)


def test_only_so_many_segments_are_kept(segments):
    reads = io.StringIO()

    class Counted(list):
        def __getitem__(self, index):
            reads.write(str(index))
            return super().__getitem__(index)

    one = SceneSampler(Counted(segments), SamplerConfig(cached_segments=1))
    both = SceneSampler(Counted(segments), SamplerConfig(cached_segments=2))
    reads.truncate(0)
    drawn(both, 20)
    assert reads.getvalue() == ""
    drawn(one, 20)
    assert reads.getvalue() != ""

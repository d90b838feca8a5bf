import numpy as np
import pytest
import torch

from drive_actors.policy import PolicyConfig
from drive_envs.photometry import PhotometryConfig
from drive_envs.plan import TIMES
from drive_envs.protocol import NUM_CONTEXT
from drive_envs.segment import SegmentError
from drive_learner.batch import STEP_FIELDS
from drive_learner.imitation import (
    DecodedRollouts,
    ImitationConfig,
    RecordedFeed,
    find_stretches,
    images_of,
    recorded_rollout,
    trajectory_mae,
)
from drive_learner.learner import Learner, LearnerConfig, OptimizerConfig
from drive_learner.losses import LossConfig
from drive_learner.queue import QueueConfig

QUEUE = QueueConfig(num_sequences=8, sequence_length=5)


def rollout_of(segment, rows, width=32, height=16):
    return recorded_rollout(segment, rows, images_of(segment, rows, width, height))


def whole(segment):
    return rollout_of(segment, slice(0, len(segment)))


def feed_of(segments, memory_mb=100, **changes):
    policy = PolicyConfig(width=32, height=16, num_features=16)
    config = ImitationConfig(memory_mb=memory_mb)
    return RecordedFeed(segments, QUEUE, policy, config, seed=0, **changes)


def test_a_recording_is_a_rollout_that_the_person_drove(arc_segment):
    segment = arc_segment(radius=50.0, speed=10.0)
    rollout = whole(segment)
    assert rollout.num_steps == len(segment) - NUM_CONTEXT - 1
    np.testing.assert_allclose(rollout.observation["speed"], 10, rtol=1e-3)
    np.testing.assert_allclose(rollout.teacher_action[..., 0], 1 / 50, rtol=1e-2)
    np.testing.assert_allclose(rollout.teacher_action[..., 1], 0, atol=1e-3)
    np.testing.assert_allclose(rollout.observation["last_action"][1:, 0, 0], 1 / 50, rtol=1e-2)
    images = [segment.image("wide", row) for row in range(len(segment))]
    np.testing.assert_array_equal(rollout.observation["wide"][:, 0], images)
    plan, valid = rollout.teacher_plan[0, 0], rollout.teacher_plan_valid[0, 0]
    ahead = 10 * np.asarray(TIMES) / 50  # rad
    circle = 50 * np.stack([np.sin(ahead), 1 - np.cos(ahead)], -1)
    np.testing.assert_allclose(plan[valid, :2], circle[valid], atol=0.05)
    last = 0.2 * (len(segment) - 1 - NUM_CONTEXT)  # s of recording left
    np.testing.assert_array_equal(valid, np.asarray(TIMES) <= last + 1e-6)


def test_stretches_end_at_an_invalid_frame(arc_segment):
    segment = arc_segment(num_frames=60)
    segment.valid[20] = False
    found = find_stretches([segment])
    assert [(stretch.rows.start, stretch.rows.stop) for stretch in found] == [(0, 20), (21, 60)]
    assert [stretch.num_steps for stretch in found] == [10, 29]
    rollout = rollout_of(segment, found[1].rows)
    np.testing.assert_array_equal(rollout.observation["wide"][0, 0], segment.image("wide", 21))


def test_images_are_resized_to_the_policys(arc_segment):
    rollout = rollout_of(arc_segment(), slice(5, 25), 16, 8)
    assert rollout.observation["narrow"].shape == (20, 1, 3, 8, 16)
    blocks = arc_segment().image("narrow", 5).reshape(3, 8, 2, 16, 2).mean((2, 4))
    np.testing.assert_allclose(rollout.observation["narrow"][0, 0], blocks, atol=1)


def test_a_minibatch_depends_on_seed_and_step_alone(arc_segment, dataset_of):
    dataset = dataset_of(arc_segment("a"), arc_segment("b", num_frames=60, seed=1))
    first = feed_of(dataset)
    resumed = feed_of(dataset, memory_mb=0)
    first.next(0)
    expected, found = first.next(7), resumed.next(7)
    for name in (*STEP_FIELDS, "noise", "policy_version"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name
    for key, value in expected.observation.items():
        assert torch.equal(value, found.observation[key]), key
    assert expected.active.all()
    assert not torch.equal(first.next(8).observation["wide"], found.observation["wide"])


def test_photometry_and_mirrors_change_what_is_imitated_as_they_do_for_actors(
    arc_segment, dataset_of
):
    dataset = dataset_of(arc_segment("a", radius=50.0))
    plain = feed_of(dataset).next(3)
    mirrored = feed_of(dataset, mirrored_share=1.0).next(3)
    assert (plain.teacher_action[..., 0] > 0).all()
    torch.testing.assert_close(
        mirrored.teacher_action[..., 0], -plain.teacher_action[..., 0], rtol=1e-3, atol=1e-5
    )
    assert torch.equal(mirrored.observation["wide"], plain.observation["wide"].flip(-1))
    assert not (mirrored.recording == plain.recording).any()
    dark = PhotometryConfig(exposure=(0.5, 0.5), noise=(2.0, 2.0))
    first, again = (feed_of(dataset, photometry=dark).next(3).observation for _ in range(2))
    for name in ("narrow", "wide"):
        assert torch.equal(first[name], again[name])
        ratio = first[name].float().mean() / plain.observation[name].float().mean()
        assert 0.47 < ratio < 0.53
    assert torch.equal(feed_of(dataset).next(3).observation["wide"], plain.observation["wide"])


def test_mirror_images_take_no_memory(arc_segment, dataset_of):
    decoded = DecodedRollouts(dataset_of(arc_segment()), 32, 16, memory_mb=100)
    stretch = find_stretches([arc_segment()])[0]
    both = decoded.get([stretch])[0]
    assert not isinstance(both, SegmentError)
    plain, mirrored = both
    for name in ("narrow", "wide"):
        assert np.shares_memory(plain.observation[name], mirrored.observation[name])
    expected = rollout_of(arc_segment().mirrored(), stretch.rows)
    for key, value in expected.observation.items():
        np.testing.assert_array_equal(mirrored.observation[key], value, key)
    assert decoded.get([stretch])[0] is both


def test_lane_changes_are_imitated_as_often_as_asked(arc_segment, dataset_of):
    """One recording of two changes lanes in its last steps, where chance would hardly look."""
    changes = arc_segment("changes", num_frames=60)
    changes.desire[55] = 1
    dataset = dataset_of(arc_segment("keeps", num_frames=200), changes)
    number = dataset[1].number
    shares = []
    for asked in (0.0, 0.5):
        feed = feed_of(dataset, lane_change_share=asked)
        batches = [feed.next(step) for step in range(50)]
        near = [batch.recording == number for batch in batches]
        shares.append(torch.cat(near).double().mean().item())
    assert shares[0] == pytest.approx(45 / 230, abs=0.05)
    assert shares[1] == pytest.approx(0.5 + 0.5 * 45 / 230, abs=0.06)


def test_short_and_damaged_segments_are_skipped_and_counted(arc_segment, dataset_of):
    damaged = arc_segment("damaged", num_frames=200)
    damaged.images["wide"][100] = damaged.images["wide"][100][:40]
    dataset = dataset_of(arc_segment("good"), arc_segment("short", num_frames=14), damaged)
    feed = feed_of(dataset)
    for step in range(3):
        feed.next(step)
    assert feed.metrics() == {"skipped/too_short": 1, "skipped/damaged": 1}
    with pytest.raises(ValueError, match="sequence_length"):
        feed_of(dataset_of(arc_segment(num_frames=12)))


def test_trajectory_error_of_driving_straight_on(arc_segment, dataset_of, tiny_policy):
    """An untrained policy whose plan is straight on misses the circle by geometry alone."""
    for parameter in tiny_policy.plan_head.parameters():
        torch.nn.init.zeros_(parameter)
    segment = arc_segment(num_frames=80, radius=50.0, speed=10.0)
    rollout = whole(segment)
    travelled = 10 * np.asarray(TIMES)
    ahead = travelled / 50
    miss_x = np.abs(travelled - 50 * np.sin(ahead))
    miss_y = np.abs(50 * (1 - np.cos(ahead)))
    valid = rollout.teacher_plan_valid[:, 0]
    expected = ((miss_x + miss_y) / 2 * valid).sum() / valid.sum()
    assert trajectory_mae(tiny_policy, dataset_of(segment)) == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="held-out"):
        trajectory_mae(tiny_policy, dataset_of(arc_segment(num_frames=10)))


def test_a_segment_that_cannot_be_seen_is_left_out_of_the_error(
    arc_segment, dataset_of, tiny_policy, caplog
):
    good, damaged = arc_segment("good", num_frames=80), arc_segment("torn", num_frames=80)
    alone = trajectory_mae(tiny_policy, dataset_of(good))
    damaged.images["wide"][40] = damaged.images["wide"][40][:40]
    assert trajectory_mae(tiny_policy, dataset_of(damaged, good)) == alone
    assert "left out of the trajectory error" in caplog.text
    assert "torn" in caplog.text


@pytest.mark.slow
def test_imitation_lowers_the_trajectory_error(arc_segment, dataset_of, tiny_policy):
    dataset = dataset_of(*(arc_segment(f"{r}", radius=r, num_frames=60) for r in (30.0, -80.0)))
    config = LearnerConfig(
        num_steps=150,
        device="cpu",
        loss=LossConfig(policy_gradient=0.0, value=0.0, entropy=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2, num_warmup_steps=5),
    )
    learner = Learner(tiny_policy, config)
    feed = feed_of(dataset)
    before = trajectory_mae(tiny_policy, dataset)
    while learner.step < config.num_steps:
        learner.update(feed.next(learner.step))
    assert trajectory_mae(tiny_policy, dataset) < 0.2 * before
